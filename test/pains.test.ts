import { createHash } from "node:crypto";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import {
  device,
  fullKl,
  grpo,
  loadModel,
  ops,
  packEpisodes,
  ppo,
  ranking,
  requestsFor,
  rewardModel,
  saveModel,
  sft,
  Tensor,
  type Device,
  type Completion,
  type GrpoOptions,
  type PpoOptions,
  type Transformer,
} from "../lib/index.js";
import { readSafetensorsFile, writeSafetensors } from "../lib/model/safetensors.js";
import { grpoOptions } from "../lib/rlhf/policy/grpo.js";
import { ppoOptions } from "../lib/rlhf/policy/ppo.js";
import { run } from "../lib/tensor/op.js";
import { holdToAbsentTerms } from "./hold.js";
import { episodes, lively, llama, ppoConfig, weightsOf } from "./models.js";
import { Random, seed } from "./random.js";

// What users of other stacks suffer from, row by row. Masks, modes and formulas are in pins.test,
// splits and resumption in bits.test.

let on: Device;
beforeAll(async () => {
  on = await device("cpu");
});
afterAll(() => on.close());

/** log softmax(x)[y] in f64, the target's own term kept apart. */
function logSoftmax(x: ArrayLike<number>, y: number): number {
  let m = -Infinity;
  for (let j = 0; j < x.length; j++) m = Math.max(m, x[j]);
  let others = 0;
  for (let j = 0; j < x.length; j++) if (j !== y) others += Math.exp(x[j] - m);
  return x[y] === m ? -Math.log1p(others) : x[y] - m - Math.log(others + Math.exp(x[y] - m));
}

test.each([1, 2, 509, 4099, 65537, 2 ** 18])("log-probs keep their digits with a vocabulary of %d", async (V) => {
  const random = new Random(`digits ${V}`);
  const M = 12;
  const logits = new Float32Array(M * V);
  const y = Int32Array.from({ length: M }, () => random.below(V));
  for (let i = 0; i < M; i++) {
    const kind = i % 4; // usual; all far below zero; one confident token; huge
    for (let j = 0; j < V; j++)
      logits[i * V + j] =
        kind === 0
          ? 3 * random.normal()
          : kind === 1
            ? -2e4 + random.normal()
            : kind === 2
              ? -20 - 12 * random.uniform()
              : 1e4 * random.normal();
    if (kind === 2) logits[i * V + y[i]] = 10;
  }
  const { logp } = ops.logprob(Tensor.from(logits, [M, V], on), y);
  const got = await logp.read();
  for (let i = 0; i < M; i++) {
    const wanted = logSoftmax(logits.subarray(i * V, (i + 1) * V), y[i]);
    expect(got[i]).toBeLessThanOrEqual(0);
    if (!(Math.abs(got[i] - wanted) <= 4 * 2 ** -23 * Math.max(Math.abs(wanted), 1)))
      throw new Error(`row ${i}: ${got[i]}, wanted ${wanted} (seed ${seed})`);
  }
});

test("a token that is all but certain has its log-prob to six digits", async () => {
  const V = 1001;
  const logits = new Float32Array(V).fill(Math.log(1e-8 / (V - 1)));
  logits[7] = 0;
  const { logp } = ops.logprob(Tensor.from(logits, [1, V], on), Int32Array.of(7));
  const [got] = await logp.read();
  const wanted = logSoftmax(logits, 7);
  expect(wanted).toBeLessThan(-9e-9);
  expect(Math.abs(got / wanted - 1)).toBeLessThan(1e-6);
});

test("probabilities sum to 1, also with a prime vocabulary and a fused head", async () => {
  const random = new Random("sum");
  const [C, V] = [24, 1031];
  const h = Tensor.from(
    Float32Array.from({ length: C }, () => random.normal()),
    [1, C],
    on,
  );
  const weight = Tensor.from(
    Float32Array.from({ length: V * C }, () => random.normal()),
    [V, C],
    on,
  );
  const { logp } = ops.linearLogprob(
    h,
    weight,
    new Int32Array(V),
    Int32Array.from({ length: V }, (_, j) => j),
  );
  const values = (await logp.read()) as Float32Array;
  expect(Math.abs(values.reduce((total, x) => total + Math.exp(x), 0) - 1)).toBeLessThan(1e-6);
  expect(Math.max(...values)).toBeLessThanOrEqual(0);
});

test("no rows, one row and more than 65,535 rows", async () => {
  const random = new Random("rows");
  for (const M of [0, 1, 70001]) {
    const logits = Float32Array.from({ length: 3 * M }, () => random.normal());
    const { logp } = ops.logprob(
      Tensor.from(logits, [M, 3], on),
      Int32Array.from({ length: M }, (_, i) => i % 3),
    );
    const got = await logp.read();
    expect(got.length).toBe(M);
    for (const i of M > 0 ? [0, M >> 1, M - 1] : [])
      expect(got[i]).toBeCloseTo(logSoftmax(logits.subarray(3 * i, 3 * i + 3), i % 3), 5);
  }
  const { advantages } = ops.gae(
    new Float32Array(70001).fill(1),
    new Float32Array(70001),
    Int32Array.from({ length: 70002 }, (_, i) => i),
  );
  expect((await advantages.read()).every((a) => a === 1)).toBe(true);
});

// ---- every option declares what it touches

/** What both policies' options change. */
const policyObjective = {
  seed: { seed: 4 },
  updates: { updates: 3 },
  epochs: { epochs: 3 },
  minibatches: { minibatches: 1 },
  learningRate: { learningRate: 2e-3 },
  schedule: { schedule: "linear" },
  warmup: { warmup: 3 },
  betas: { betas: [0.8, 0.9] },
  eps: { eps: 1e-3 },
  weightDecay: { weightDecay: 0.5 },
  clipNorm: { clipNorm: 1e-3 },
  maxTokens: { maxTokens: 11 },
  temperature: { temperature: 1.1 },
  topK: { topK: 5 },
  topP: { topP: 0.5 },
  minP: { minP: 0.3 },
  stop: { stop: [1, 2, 3, 4, 5, 6, 7, 8, 9] },
  klCoef: { klCoef: 1 },
  klEstimator: { klEstimator: "k2" },
  clipRatioLow: { clipRatioLow: 0.01 },
  clipRatioHigh: { clipRatioHigh: 0.01 },
  clipRatioC: { clipRatioC: 1.0001 },
  logRatioClamp: { logRatioClamp: 0.001 },
  aggregation: { aggregation: "seq-mean-token-sum" },
  entropyCoef: { entropyCoef: 0.5 },
  rewardNormalise: { rewardNormalise: true },
  rewardClip: { rewardClip: 0.01 },
  missingEosPenalty: { missingEosPenalty: 2 },
  targetKl: { targetKl: 1e-9 },
  weights: { weights: "bf16" },
} as const;
const ppoObjective: Record<string, PpoOptions> = {
  ...policyObjective,
  valueLearningRate: { valueLearningRate: 2e-3 },
  klController: { klController: "fixed" },
  klTarget: { klTarget: 1e6 },
  klHorizon: { klHorizon: 9 },
  gamma: { gamma: 0.8 },
  lambda: { lambda: 0.5 },
  valueClip: { valueClip: Infinity },
  ptxCoef: { ptxCoef: 1 },
  whitenAdvantages: { whitenAdvantages: false },
  whitenRewards: { whitenRewards: true },
};
const grpoObjective: Record<string, GrpoOptions> = { ...policyObjective, normalisation: { normalisation: "verl" } };
const memoryOnly = [{ microBatch: 1 }, { microBatch: 3 }, { recompute: true }];
/** Changes what is run and, by rounding, gradients: a test of its own. */
const otherwise = ["microBatch", "recompute", "sharePrompts", "rewardFailure"];

const hashOf = async (models: Transformer[]) => {
  const hash = createHash("sha256");
  for (const model of models) hash.update(await weightsOf(model));
  return hash.digest("hex");
};

/** The names of the options that change nothing, which must be none. */
async function silent(changes: Record<string, object>, trained: (change: object) => Promise<string>) {
  const plain = await trained({});
  const stopped = await trained({ stop: [1] });
  const names: string[] = [];
  for (const [name, change] of Object.entries(changes)) {
    const isOfEnds = name === "missingEosPenalty"; // all are the same where none ends
    const changed = await trained(isOfEnds ? { ...change, stop: [1] } : change);
    if (changed === (isOfEnds ? stopped : plain)) names.push(name);
  }
  for (const change of memoryOnly) expect(await trained(change)).toBe(plain);
  return names;
}

test("an option of PPO's objective changes the result, an option of memory no bit", async () => {
  expect(Object.keys(ppoOptions.shape).sort()).toEqual([...Object.keys(ppoObjective), ...otherwise].sort());
  const random = new Random("options", 5);
  const prompts = episodes(random, 8).map(({ prompt }, index) => ({ prompt, index, sample: 0 }));
  const mix = episodes(random, 3);
  const trained = async (change: PpoOptions) => {
    const [policy, reference] = [await lively(llama, on), await lively(llama, on, "logits", 2)]; // a KL from the start
    const [reward, critic] = [await lively(llama, on, "score", 3), await lively(llama, on, "score", 3)];
    const models = { policy, reference, reward, critic };
    // steps large enough that every clip has something to clip
    const config = { ...ppoConfig, learningRate: 1e-2, klTarget: 1, ...change };
    for await (const _ of ppo(
      models,
      () => prompts,
      config,
      undefined,
      () => mix,
    ));
    const hash = await hashOf([policy, critic]);
    for (const model of Object.values(models)) model.dispose();
    return hash;
  };
  expect(await silent(ppoObjective, trained)).toEqual([]);
});

test("an option of GRPO's objective changes the result, an option of memory no bit", async () => {
  expect(Object.keys(grpoOptions.shape).sort()).toEqual([...Object.keys(grpoObjective), ...otherwise].sort());
  const random = new Random("options", 5);
  const prompts = requestsFor(
    episodes(random, 4).map(({ prompt }) => prompt),
    3,
  );
  const trained = async (change: GrpoOptions) => {
    const [policy, reference] = [await lively(llama, on), await lively(llama, on, "logits", 2)];
    const reward = await lively(llama, on, "score", 3);
    const { seed, updates, epochs, schedule, maxTokens } = ppoConfig;
    const same = { seed, updates, epochs, schedule, maxTokens, learningRate: 1e-2 };
    for await (const _ of grpo({ policy, reference, reward }, () => prompts, { ...same, ...change }));
    const hash = await hashOf([policy]);
    for (const model of [policy, reference, reward]) model.dispose();
    return hash;
  };
  expect(await silent(grpoObjective, trained)).toEqual([]);
});

test("a failed reward stops PPO and GRPO, or is masked and counted", async () => {
  const [policy, reference, critic] = [
    await lively(llama, on),
    await lively(llama, on, "logits", 2),
    await lively(llama, on, "score"),
  ];
  const requests = requestsFor([[1, 2], [3], [4, 5]], 3);
  const reward = ({ index, sample }: Completion) => (index === 1 && sample === 2 ? NaN : sample);
  const updates = (rewardFailure: "stop" | "mask") => {
    const step = { seed: 3, updates: 1, maxTokens: 12, rewardFailure };
    return [
      ppo({ policy, reference, reward, critic }, () => requests, step),
      grpo({ policy, reference, reward }, () => requests, step),
    ];
  };
  for (const update of updates("stop")) {
    const message = expect.stringContaining("completion 5 is NaN");
    await expect(update.next()).rejects.toMatchObject({ code: "NAN", message });
  }
  for (const update of updates("mask")) expect((await update.next()).value).toMatchObject({ masked: 1 });
  for (const model of [policy, reference, critic]) model.dispose();
});

test("recompute and sharePrompts do what they say in sft, reward, PPO and GRPO: layers run again to the same bits, prompts once to the same losses", async () => {
  const random = new Random("memory", 5);
  const groups = episodes(random, 4).map(({ prompt }) =>
    episodes(random, 3).map(({ completion }) => ({ prompt, completion })),
  );
  const requests = groups.flatMap((group, index) => group.map(({ prompt }, sample) => ({ prompt, index, sample })));
  const step = { ...ppoConfig, updates: 1, epochs: 1, minibatches: 1 };
  type Change = { recompute?: boolean; sharePrompts?: boolean };
  const loops = {
    sft: async (change: Change) => {
      const model = await lively(llama, on);
      return { trained: [model], held: [], metrics: sft(model, () => groups.flat(), { steps: 1, ...change }) };
    },
    reward: async (change: Change) => {
      const model = await lively(llama, on, "score");
      return {
        trained: [model],
        held: [],
        metrics: rewardModel(model, () => groups.map(ranking), { steps: 1, ...change }),
      };
    },
    ppo: async (change: Change) => {
      const [policy, reference] = [await lively(llama, on), await lively(llama, on, "logits", 2)];
      const [reward, critic] = [await lively(llama, on, "score", 3), await lively(llama, on, "score", 3)];
      return {
        trained: [policy, critic],
        held: [reference, reward],
        metrics: ppo({ policy, reference, reward, critic }, () => requests, { ...step, ...change }),
      };
    },
    grpo: async (change: Change) => {
      const [policy, reference] = [await lively(llama, on), await lively(llama, on, "logits", 2)];
      const reward = await lively(llama, on, "score", 3);
      const { seed, updates, epochs, minibatches, maxTokens } = step;
      const options = { seed, updates, epochs, minibatches, maxTokens, ...change };
      return {
        trained: [policy],
        held: [reference, reward],
        metrics: grpo({ policy, reference, reward }, () => requests, options),
      };
    },
  };
  for (const [stage, loop] of Object.entries(loops)) {
    const trained = async (change: Change) => {
      const { trained, held, metrics } = await loop(change);
      let [layers, tokens] = [0, 0];
      const call = on.call.bind(on);
      on.call = (op, args) => {
        if (op.name === "attention") [layers, tokens] = [layers + 1, tokens + (args[0] as Tensor).shape[0]];
        call(op, args);
      };
      let result: object;
      try {
        result = (await metrics.next()).value as object;
      } finally {
        on.call = call;
      }
      const weights = Buffer.concat(await Promise.all(trained.map(weightsOf))).toString("hex");
      for (const model of [...trained, ...held]) model.dispose();
      const norms = Object.entries(result).filter(([name]) => /gradientNorm/i.test(name));
      const losses = Object.fromEntries(Object.entries(result).filter(([name]) => !/gradientNorm/i.test(name)));
      return { layers, tokens, weights, norms: norms.map(([, norm]) => norm as number), losses };
    };
    const plain = await trained({});
    const again = await trained({ recompute: true });
    expect([stage, again.weights === plain.weights, again.losses]).toEqual([stage, true, plain.losses]);
    expect(again.layers - plain.layers).toBe(llama.layers * plain.norms.length);
    const alone = await trained({ sharePrompts: false });
    expect([stage, alone.losses]).toEqual([stage, plain.losses]);
    alone.norms.forEach((norm, i) => expect(Math.abs(norm / plain.norms[i] - 1)).toBeLessThan(1e-4));
    expect(alone.layers).toBe(plain.layers);
    expect(alone.tokens).toBeGreaterThan(plain.tokens);
  }
});

test("a stop id inside a completion counts as any token: masks come from lengths", () => {
  const { rows, y, cuRows } = packEpisodes([
    { prompt: [0, 0], completion: [5, 0, 0] },
    { prompt: [0], completion: [0] },
  ]);
  expect([Array.from(rows), Array.from(y), Array.from(cuRows)]).toEqual([
    [1, 2, 3, 4],
    [5, 0, 0, 0],
    [0, 3, 4],
  ]);
});

test("a NaN log-prob that counts leaves a NaN loss, whatever clips and clamps", async () => {
  const losses = (logp: number, mask: number) =>
    ops.policyLoss(Float32Array.of(-1, logp), Float32Array.of(-1, -1), Float32Array.of(1, -1), {
      cuSeqlens: Int32Array.of(0, 2),
      denominator: 2,
      clipRatioC: 3,
      mask: Int32Array.of(1, mask),
    });
  expect((await losses(NaN, 1).loss.read())[0]).toBeNaN();
  expect((await losses(NaN, 0).loss.read())[0]).toBe(-0.5);
});

test("a term of the policy's loss whose coefficient is 0 enters neither loss nor gradient", () =>
  holdToAbsentTerms(on));

test("the full KL is never negative, and zero between equals", async () => {
  const model = await lively(llama, on);
  const other = await lively(llama, on, "logits", 9);
  const batch = episodes(new Random("kl"), 5);
  for (const tokens of await fullKl(model, other, batch)) for (const kl of tokens) expect(kl).toBeGreaterThan(0);
  for (const tokens of await fullKl(model, model, batch)) for (const kl of tokens) expect(kl).toBe(0);
  const kl = async (estimator: "k1" | "k2" | "k3" | "abs") =>
    (await run("tokenRewards", {
      logp: [-1, -3],
      refLogp: [-2, -1],
      scores: [0],
      cuSeqlens: [0, 2],
      klCoef: 1,
      estimator,
    }).kl.read()) as Float32Array;
  expect(Array.from(await kl("k1"))).toEqual([1, -2]);
  expect(Array.from(await kl("abs"))).toEqual([1, 2]);
  expect(Array.from(await kl("k2"))).toEqual([0.5, 2]);
  expect((await kl("k3"))[0]).toBeCloseTo(Math.exp(-1), 6);
});

test("an update runs no log-prob pass of the policy: those of the rollout are the old ones", async () => {
  const [policy, reference, reward, critic] = [
    await lively(llama, on),
    await lively(llama, on),
    await lively(llama, on, "score"),
    await lively(llama, on, "score"),
  ];
  const random = new Random("passes");
  const prompts = episodes(random, 8).map(({ prompt }, index) => ({ prompt, index, sample: 0 }));
  const counts: Record<string, number> = {};
  const call = on.call.bind(on);
  on.call = (op, args) => {
    counts[op.name] = (counts[op.name] ?? 0) + 1;
    call(op, args);
  };
  try {
    for await (const _ of ppo({ policy, reference, reward, critic }, () => prompts, {
      ...ppoConfig,
      updates: 1,
      epochs: 2,
      minibatches: 2,
    }));
  } finally {
    on.call = call;
  }
  expect(counts.linearLogprob).toBe(1); // the reference
  expect(counts.linearPolicyLoss).toBe(4); // one forward and backward per minibatch
  // prefill; reference, reward, critic; policy and critic of four minibatches: a layer's attention each
  expect(counts.attention).toBe(llama.layers * (1 + 3 + 8));
});

test("a reward model without its head refuses to load", async () => {
  const folder = await mkdtemp(join(tmpdir(), "rlhf-head-"));
  const model = await lively(llama, on, "score");
  await saveModel(model, join(folder, "whole"));
  await cp(join(folder, "whole"), join(folder, "cut"), { recursive: true });
  const { tensors, metadata } = await readSafetensorsFile(join(folder, "whole/model.safetensors"));
  tensors.delete("score.weight");
  await writeSafetensors(join(folder, "cut/model.safetensors"), tensors, metadata);
  await rm(join(folder, "cut/SHA256SUMS"));
  await expect(loadModel(join(folder, "cut"), on)).rejects.toThrow(/score\.weight is missing/);
  await rm(folder, { recursive: true });
});
