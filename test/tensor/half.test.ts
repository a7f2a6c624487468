import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { generate, loadModel, logps, ops, ppo, saveModel, Tensor, type Device } from "../../lib/index.js";
import { readSafetensors } from "../../lib/model/safetensors.js";
import { packSequences } from "../../lib/model/packed.js";
import { run } from "../../lib/tensor/op.js";
import { everyCpu, episodes, gpt2, lively, llama, ppoConfig, weightsOf } from "../models.js";
import { Random } from "../random.js";
import { normal } from "../truth.js";

// 16-bit weights: what a cast does to a number, and that a packed weight in bf16 is the widened one
// (law of arithmetic, 9).

const devices: Device[] = [];
beforeAll(async () => {
  devices.push(...(await everyCpu()));
});
afterAll(() => Promise.all(devices.map((on) => on.close())));

const bytes = async (tensor: Tensor) => Buffer.from((await tensor.read()).buffer).toString("hex");

test("a cast to bf16 takes the nearest, ties to the even one; infinities, zeros and denormals stay, and so does a NaN", async () => {
  const uppers = Array.from({ length: 2 ** 16 }, (_, i) => i);
  const words = Uint32Array.from(
    uppers.flatMap((upper) => [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map((lower) => (upper << 16) | lower)),
  );
  const given = new Float32Array(words.buffer);
  const exact = new Float32Array(1);
  const value = (half: number) => ((new Uint32Array(exact.buffer)[0] = half << 16), exact[0]);
  const beyond = 2 ** 128; // what the largest of them would be followed by
  for (const on of devices) {
    const halves = (await ops.cast(Tensor.from(given, undefined, on), "bf16").read()) as Uint16Array;
    given.forEach((x, i) => {
      const [got, down] = [halves[i], words[i] >>> 16];
      if (Number.isNaN(x)) return Number.isNaN(value(got)) || expect([x, got]).toBe("a NaN");
      if (!Number.isFinite(x)) return got === down || expect([x, got]).toBe(down);
      const next = Number.isFinite(value(down + 1)) ? value(down + 1) : Math.sign(x) * beyond;
      const [below, above] = [Math.abs(x - value(down)), Math.abs(next - x)];
      const wanted = below < above || (below === above && down % 2 === 0) ? down : down + 1;
      return got === wanted || expect([x, got]).toBe(wanted);
    });
    const back = await ops.cast(Tensor.from(Uint16Array.from(uppers), undefined, on), "f32").read();
    expect(Buffer.from(back.buffer).equals(Buffer.from(Uint32Array.from(uppers, (upper) => upper << 16).buffer))).toBe(
      true,
    );
  }
});

test("a product with panels has the bits of the row-major one, in f32 and bf16, on every instruction set, number of threads and rows", async () => {
  const random = new Random("panels");
  for (const [O, I] of [
    [1, 1],
    [33, 70],
    [200, 401],
    [1031, 67],
  ]) {
    const weight = normal(random, [O, I]).data as Float32Array;
    const bias = normal(random, [O]).data as Float32Array;
    const x = normal(random, [37, I]).data as Float32Array;
    let wanted: string[] | undefined;
    for (const on of devices) {
      const narrow = ops.cast(Tensor.from(weight, [O, I], on), "bf16");
      const wide = ops.cast(narrow, "f32");
      const all = Tensor.from(x, [37, I], on);
      for (const form of [
        wide,
        narrow,
        ops.pack(wide),
        ops.pack(narrow),
        ops.pack(Tensor.from(weight, [O, I], on), "bf16"),
        ops.pack(narrow, "f32"),
      ]) {
        const whole = await bytes(ops.linear(all, form, bias));
        wanted ??= [whole];
        expect(whole).toBe(wanted[0]);
        for (const rows of [1, 2, 7, 16, 17])
          expect(await bytes(ops.linear(all.rows(0, rows), form, bias))).toBe(whole.slice(0, rows * O * 8));
      }
      const backward = [0, 1].map((bf16) => {
        const packed = Tensor.empty([Math.ceil(I / 32) * 32 * O], bf16 ? "bf16" : "f32", on);
        run("pack", { weight: narrow, transposed: 1, packed });
        return packed.withLayout("panels-transposed", [O, I]);
      });
      const dy = ops.linear(all, wide);
      const grads = await Promise.all(
        [wide, narrow, ...backward].map((weight) => bytes(run("linearGradInput", { dy, weight }).dx)),
      );
      expect(new Set(grads).size).toBe(1);
    }
  }
});

test("what takes bf16 by itself says so, and what does not refuses it by name", async () => {
  const [on] = devices;
  const half = Tensor.from(new Uint16Array(6), [2, 3], on);
  const x = Tensor.from(new Float32Array(6), [2, 3], on);
  expect(() => ops.linear(half, x)).toThrow(
    expect.objectContaining({ code: "DTYPE", message: "linear: x is bf16, wanted f32" }),
  );
  expect(() => ops.linear(x, Tensor.from(new Int32Array(6), [2, 3], on))).toThrow(
    "linear: weight is int32, wanted f32 or bf16",
  );
  expect(() => ops.add(half, half)).toThrow("add: a is bf16, wanted f32");
  expect(() => ops.cast(ops.pack(half), "f32")).toThrow(expect.objectContaining({ code: "LAYOUT" }));
});

describe.each(
  [llama, { ...llama, tied: false }, gpt2].map(
    (config) => [`${config.kind}${config.tied ? ", tied head" : ""}`, config] as const,
  ),
)("%s", (_, config) => {
  test("a model in bf16 has the bits of one with the widened weights, sampling and scoring, and half the memory", async () => {
    const random = new Random("model");
    const requests = episodes(random, 5).map(({ prompt }, index) => ({ prompt, index, sample: 0 }));
    const options = { maxTokens: 20, temperature: 0.8, seed: 5 };
    let wanted: string | undefined;
    for (const on of devices) {
      const before = on.memory().current;
      const narrow = await lively(config, on);
      const whole = on.memory().current - before;
      const vectors = [...narrow.parameters.values()]
        .filter(({ value }) => value.shape.length < 2)
        .reduce((sum, { value }) => sum + 4 * value.size, 0);
      narrow.toBf16();
      expect(on.memory().current - before).toBeLessThan(vectors + (whole - vectors) * 0.65); // 64 bytes at least for each
      const wide = narrow.copy();
      for (const { name, value } of wide.matrices) {
        wide.set(name, ops.cast(value, "f32"));
        value.dispose();
      }
      for (const model of [wide, narrow]) {
        const completions = await generate(model, requests, options);
        const { logp } = await logps(model, completions, { temperature: 0.8 });
        completions.forEach((one, i) => expect(logp[i]).toEqual(one.logp));
        const got = completions
          .map(({ completion, logp }) => `${completion.join()} ${Buffer.from(logp.buffer).toString("hex")}`)
          .join();
        wanted ??= got;
        expect(got).toBe(wanted);
      }
      for (const model of [wide, narrow]) model.dispose();
    }
  });

  test("PPO on bf16 weights: the ratios of an update's first step are 1, the KL to a bf16 reference begins with 0, the optimizer keeps f32", async () => {
    const random = new Random("ppo");
    const prompts = episodes(random, 8).map(({ prompt }, index) => ({ prompt, index, sample: 0 }));
    let wanted: string | undefined;
    for (const [on, microBatch] of [
      [devices[0], undefined],
      [devices.at(-1)!, 3],
    ] as const) {
      const [policy, reference] = [await lively(config, on), await lively(config, on)];
      const [reward, critic] = [await lively(config, on, "score", 2), await lively(config, on, "score", 2)];
      for (const model of [reference, reward]) model.toBf16();
      const kl: number[] = [];
      // an update whose first ratios are not all exactly 1 throws
      for await (const metrics of ppo({ policy, reference, reward, critic }, () => prompts, {
        ...ppoConfig,
        microBatch,
        weights: "bf16",
      }))
        kl.push(metrics.kl);
      expect(kl[0]).toBe(0);
      expect(kl[1]).not.toBe(0);
      for (const { value, working } of policy.matrices) {
        expect([value.dtype, working.dtype]).toEqual(["f32", "bf16"]);
        const [rounded, kept] = [ops.cast(value, "bf16"), ops.cast(working, "f32")];
        expect(await bytes(rounded)).toBe(await bytes(working)); // of the last step
        expect(await bytes(kept)).not.toBe(await bytes(value));
      }
      const got = `${(await weightsOf(policy)).toString("hex")} ${kl.join()}`;
      wanted ??= got;
      expect(got).toBe(wanted);
      for (const model of [policy, reference, reward, critic]) model.dispose();
    }
  });

  test("a directory in bf16 is loaded as it is, one in f32 rounded; what is written is bf16", async () => {
    const [on] = devices;
    const folder = await mkdtemp(join(tmpdir(), "half-"));
    try {
      const model = await lively(config, on);
      const ids = packSequences([[1, 2, 3, 4]]);
      await saveModel(model, folder);
      const rounded = await loadModel(folder, on, "bf16");
      model.toBf16();
      expect((await weightsOf(rounded)).equals(await weightsOf(model))).toBe(true);
      await saveModel(model, folder);
      const stored = await readSafetensors(folder, "keep");
      expect([...stored.values()].every(({ shape, data }) => data instanceof Uint16Array === shape.length > 1)).toBe(
        true,
      );
      const [again, widened] = [await loadModel(folder, on, "bf16"), await loadModel(folder, on)];
      expect((await weightsOf(again)).equals(await weightsOf(model))).toBe(true);
      expect(widened.matrices.every(({ value }) => value.dtype === "f32")).toBe(true);
      expect(await bytes(widened.hidden(ids))).toBe(await bytes(again.hidden(ids)));
      for (const one of [model, rounded, again, widened]) one.dispose();
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
