import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";
import { device, Tensor, type Device } from "../lib/index.js";
import { groupAdvantages, type GroupNormalisation } from "../lib/rlhf/policy/advantages.js";
import { klController } from "../lib/rlhf/reward/shape.js";
import { learningRateAt, type Schedule } from "../lib/rlhf/learn/optimizer.js";
import { run } from "../lib/tensor/op.js";

// The losses of verl, TRL and OpenRLHF as torch computed them: test/fixtures/losses.json, made by make.py beside it.

type Listed = number | number[] | { shape: number[]; data: number[] };
interface Pin {
  name: string;
  op: string;
  source: string;
  options: Record<string, number | string>;
  inputs: Record<string, Listed>;
  /** Outputs in double precision. */
  f64: Record<string, Listed>;
  /** Outputs in single precision. */
  f32: Record<string, Listed>;
}

const { cases } = JSON.parse(readFileSync(join(root, "test/fixtures/losses.json"), "utf8")) as { cases: Pin[] };
const WHOLE = new Set(["y", "rows", "mask", "cuSeqlens", "chosen", "rejected"]);
const data = (value: Listed) => (typeof value === "number" ? [value] : Array.isArray(value) ? value : value.data);
const shape = (value: Listed) =>
  typeof value === "number" ? [1] : Array.isArray(value) ? [value.length] : value.shape;

let on: Device;
beforeAll(async () => {
  on = await device("cpu");
});
afterAll(() => on.close());

type Arguments = Parameters<typeof run>[1];
type Outputs = Record<string, Tensor>;

const zeros = (size: readonly number[], dtype: "f32" | "f64" = "f32") => {
  const length = size.reduce((a, b) => a * b, 1);
  return Tensor.from(dtype === "f64" ? new Float64Array(length) : new Float32Array(length), size, on);
};

function upload(name: string, value: Listed): Tensor {
  return Tensor.from(WHOLE.has(name) ? Int32Array.from(data(value)) : Float32Array.from(data(value)), shape(value), on);
}

function uploaded({ inputs }: Pin): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(inputs).map(([name, value]) => [name, upload(name, value)]));
}

const POLICY = {
  objective: "clipped-ratio",
  clipRatioC: Infinity,
  logRatioClamp: Infinity,
  klCoef: 0,
  estimator: "k3",
  entropyCoef: 0,
  scale: 1,
};
const PREFERENCE = { beta: 1, labelSmoothing: 0, centerCoef: 0, scale: 1 };

// The call of each op with everything that a case leaves out; what it returns is compared by name.
const calls: Record<string, (inputs: Record<string, Tensor>, options: Arguments) => Outputs> = {
  policyLoss(inputs, options) {
    const stats = zeros([12], "f64");
    const dentropy = inputs.entropy !== undefined;
    return { ...run("policyLoss", { ...POLICY, ...inputs, ...options, dentropy, stats }), stats };
  },
  valueLoss: (inputs, options) =>
    run("valueLoss", { clipRange: Infinity, scale: 1, ...inputs, ...options, stats: zeros([8], "f64") }),
  gae: (inputs, options) => run("gae", { ...inputs, ...options }),
  whiten: (inputs, options) => run("whiten", { ...inputs, ...options }),
  tokenRewards: (inputs, options) => run("tokenRewards", { ...inputs, ...options }),
  preferenceLoss: (inputs, options) =>
    run("preferenceLoss", { ...PREFERENCE, ...inputs, ...options, stats: zeros([8], "f64") }),
  logprob({ dlogp, dentropy, ...inputs }, options) {
    const outputs = run("logprob", { ...inputs, ...options });
    return { ...outputs, ...run("logprobGrad", { ...inputs, ...outputs, dlogp, dentropy, ...options }) };
  },
  linearLogprob({ dlogp, dentropy, ...inputs }, options) {
    const outputs = run("linearLogprob", { ...inputs, ...options });
    const dweight = zeros(inputs.weight.shape);
    const gradients = run("linearLogprobGrad", {
      ...inputs,
      ...outputs,
      dlogp,
      dentropy,
      ...options,
      dh: true,
      dweight,
    });
    return { ...outputs, ...gradients, dweight };
  },
  linearPolicyLoss(inputs, options) {
    const made = { stats: zeros([12], "f64"), dweight: zeros(inputs.weight.shape) };
    const { entropy, ...outputs } = run("linearPolicyLoss", { ...POLICY, ...inputs, ...options, ...made, dh: true });
    return { ...outputs, entropyPerToken: entropy, ...made };
  },
  fullKl: (inputs, options) => run("fullKl", { ...inputs, ...options }),
};

/** Is within twice torch's own f32 error and 4 ulp of the largest value; NaN never is. */
function expectPinned(got: ArrayLike<number>, { f64, f32 }: Pin, output: string, which?: readonly number[]): void {
  const wanted = data(f64[output]);
  const naive = data(f32[output]);
  expect(got).toHaveLength(wanted.length);
  const places = which ?? wanted.map((_, i) => i);
  const error = Math.max(...places.map((i) => Math.abs(naive[i] - wanted[i])));
  const allowed = 2 * error + 4 * 2 ** -23 * Math.max(...places.map((i) => Math.abs(wanted[i])));
  for (const i of places)
    if (!(Math.abs(got[i] - wanted[i]) <= allowed))
      throw new Error(`${output}[${i}] is ${got[i]}, the source's is ${wanted[i]}, allowed ${allowed}`);
}

/** What a masked slot holds is not part of the contract, but for gradients. */
function counted({ inputs, op }: Pin, output: string): number[] | undefined {
  if (!inputs.mask || output.startsWith("d") || (op !== "gae" && op !== "whiten")) return undefined;
  return data(inputs.mask).flatMap((kept, i) => (kept ? [i] : []));
}

const PER_TOKEN_STATS = ["entropy", "clipped", "clippedByC", "k1Old", "k3Old", "ratio"];

test.each(cases.filter(({ op }) => op in calls).map((pin) => [pin.name, pin] as const))("%s", async (_, pin) => {
  const { klSource: _made, ...options } = pin.options;
  const outputs = calls[pin.op](uploaded(pin), options);
  const compared = Object.keys(outputs).filter((output) => output in pin.f64);
  expect(compared.length).toBeGreaterThan(0);
  for (const output of compared) expectPinned(await outputs[output].read(), pin, output, counted(pin, output));
  if (pin.op !== "policyLoss") return;
  const stats = await outputs.stats.read();
  for (const [i, stat] of ["policyLoss", "klLoss"].entries())
    if (stat in pin.f64) expectPinned([stats[i + 1]], pin, stat);
  const tokens = stats[9];
  if ("entropy" in pin.f64 && pin.options.aggregation === "token-mean")
    expectPinned([stats[3] / Number(pin.options.denominator)], pin, "entropy");
  for (const [i, stat] of PER_TOKEN_STATS.entries()) {
    const mean = `${stat}TokenMean`; // whatever the aggregation
    if (mean in pin.f64) expectPinned([stats[i + 3] / tokens], pin, mean);
  }
});

// every input that has one number per token
const PER_TOKEN = [
  "logp",
  "oldLogp",
  "advantages",
  "refLogp",
  "entropy",
  "importance",
  "values",
  "oldValues",
  "returns",
  "rewards",
  "x",
];
const masked = cases.filter(
  ({ op, inputs }) => op in calls && op !== "linearPolicyLoss" && inputs.mask && data(inputs.mask).includes(0),
);

test.each(masked.map((pin) => [pin.name, pin] as const))(
  "what a masked slot holds changes no bit: %s",
  async (_, pin) => {
    const { klSource: _made, ...options } = pin.options;
    const mask = data(pin.inputs.mask);
    const read = async (fill?: number) => {
      const inputs = Object.entries(pin.inputs).map(([name, value]): [string, Listed] =>
        fill === undefined || !PER_TOKEN.includes(name)
          ? [name, value]
          : [name, data(value).map((x, i) => (mask[i] ? x : fill))],
      );
      const outputs = calls[pin.op](uploaded({ ...pin, inputs: Object.fromEntries(inputs) }), options);
      const bits: Record<string, unknown> = {};
      for (const [name, tensor] of Object.entries(outputs)) {
        const values = Array.from(await tensor.read());
        bits[name] = counted(pin, name)?.map((i) => values[i]) ?? values;
      }
      return bits;
    };
    const wanted = await read();
    for (const fill of [NaN, Infinity, -Infinity, 1e30]) expect(await read(fill)).toEqual(wanted);
  },
);

test.each(cases.filter(({ op }) => op === "gae").map((pin) => [pin.name, pin] as const))(
  "padded: %s",
  async (_, pin) => {
    const { cuSeqlens, ...packed } = pin.inputs;
    const bounds = data(cuSeqlens);
    const lengths = bounds.slice(1).map((end, b) => end - bounds[b]);
    const width = Math.max(...lengths) + 1;
    const places = lengths.flatMap((length, b) => Array.from({ length }, (_, t) => b * width + t));
    const padded = (name: string, value: Listed) => {
      const out = Array.from({ length: lengths.length * width }, () => (name === "mask" ? 0 : NaN));
      data(value).forEach((x, i) => (out[places[i]] = x));
      return upload(name, { shape: [lengths.length, width], data: out });
    };
    const mask = packed.mask ?? data(packed.rewards).map(() => 1);
    const inputs = Object.entries({ ...packed, mask }).map(([name, value]) => [name, padded(name, value)]);
    const outputs = run("gaePadded", { ...(Object.fromEntries(inputs) as Record<string, Tensor>), ...pin.options });
    for (const output of ["advantages", "returns"]) {
      const got = await outputs[output].read();
      expectPinned(
        places.map((place) => got[place]),
        pin,
        output,
        counted(pin, output),
      );
    }
  },
);

test.each(cases.filter(({ op }) => op === "adamw").map((pin) => [pin.name, pin] as const))("%s", async (_, pin) => {
  const { weight, grads } = pin.inputs;
  const size = shape(weight);
  const [count] = shape(grads);
  const state = { weight: upload("weight", weight), m: zeros(size), v: zeros(size) };
  const weights: number[] = [];
  const norms: number[] = [];
  for (let step = 1; step <= count; step++) {
    const grad = Tensor.from(Float32Array.from(data(grads).slice((step - 1) * size[0], step * size[0])), size, on);
    const normSquared = zeros([1], "f64");
    run("normSquared", { x: grad, total: normSquared });
    run("adamw", { ...state, grad, normSquared, ...pin.options, step });
    norms.push(Math.sqrt((await normSquared.read())[0]));
    weights.push(...(await state.weight.read()));
  }
  expectPinned(norms, pin, "norms");
  expectPinned(weights, pin, "weights");
});

test.each(cases.filter(({ op }) => op === "groupAdvantages").map((pin) => [pin.name, pin] as const))("%s", (_, pin) => {
  const places = new Map<number, number[]>();
  data(pin.inputs.group).forEach((group, i) => places.set(group, [...(places.get(group) ?? []), i]));
  const scores = Float32Array.from(data(pin.inputs.scores));
  const { advantages } = groupAdvantages(scores, [...places.values()], pin.options.form as GroupNormalisation);
  expectPinned(advantages, pin, "advantages");
});

test("GRPO is pinned to each of its hosts, with every estimator of the KL that it has", () => {
  const pinned = (op: string, name: string) => cases.filter((pin) => pin.op === op && pin.name.startsWith(name));
  for (const host of ["trl", "verl", "openrlhf"])
    expect(pinned("groupAdvantages", `group advantages, ${host}`).length).toBeGreaterThan(1);
  const estimators = (host: string) =>
    new Set(pinned("policyLoss", `grpo loss, ${host},`).map(({ options }) => options.estimator));
  expect(estimators("trl")).toEqual(new Set(["k3"]));
  for (const host of ["verl", "openrlhf"]) expect(estimators(host)).toEqual(new Set(["k1", "k2", "k3"]));
});

// Our warm-up ends where theirs does, but its first step already moves: step s has their factor of s + 1.
const schedules = cases.filter(({ op, options }) => op === "schedule" && !options.minRatio);
test.each(schedules.map((pin) => [pin.name, pin] as const))("%s", (_, { f64, options }) => {
  const {
    shape: schedule,
    warmup,
    total: steps,
  } = options as { shape: Schedule["schedule"]; warmup: number; total: number };
  const factors = data(f64.factor);
  for (let step = 0; step < steps; step++) {
    const wanted = step < warmup ? factors[step + 1] : factors[step];
    expect(learningRateAt(step, { learningRate: 3e-4, schedule, warmup, steps })).toBeCloseTo(3e-4 * wanted, 15);
  }
});

test("the adaptive KL controller", () => {
  const pin = cases.find(({ op }) => op === "adaptiveKl")!;
  const { klCoef, target: klTarget, horizon: klHorizon, steps } = pin.options as Record<string, number>;
  const controller = klController({ klCoef, klController: "adaptive", klTarget, klHorizon });
  const coefs = data(pin.inputs.kl).map((kl) => {
    controller.observe(kl, steps);
    return controller.coef;
  });
  coefs.forEach((coef, i) => expect(coef).toBeCloseTo(data(pin.f64.klCoef)[i], 14));
});
