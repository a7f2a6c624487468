import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { Batch, device, type Completion, type Device } from "../../lib/index.js";
import { llama, lively } from "../models.js";
import { joinPacked, packEpisodes } from "../../lib/rlhf/batch/pack.js";
import { Random } from "../random.js";

let on: Device;
beforeAll(async () => {
  on = await device("cpu");
});
afterAll(() => on.close());

/** A completion of so many tokens, its log-probs -1, -2 and so on. */
const completion = (tokens: number, prompt = [1, 2], index = 0, stopped = true): Completion => {
  const logp = Float32Array.from({ length: tokens }, (_, t) => -1 - t);
  const ids = Int32Array.from({ length: tokens }, (_, t) => (7 * t + index) % llama.vocabulary);
  return { prompt, index, sample: 0, completion: ids, logp, truncatedLogp: logp, stopped };
};
const batchOf = (completions: Completion[], options: { microBatch?: number; sharePrompts?: boolean } = {}) =>
  new Batch(
    completions,
    Float32Array.from(completions, (_, b) => b),
    on,
    options,
  );

describe("a batch", () => {
  test("of one completion of one token", async () => {
    using batch = batchOf([completion(1)]);
    expect([batch.size, batch.tokens, batch.groups.length]).toEqual([1, 1, 1]);
    expect(await batch.get("logp").read()).toEqual(Float32Array.of(-1));
    expect(batch.metrics).toEqual({ reward: 0, length: 1, stopped: 1, masked: 0, tokens: 1 });
    const { parts, tokens, isFirst } = batch.minibatch(batch.groups, true);
    expect([parts.length, tokens, isFirst]).toEqual([1, 1, true]);
    expect(await parts[0].column("logp").read()).toEqual(Float32Array.of(-1));
  });

  test("has groups of one request that follow one another: an equal prompt asked again is another group", () => {
    const sizes = [[1, 2], [1, 2], [1, 2], [9], [9], [1, 2]];
    const indices = [0, 0, 1, 2, 2, 0];
    using batch = batchOf(indices.map((index, b) => completion(b + 1, sizes[b], index)));
    expect(batch.groups.map((group) => group.map(({ place }) => place))).toEqual([[0, 1], [2], [3, 4], [5]]);
  });

  test.each([1, 2, 5, undefined])(
    "gives each micro-batch its own tokens of a column, however groups are chosen and cut: %s at once",
    async (microBatch) => {
      const lengths = [3, 1, 4, 1, 5, 9, 2, 6];
      const indices = [0, 0, 0, 1, 2, 2, 3, 3];
      const prompts = [[1, 2], [1, 2], [1, 2], [5], [8, 8, 8], [8, 8, 8], [4], [4]];
      for (const sharePrompts of [true, false]) {
        const all = lengths.map((n, b) => completion(n, prompts[b], indices[b]));
        using batch = batchOf(all, { microBatch, sharePrompts });
        batch.spread(
          "advantages",
          Float32Array.from(lengths, (_, b) => 10 * b),
        );
        const chosen = [batch.groups[2], batch.groups[0]];
        const { parts, completions, tokens } = batch.minibatch(chosen);
        const places = [4, 5, 0, 1, 2];
        expect(completions.map(({ place }) => place)).toEqual(places);
        expect(tokens).toBe(places.reduce((sum, b) => sum + lengths[b], 0));
        const got: number[] = [];
        for (const part of parts) {
          expect(part.tokens).toBe(part.completions.reduce((sum, one) => sum + one.completion.length, 0));
          expect(Array.from(part.packed.y)).toEqual(part.completions.flatMap((one) => Array.from(one.completion)));
          got.push(...(await part.column("advantages").read()));
          const logp = part.completions.flatMap((one) => Array.from(one.logp));
          expect(Array.from(await part.column("logp").read())).toEqual(logp);
        }
        expect(got).toEqual(places.flatMap((b) => new Array(lengths[b]).fill(10 * b)));
      }
    },
  );

  test("packs each unit once, and joins what is packed as if it were packed together", () => {
    const random = new Random("joined");
    for (let round = 0; round < 20; round++) {
      let place = 0;
      const units = Array.from({ length: 1 + random.below(5) }, () => {
        const prompt = Array.from({ length: 1 + random.below(4) }, () => random.below(97));
        return Array.from({ length: 1 + random.below(3) }, () => completion(1 + random.below(6), prompt, place++));
      });
      const apart = units.map((unit) => packEpisodes([unit]));
      expect(joinPacked(apart)).toEqual(packEpisodes(units));
    }
    using batch = batchOf([2, 3, 4].map((n, b) => completion(n, [1, 2], b)));
    const [group] = batch.groups;
    expect(batch.piece(group)).toBe(batch.piece(group));
  });

  test("measures all completions in their order, packed once for several models", async () => {
    const critic = await lively(llama, on, "score");
    const all = [2, 70, 1, 5].map((n, b) => completion(n, b < 2 ? [1, 2] : [3], b));
    const seen: number[] = [];
    using batch = batchOf(all, { microBatch: 2 });
    for (const name of ["refLogp", "values"] as const)
      batch.measure(name, ({ packed }, into) => {
        seen.push(packed.y.length);
        into.write(Float32Array.from(packed.y));
      });
    expect(seen).toEqual([72, 6, 72, 6]);
    for (const name of ["refLogp", "values"] as const)
      expect(Array.from(await batch.get(name).read())).toEqual(all.flatMap((one) => Array.from(one.completion)));
    expect(batch.parts).toBe(batch.parts);
    critic.dispose();
  });

  test("sums a column of any size as it is", async () => {
    const random = new Random("moments");
    const all = [4097, 1, 5000].map((n) => completion(n));
    using batch = batchOf(all);
    const x = Float32Array.from({ length: batch.tokens }, () => random.normal());
    batch.measure("values", (part, into) => {
      const { place } = part.completions[0];
      into.write(x.slice(batch.cuRows[place], batch.cuRows[place] + part.tokens));
    });
    const { count, sum, squares } = await batch.moments(batch.get("values"));
    expect(count).toBe(x.length);
    expect(sum).toBeCloseTo(
      x.reduce((a, b) => a + b, 0),
      9,
    );
    expect(squares).toBeCloseTo(
      x.reduce((a, b) => a + b * b, 0),
      9,
    );
  });

  test.each([
    { value: NaN, place: 0, token: 0 },
    { value: Infinity, place: 1, token: 0 },
    { value: -Infinity, place: 2, token: 3 },
    { value: NaN, place: 3, token: 1 },
  ])("names the completion and the token of $value in a column, and gives that completion", async (bad) => {
    const { value, place, token } = bad;
    const all = [3, 1, 4, 2].map((n, b) => completion(n, [b], b));
    using batch = batchOf(all);
    batch.measure("values", (_, into) => {
      const x = new Float32Array(batch.tokens);
      x[batch.cuRows[place] + token] = value;
      into.write(x);
    });
    await batch.finite("logp", 7);
    const error = await batch.finite("values", 7).then(
      () => undefined,
      (one: unknown) => one as Error & { batch: Record<string, unknown>[] },
    );
    expect(error).toBeInstanceOf(RangeError);
    expect(error).toMatchObject({
      code: "NAN",
      message: `step 7: values of completion ${place}, at token ${token}, is ${value}`,
    });
    const wanted = new Float32Array(all[place].completion.length);
    wanted[token] = value;
    expect(error!.batch).toEqual([{ ...all[place], place, values: wanted }].map(({ place: _, ...one }) => one));
  });

  test("frees its columns, also those that are set anew", () => {
    const { current } = on.memory();
    {
      using batch = batchOf([completion(5000), completion(5000)]);
      for (let i = 0; i < 3; i++) batch.spread("advantages", Float32Array.of(1, 2));
      expect(on.memory().current).toBeLessThan(current + 3 * 1.25 * 4 * batch.tokens);
    }
    expect(on.memory().current).toBe(current);
  });
});
