// Holds a device to the truths of the ops: the same table for every device.
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { expect } from "@jest/globals";
import { specs, type Dtype } from "../lib/device/ops.js";
import { ops, Parameter, Tape, Tensor, type CodedError, type Device } from "../lib/index.js";
import { fromHalf, toHalf } from "../lib/tensor/half.js";
import { run } from "../lib/tensor/op.js";
import { Random, seed } from "./random.js";
import { isNumbers, largest, widen, type Case, type Numbers, type Truth } from "./truth.js";

/** Every truth of test/ops. */
export async function allTruths(): Promise<Truth[]> {
  const folder = join(dirname(fileURLToPath(import.meta.url)), "ops");
  const truths: Truth[] = [];
  for (const file of readdirSync(folder)
    .filter((name) => name.endsWith(".js"))
    .sort()) {
    const exports = (await import(pathToFileURL(join(folder, file)).href)) as Record<string, Truth>;
    truths.push(...Object.values(exports).filter((entry) => typeof entry === "object" && "reference" in entry));
  }
  return truths;
}

/** Fresh random cases of an op, then its extreme ones: the same for every device of a run. */
export function casesOf(entry: Truth): Case[] {
  const random = new Random(entry.op);
  return [...entry.draw(random), ...(entry.extremes?.(random) ?? [])];
}

export type Outputs = Record<string, Float32Array | Float64Array | Int32Array | Uint16Array>;

// bf16: the upper half of the nearest f32, ties to even
const brain = (data: ArrayLike<number>) => {
  const words = new Uint32Array(Float32Array.from(data).buffer);
  return Uint16Array.from(words, (word) =>
    (word & 0x7fffffff) > 0x7f800000 ? 0x7fff : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16,
  );
};
const numbers = (data: Uint16Array) => new Float32Array(Uint32Array.from(data, (half) => half << 16).buffer);
// within the range of f16, but for the logits that are absent
const bounded = (data: ArrayLike<number>) =>
  Float32Array.from(data, (x) => (x <= -1e30 ? -Infinity : Math.max(-65504, Math.min(65504, x))));

/** The arguments that a device takes in 16 bits, each by itself or all together. */
function halves(on: Device, op: string): Map<string, Dtype> {
  const { arguments: all } = specs.get(op)!;
  const alone = all.flatMap((a): [string, Dtype][] => (on.halfDtype(op, a) ? [[a.name, on.halfDtype(op, a)!]] : []));
  return new Map(alone.length > 0 ? alone : all.filter((a) => a.bf16Together).map(({ name }) => [name, "bf16"]));
}

/** A case whose inputs that an op takes in 16 bits are representable in them. */
export function narrowed(on: Device, entry: Truth, inputs: Case): Case {
  const taken = halves(on, entry.op);
  const narrow = ([name, value]: [string, Case[string]]) => {
    if (!isNumbers(value) || !taken.has(name)) return [name, value];
    return [
      name,
      {
        ...value,
        data: taken.get(name) === "f16" ? fromHalf(toHalf(bounded(value.data))) : numbers(brain(value.data)),
      },
    ];
  };
  return Object.fromEntries(Object.entries(inputs).map(narrow)) as Case;
}

/** The outputs of the op; with `narrow`, inputs go in in 16 bits where they are taken so. */
export async function runOn(on: Device, entry: Truth, inputs: Case, narrow = false): Promise<Outputs> {
  const args: Record<string, Tensor | number | string | boolean | undefined> = {};
  const taken = new Set(specs.get(entry.op)!.arguments.map(({ name }) => name)); // a case may say more than the op takes: a size
  const half = halves(on, entry.op);
  for (const [name, value] of Object.entries(inputs))
    if (!isNumbers(value)) {
      if (taken.has(name)) args[name] = value;
    } else if (taken.has(name)) {
      const dtype = narrow ? half.get(name) : undefined;
      args[name] =
        dtype === "f16"
          ? Tensor.from(value.data, value.shape, on, dtype)
          : Tensor.from(dtype ? brain(value.data) : value.data, value.shape, on);
    }
  if (!Object.values(args).some((value) => value instanceof Tensor)) {
    const out = specs.get(entry.op)!.arguments.find((a) => a.kind === "out")!;
    args[out.name] = Tensor.empty([entry.sizes!(inputs).n], "f32", on);
  }
  const outputs = run(entry.op, args, undefined, entry.sizes?.(inputs));
  const result: Outputs = {};
  for (const [name, tensor] of Object.entries(outputs)) result[name] = await tensor.read();
  for (const tensor of [...Object.values(args), ...Object.values(outputs)])
    if (tensor instanceof Tensor) tensor.dispose();
  return result;
}

export const sizes = (inputs: Case) =>
  Object.entries(inputs)
    .map(([name, value]) => `${name} ${isNumbers(value) ? `[${value.shape}]` : String(value)}`)
    .join(", ");

/**
 * Plain f32 code whose every rounding errs by up to as much again, at random (Parker, "Monte Carlo
 * Arithmetic", 1997): what another order of the same sums may be off by, which the few values of a
 * small case need not show in one.
 */
function randomly(random: Random): (x: number) => number {
  let state = random.below(2 ** 32) | 0;
  return (x) => fround(x * (1 + (state = (imul(state, 1664525) + 1013904223) | 0) * 2 ** -55));
}
const { fround, imul } = Math; // a global of a test's context is slow to reach

// |got - f64| <= 2 max |plain f32 - f64| + ulps of the largest value, and half an ulp of bf16 of it
// for each rounding to that
function expectNear(
  got: ArrayLike<number>,
  wanted: ArrayLike<number>,
  plain: ArrayLike<number>[],
  ulps: number,
  what: string,
  natural = 0,
  roundings = 0,
): void {
  expect(`${what}: length ${got.length}`).toBe(`${what}: length ${wanted.length}`);
  const size = Math.max(natural, largest(wanted));
  const error = Math.max(...plain.map((values) => largest(Array.from(values, (x, i) => x - wanted[i]))));
  const allowed =
    2 * error +
    ulps * Math.max(size * 2 ** -23, 2 ** -149) +
    (size > 0 ? roundings * 2 ** (Math.floor(Math.log2(size)) - 8) : 0);
  for (let i = 0; i < wanted.length; i++) {
    const near =
      got[i] === wanted[i] || Object.is(got[i], Math.fround(wanted[i])) || Math.abs(got[i] - wanted[i]) <= allowed;
    if (!near || (Number.isNaN(got[i]) && !Number.isNaN(wanted[i])))
      throw new Error(`${what}[${i}] is ${got[i]}, wanted ${wanted[i]} within ${allowed} (seed ${seed})`);
  }
}

export function expectBits(got: Outputs, wanted: Outputs, what: string): void {
  for (const name of Object.keys(wanted)) {
    if (Buffer.from(got[name].buffer).equals(Buffer.from(wanted[name].buffer))) continue;
    const i = got[name].findIndex((x, i) => !Object.is(x, wanted[name][i])); // every NaN is one
    if (i >= 0 || got[name].length < wanted[name].length)
      throw new Error(`${what}: ${name}[${i}] is ${got[name][i]}, wanted ${wanted[name][i]} (seed ${seed})`);
  }
}

/** The error of a public call: every one has a code. */
export async function failure(work: () => unknown): Promise<CodedError> {
  try {
    await work();
  } catch (error) {
    expect(typeof (error as CodedError).code).toBe("string");
    return error as CodedError;
  }
  throw new Error("nothing was thrown");
}

/**
 * The op on the device against its f64 reference, within the error of plain f32 code.
 * @param bf16    on inputs that are bf16, or what the device has
 * @param between outputs of a product one of whose operands the op has computed, and rounded to bf16
 */
export async function holdToReference(
  on: Device,
  entry: Truth,
  bf16 = false,
  between: readonly string[] = [],
): Promise<void> {
  const random = new Random(`${entry.op} rounds`);
  for (const drawn of casesOf(entry)) {
    const inputs = bf16 ? narrowed(on, entry, drawn) : drawn;
    const got = await runOn(on, entry, inputs, bf16);
    const wanted = entry.reference(widen(inputs), (x) => x);
    const plain = [fround, randomly(random), randomly(random)].map((f) => entry.reference(widen(inputs), f));
    const natural = typeof entry.natural === "function" ? entry.natural(widen(inputs)) : entry.natural;
    const left = Object.keys(got).filter(
      (output) =>
        !(output in wanted) && !entry.bitsOnly?.includes(output) && !(entry.gradients && output in entry.gradients),
    );
    expect(left).toEqual([]);
    for (const output of Object.keys(wanted))
      if (output in got) {
        const value = got[output];
        const narrow = value instanceof Uint16Array;
        const roundings = Number(narrow) + 2 * Number(between.includes(output)); // the terms of a product may be larger than their sum
        const what = `${entry.op} (${sizes(inputs)}): ${output}`;
        const near = plain.map((one) => one[output]);
        expectNear(
          narrow ? numbers(value) : value,
          wanted[output],
          near,
          entry.ulp ?? 2,
          what,
          natural?.[output],
          roundings,
        );
      }
  }
}

/** The preference loss of P pairs over M scores: a score's gradient is that of all its pairs, however many they are. */
export async function holdToManyPairs(on: Device, P: number, M: number): Promise<void> {
  const random = new Random(`${P} pairs over ${M} scores`);
  const draw = () => Int32Array.from({ length: P }, () => random.below(M));
  const scores = Float32Array.from({ length: M }, () => random.normal());
  const [chosen, rejected] = [draw(), draw()];
  const gradients = new Float64Array(M);
  const size = new Float64Array(M); // of all that is added to a score
  let loss = 0;
  for (let i = 0; i < P; i++) {
    const z = scores[chosen[i]] - scores[rejected[i]];
    loss += Math.log1p(Math.exp(-z)) / P;
    const slope = -1 / (1 + Math.exp(z)) / P;
    gradients[chosen[i]] += slope;
    gradients[rejected[i]] -= slope;
    size[chosen[i]] -= slope;
    size[rejected[i]] -= slope;
  }
  const stats = Tensor.from(new Float64Array(8), [8], on);
  const made = run("preferenceLoss", {
    scores: Tensor.from(scores, [M], on),
    chosen: Tensor.from(chosen, [P], on),
    rejected: Tensor.from(rejected, [P], on),
    form: "bradley-terry",
    beta: 1,
    labelSmoothing: 0,
    centerCoef: 0,
    denominator: P,
    scale: 1,
    stats,
  });
  expect(Math.abs((await made.loss.read())[0] - loss)).toBeLessThan(1e-5);
  const dscores = await made.dscores.read();
  const off = gradients.reduce(
    (worst, wanted, m) => Math.max(worst, Math.abs(dscores[m] - wanted) / (size[m] || 1)),
    0,
  );
  expect(off).toBeLessThan(3e-5);
  expect((await stats.read())[5]).toBe(P);
}

/**
 * A term of the policy's loss whose coefficient is 0, given to be watched, spoils neither loss nor
 * gradient; its statistic tells what it is.
 */
export async function holdToAbsentTerms(on: Device): Promise<void> {
  const f32 = (...values: number[]) => Tensor.from(Float32Array.from(values), [values.length], on);
  const given = {
    logp: f32(-1, -2),
    oldLogp: f32(-1.1, -2),
    advantages: f32(1, -1),
    cuSeqlens: Tensor.from(Int32Array.of(0, 2), [2], on),
  };
  const options = {
    objective: "clipped-ratio",
    clipRatioLow: 0.2,
    clipRatioHigh: 0.2,
    clipRatioC: Infinity,
    logRatioClamp: 20,
    aggregation: "token-mean",
  };
  const call = async (more: Parameters<typeof run>[1]) => {
    const all = {
      ...given,
      ...options,
      denominator: 2,
      klCoef: 0,
      entropyCoef: 0,
      scale: 1,
      estimator: "k1",
      stats: true,
      ...more,
    };
    const { loss, dlogp, stats } = run("policyLoss", all);
    return { made: [...(await loss.read()), ...(await dlogp.read())], stats: await stats.read() };
  };
  const wanted = await call({});
  for (const estimator of ["k1", "abs", "k2"])
    for (const value of [-Infinity, NaN]) {
      const { made, stats } = await call({ refLogp: f32(value, -2), entropy: f32(1, -value), estimator });
      expect(made).toEqual(wanted.made);
      expect(stats[0]).toBe(wanted.stats[0]);
      expect([stats[2], stats[3]].some(Number.isFinite)).toBe(false);
    }
}

// d(loss)/d(input[i]) of the f64 reference by central differences
function difference(
  entry: Truth,
  inputs: Case,
  name: string,
  i: number,
  loss: (outputs: Record<string, ArrayLike<number>>) => number,
  step = 1e-5,
): number {
  const at = (delta: number) => {
    const wide = widen(inputs);
    wide[name][i] += delta;
    return loss(entry.reference(wide, (x) => x));
  };
  const h = step * Math.max(1, Math.abs((inputs[name] as Numbers).data[i]));
  return (at(h) - at(-h)) / (2 * h);
}

function expectGradient(
  got: ArrayLike<number>,
  inputs: Case,
  name: string,
  what: string,
  wanted: (i: number) => number,
  random: Random,
  most = 24,
): void {
  const picks = Array.from({ length: Math.min(most, got.length) }, () => random.below(got.length));
  const values = picks.map(wanted);
  const scale = Math.max(...values.map(Math.abs), 1e-3);
  picks.forEach((i, k) => {
    if (!(Math.abs(got[i] - values[k]) <= 2e-3 * Math.abs(values[k]) + 5e-4 * scale))
      throw new Error(
        `${what}: d${name}[${i}] is ${got[i]}, the difference quotient is ${values[k]} (${sizes(inputs)}, seed ${seed})`,
      );
  });
}

/**
 * The gradient of the public function against central differences of the reference, at `most`
 * places of each input; and that of each input alone, the others frozen, against its bits beside
 * theirs.
 */
export async function holdToGradient(
  on: Device,
  entry: Truth,
  random = new Random(entry.op),
  most = 12,
): Promise<void> {
  const { wrt, outputs, call } = entry.gradient!;
  for (const inputs of entry.draw(random)) {
    if (wrt.some((name) => isNumbers(inputs[name]) && inputs[name].data.length === 0)) continue;
    const args: Record<string, unknown> = {};
    const parameters = new Map<string, Parameter>();
    for (const [name, value] of Object.entries(inputs)) {
      if (!isNumbers(value)) args[name] = value;
      else {
        const tensor = Tensor.from(value.data, value.shape, on);
        if (wrt.includes(name)) parameters.set(name, new Parameter(name, tensor));
        args[name] = parameters.get(name) ?? tensor;
      }
    }
    const weights: Record<string, Float32Array> = {};
    const gradients = async (learning: string[]) => {
      for (const [name, parameter] of parameters) {
        parameter.zeroGrad();
        parameter.trainable = learning.includes(name);
      }
      const tape = new Tape();
      const losses = tape.record(() => {
        const made = call(args as Parameters<typeof call>[0]);
        return outputs.map((output) => {
          weights[output] ??= Float32Array.from({ length: made[output].size }, () => random.normal());
          return ops.sum(ops.mul(made[output], Tensor.from(weights[output], made[output].shape, on)));
        });
      });
      tape.backward(...losses);
      return Promise.all(learning.map((name) => parameters.get(name)!.gradient()!.read()));
    };
    const names = [...parameters.keys()];
    const all = await gradients(names);
    for (const [i, name] of names.entries()) {
      const loss = (result: Record<string, ArrayLike<number>>) =>
        outputs.reduce((total, output) => total + weights[output].reduce((s, w, j) => s + w * result[output][j], 0), 0);
      expectGradient(all[i], inputs, name, entry.op, (j) => difference(entry, inputs, name, j, loss), random, most);
      const [alone] = await gradients([name]);
      if (!Buffer.from(alone.buffer).equals(Buffer.from(all[i].buffer)))
        throw new Error(`${entry.op}: d${name} alone has other bits (${sizes(inputs)}, seed ${seed})`);
    }
  }
}

/** The gradients that a loss returns against central differences of the reference. */
export async function holdToLossGradients(on: Device, entry: Truth, random = new Random(entry.op)): Promise<void> {
  for (const inputs of entry.draw(random)) {
    const got = await runOn(on, entry, inputs);
    for (const [output, name] of Object.entries(entry.gradients!)) {
      if (!(output in got) || !isNumbers(inputs[name]) || got[output].length === 0) continue;
      expectGradient(
        got[output],
        inputs,
        name,
        entry.op,
        (i) => difference(entry, inputs, name, i, (result) => result.loss[0], 1e-7),
        random,
      ); // a kink is seldom so near
    }
  }
}

/**
 * Log-probs of finite logits, at any temperature that is taken: differences are scaled, so nothing
 * overflows that is not 0 in the end.
 */
export async function holdToTemperatures(on: Device): Promise<void> {
  const random = new Random("temperatures");
  const [M, V] = [4, 530];
  for (const temperature of [2 ** -127, 1e-30, 1e-6, 7, 1e30, 2 ** 120])
    for (const scale of [1, 1e20, 1e29]) {
      const logits = Float32Array.from({ length: M * V }, () => scale * random.uniform(-1, 1));
      const y = Int32Array.from({ length: M }, () => random.below(V));
      const { logp, entropy } = ops.logprob(Tensor.from(logits, [M, V], on), y, { temperature });
      const [found, entropies] = [await logp.read(), await entropy.read()];
      for (let i = 0; i < M; i++) {
        const row = logits.subarray(i * V, (i + 1) * V);
        const most = row.reduce((a, b) => Math.max(a, b));
        const scaled = Array.from(row, (x) => (x - most) * Math.fround(1 / temperature));
        const exact = scaled[y[i]] - Math.log(scaled.reduce((sum, d) => sum + Math.exp(d), 0));
        const what = `logp at temperature ${temperature} of logits up to ${scale}`;
        if (exact < -1e29) expect([what, found[i] < -9e28]).toEqual([what, true]); // which may be -inf
        else expect([what, Math.abs(found[i] - exact) <= 1e-5 * Math.abs(exact) + 1e-37]).toEqual([what, true]);
        expect(entropies[i]).toBeGreaterThanOrEqual(0);
      }
      for (const tensor of [logp, entropy]) tensor.dispose();
    }
}
