// The CUDA kernels' own source on a simulated GPU (native/simt/simulator.cc), held to the truths of the ops.
import "../simulator.js";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { opList } from "../../lib/cli/info.js";
import { root } from "../../lib/device/native.js";
import { camel, specs } from "../../lib/device/ops.js";
import { device, ops, Tensor, type Device } from "../../lib/index.js";
import {
  allTruths,
  casesOf,
  expectBits,
  failure,
  holdToAbsentTerms,
  holdToGradient,
  holdToLossGradients,
  holdToManyPairs,
  holdToReference,
  holdToTemperatures,
  narrowed,
  runOn,
  sizes,
} from "../hold.js";
import { wideHeads, wideHeadsGrad } from "../ops/attention.js";
import { run } from "../../lib/tensor/op.js";
import { Random, seed } from "../random.js";
import type { Truth } from "../truth.js";

const truths = await allTruths();
const here = truths.filter(({ op }) => specs.get(op)!.dtypes.cuda.length > 0);
let on: Device;
const others: Device[] = []; // their threads and blocks run in another order
const hoppers: Device[] = []; // simulated too, from this ordinal on
beforeAll(async () => {
  console.log(`seed ${seed}`);
  on = await device("cuda");
  for (const ordinal of [1, 2, 3]) others.push(await device("cuda", { ordinal }));
  for (const ordinal of [90, 91, 92, 93]) hoppers.push(await device("cuda", { ordinal }));
});
afterAll(() => Promise.all([on, ...others, ...hoppers].map((d) => d.close())));

const HEADS = ["linearLogprob", "linearLogprobGrad", "linearPolicyLoss"];
const HOPPER = [...HEADS, "attention", "attentionGrad", "linear", "linearGradInput", "linearGradWeight"]; // with kernels of their own there, at bf16
const WIDE = [...HOPPER, "logprob", "logprobGrad"]; // at bf16 too
const HEADS_OF_MODELS: Record<string, Truth["draw"]> = { attention: wideHeads, attentionGrad: wideHeadsGrad };
// Tensor cores take bf16 alone, so what a kernel has computed and multiplies again is rounded: half an ulp of bf16.
const ROUNDED: Record<string, readonly string[]> = {
  attention: ["o"],
  attentionGrad: ["dq", "dk", "dv"],
  linearLogprobGrad: ["dh", "dweight"],
  linearPolicyLoss: ["dh", "dweight"],
};

test("log-probs hold at any temperature", () => holdToTemperatures(on));

test("has every op that a file of kernels/cuda defines", () => {
  const folder = join(root, "kernels/cuda");
  const sources = readdirSync(folder).map((file) => readFileSync(join(folder, file), "utf8"));
  const defined = sources.flatMap((source) =>
    [...source.matchAll(/^void (\w+)\(Context& ctx, const \1_args& a\)/gm)].map(([, name]) => camel(name)),
  );
  const has = (dtype: "f32" | "bf16") => [...specs.keys()].filter((op) => on.has(op, dtype)).sort();
  expect(has("f32")).toEqual(defined.sort());
  expect(has("bf16")).toEqual([...WIDE].sort());
});

/** Every case has the same bits on all devices as on the first. */
async function holdToBits(entry: Truth, first: Device, all: Device[], bf16 = false): Promise<void> {
  for (const drawn of casesOf(entry)) {
    const inputs = bf16 ? narrowed(first, entry, drawn) : drawn;
    const wanted = await runOn(first, entry, inputs, bf16);
    for (const other of all)
      expectBits(await runOn(other, entry, inputs, bf16), wanted, `${entry.op} (${sizes(inputs)})`);
  }
}

describe.each(here.map((entry) => [entry.op, entry] as const))("%s", (name, entry) => {
  test("equals its f64 reference", () => holdToReference(on, entry));
  if (specs.get(name)!.dtypes.cuda.includes("bf16"))
    test("equals its f64 reference on bf16", () => holdToReference(on, entry, true, ROUNDED[name]));

  if (HOPPER.includes(name))
    test("equals its f64 reference on bf16 on a Hopper", () => holdToReference(hoppers[0], entry, true, ROUNDED[name]));
  if (name in HEADS_OF_MODELS) {
    const wide = { ...entry, draw: HEADS_OF_MODELS[name], extremes: undefined };
    test("equals its f64 reference at heads of 64 and 128", () => holdToReference(on, wide, true, ROUNDED[name]));
    test("equals its f64 reference at heads of 64 and 128 on a Hopper", () =>
      holdToReference(hoppers[0], wide, true, ROUNDED[name]));
    test("has the same bits at heads of 64 and 128 on a Hopper, in whatever order", () =>
      holdToBits(wide, hoppers[0], hoppers.slice(1), true));
  }

  test("has the same bits again, and in whatever order threads and blocks run", async () => {
    await holdToBits(entry, on, [on, ...others]);
    if (on.has(name, "bf16")) await holdToBits(entry, on, [on, ...others], true);
    if (HOPPER.includes(name)) await holdToBits(entry, hoppers[0], hoppers, true);
  });

  if (entry.gradient) test("has the gradient of its reference", () => holdToGradient(on, entry, undefined, 6));
  if (entry.gradients) test("returns the gradient of its loss", () => holdToLossGradients(on, entry));
});

const f32 = (...values: number[]) => Tensor.from(Float32Array.from(values), [values.length], on);
const i32 = (...values: number[]) => Tensor.from(Int32Array.from(values), [values.length], on);

test.each([64, 128])("a Hopper's attention at heads of %d knows nothing of the sequences beside", async (D) => {
  const random = new Random(`beside ${D}`);
  const values = Array.from({ length: 4 }, () =>
    Uint16Array.from({ length: 213 * D }, () => 0x3f00 + random.below(256) + (random.below(2) << 15)),
  );
  const attend = async (begin: number, end: number, offsets: Int32Array) => {
    const [q, k, v, dO] = values.map((x) => Tensor.from(x.slice(begin * D, end * D), [end - begin, 1, D], hoppers[0]));
    const given = { q, k, v, cuSeqlens: Tensor.from(offsets, [offsets.length], hoppers[0]), scale: 1 / Math.sqrt(D) };
    const { o, lse } = run("attention", given);
    const { dq, dk, dv } = run("attentionGrad", { dO, o, lse, ...given });
    return (await Promise.all([o, dq, dk, dv].map((x) => x.read()))) as Uint16Array[];
  };
  const alone = await attend(70, 210, Int32Array.of(0, 140));
  for (const output of alone) expect(output.some((x) => (x & 0x7fff) > 0x7f80)).toBe(false);
  for (const x of values) x.fill(0x7fff, 0, 70 * D).fill(0x7fff, 210 * D);
  const beside = await attend(0, 213, Int32Array.of(0, 70, 210, 213));
  expect(beside.map((output) => output.slice(70 * D, 210 * D))).toEqual(alone);
});

test.each([
  [5000, 1],
  [5000, 3],
  [9000, 20_000],
])("the preference loss holds for %d pairs over %d scores", (P, M) => holdToManyPairs(on, P, M));

test("a term of the policy's loss whose coefficient is 0 enters neither loss nor gradient", () =>
  holdToAbsentTerms(on));

describe("an error on the device", () => {
  /** What lies there, whatever op failed on it. */
  const trusted = (tensor: Tensor) => {
    on.trust(tensor.address);
    return tensor.read();
  };
  test("of offsets is told by every read of what it spoilt, with the op's name", async () => {
    const { advantages } = ops.gae(f32(1, 2, 3), f32(1, 2, 3), i32(0, 5, 3), { gamma: 1, lambda: 1 });
    const error = await failure(() => advantages.read());
    expect(error).toBeInstanceOf(RangeError);
    expect(error.code).toBe("OFFSETS");
    expect(error.message).toContain("gae");
    expect((await failure(() => advantages.read())).message).toBe(error.message);
    expect([...(await trusted(advantages))].every(Number.isNaN)).toBe(true);
    const again = ops.gae(f32(1, 2, 3), f32(1, 2, 3), i32(0, 2, 3), { gamma: 1, lambda: 1 });
    expect([...(await again.advantages.read())].some(Number.isNaN)).toBe(false);
  });
  test("of an id is told by the read of what it spoilt, with the op's name", async () => {
    const { logp } = ops.logprob(Tensor.from(new Float32Array(8), [2, 4], on), i32(1, 4), { temperature: 1 });
    const error = await failure(() => logp.read());
    expect(error).toBeInstanceOf(RangeError);
    expect(error.code).toBe("ID");
    expect(error.message).toContain("logprob");
    const values = await trusted(logp);
    expect(values[1]).toBeNaN();
  });
  test("is that of its op's results since the last read and of what was computed from them; others are good", async () => {
    const logits = Tensor.from(new Float32Array(8), [2, 4], on);
    const early = ops.logprob(logits, i32(1, 2), { temperature: 1 }).logp;
    await early.read();
    const bad = ops.logprob(logits, i32(1, 4), { temperature: 1 }).logp;
    const { advantages } = ops.gae(f32(1, 2, 3), f32(1, 2, 3), i32(0, 5, 3), { gamma: 1, lambda: 1 });
    const [doubled, mixed, good] = [ops.scale(bad, 2), ops.add(bad, early), ops.scale(early, 2)];
    expect([...(await good.read())].some(Number.isNaN)).toBe(false);
    expect([...(await early.read())].some(Number.isNaN)).toBe(false);
    for (const spoilt of [bad, doubled, mixed])
      expect((await failure(() => spoilt.read())).message).toContain("logprob");
    expect((await failure(() => advantages.read())).message).toContain("gae");
    doubled.write(Float32Array.of(1, 2));
    run("scale", { x: early, factor: 0, shift: 7, y: mixed });
    expect([[...(await doubled.read())], [...(await mixed.read())]]).toEqual([
      [1, 2],
      [7, 7],
    ]);
  });
});

test("outputs that begin anywhere are written as others are", async () => {
  const shifted = (shape: number[], from: Device, data?: Float32Array) => {
    const size = shape.reduce((a, b) => a * b, 1);
    const whole = Tensor.from(
      Float32Array.from({ length: size + 1 }, (_, i) => data?.[i - 1] ?? 0),
      [size + 1],
      from,
    );
    return whole.rows(1, size + 1).reshape(shape);
  };
  const random = new Random("anywhere");
  const numbers = (...shape: number[]) =>
    Tensor.from(
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.normal()),
      shape,
      on,
    );
  const narrow = (...shape: number[]) =>
    Tensor.from(
      Uint16Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 0x3f00 + random.below(256)),
      shape,
      on,
    );
  const cases: [string, Record<string, Tensor | number | string>, string[]][] = [
    [
      "logprobGrad",
      {
        logits: numbers(3, 64),
        y: i32(1, 2, 3),
        logp: numbers(3),
        lse: numbers(3),
        entropy: numbers(3),
        dlogp: numbers(3),
        temperature: 1,
      },
      ["dlogits"],
    ],
    ["linear", { x: narrow(5, 16), weight: narrow(64, 16) }, ["y"]],
    [
      "policyLoss",
      {
        logp: numbers(9),
        oldLogp: numbers(9),
        advantages: numbers(9),
        entropy: numbers(9),
        cuSeqlens: i32(0, 4, 9),
        objective: "clipped-ratio",
        clipRatioLow: 0.2,
        clipRatioHigh: 0.2,
        clipRatioC: Infinity,
        logRatioClamp: 20,
        aggregation: "token-mean",
        denominator: 9,
        klCoef: 0,
        estimator: "k3",
        entropyCoef: 0.1,
        scale: 1,
      },
      ["dlogp", "dentropy"],
    ],
  ];
  for (const [op, inputs, outputs] of cases) {
    const stats = () => (op === "policyLoss" ? { stats: true, dentropy: true } : {});
    const wanted = run(op, { ...inputs, ...stats() });
    const given = Object.fromEntries(outputs.map((name) => [name, shifted([...wanted[name].shape], on)]));
    run(op, { ...inputs, ...stats(), ...given });
    for (const name of outputs) expect(await given[name].read()).toEqual(await wanted[name].read());
  }
});

test("a GPU whose blocks have less shared memory computes a head at bf16, and names what does not fit", async () => {
  await using small = await device("cuda", { ordinal: 86 });
  await holdToReference(
    small,
    truths.find(({ op }) => op === "linearLogprob")!,
    true,
  );
  const x = Tensor.from(new Float32Array(256), [1, 1, 256], small);
  const o = ops.attention(x, x, x, Int32Array.of(0, 1));
  const { dq } = run("attentionGrad", {
    dO: x,
    q: x,
    k: x,
    v: x,
    o,
    lse: Tensor.from(new Float32Array(1), [1, 1], small),
    cuSeqlens: Int32Array.of(0, 1),
    scale: 1,
  });
  const error = await failure(() => dq.read());
  expect(error.message).toMatch(/^attention.*needs \d+ bytes of shared memory, a block of this GPU has 101376/);
});

test("the value loss of no sequences is 0", async () => {
  const { loss } = ops.valueLoss(f32(), f32(), { cuSeqlens: Int32Array.of(0), denominator: 1 });
  expect(await loss.read()).toEqual(Float32Array.of(0));
});

test("an op that the device lacks is refused by name", async () => {
  const missing = [...specs.keys()].find((op) => !on.has(op))!;
  expect(missing).toBeDefined();
  const error = await failure(() => on.call(specs.get(missing)!, []));
  expect(error).toBeInstanceOf(TypeError);
  expect(error.code).toBe("OP");
  expect(error.message).toContain(missing);
  expect(error.message).toContain("cuda");
});

test("the list of ops says what the device has, and at which dtypes", () => {
  const cuda = Object.fromEntries(opList().map((op) => [op.name, op.cuda]));
  expect(cuda).toMatchObject({ gae: ["f32"], logprob: ["f32", "bf16"], pack: [] });
});

test("bf16 is refused where the op or the device does not take it", async () => {
  const half = Tensor.from(Uint16Array.of(0x3f80, 0x4000), [2], on);
  expect(await half.read()).toEqual(Uint16Array.of(0x3f80, 0x4000));
  const error = await failure(() => ops.add(half, half));
  expect(error.code).toBe("DTYPE");
  expect(error.message).toContain("bf16");
  await using cpu = await device("cpu", { threads: 1 });
  const there = await failure(() =>
    ops.logprob(Tensor.from(new Uint16Array(8), [2, 4], cpu), Int32Array.of(1, 2), { temperature: 1 }),
  );
  expect(there.code).toBe("DTYPE");
  expect(there.message).toContain("logits");
});

test("memory is the device's: it is reused, counted and freed", async () => {
  const { current } = on.memory();
  const x = Tensor.empty([1000], "f32", on);
  expect(on.memory().current).toBeGreaterThanOrEqual(current + 4000);
  x.dispose();
  expect(on.memory().current).toBe(current);
  expect(on.memory().held).toBeGreaterThanOrEqual(current + 4000);
  const [address, again] = [on.allocate(1000), on.allocate(1000)];
  on.release(address);
  expect(on.allocate(1000)).toBe(address);
  for (const one of [address, again]) on.release(one);
  await expect(failure(() => on.allocate(2 ** 48))).resolves.toMatchObject({
    code: "MEMORY",
    message: `out of memory: ${2 ** 48} bytes wanted`,
  });
});
