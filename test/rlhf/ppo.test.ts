import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import {
  device,
  generate,
  Learner,
  logps,
  ppo,
  requestsFor,
  type Device,
  type PpoModels,
  type PpoOptions,
  type Request,
} from "../../lib/index.js";
import { llama, lively, ppoConfig } from "../models.js";

let on: Device;
let models: PpoModels;
beforeAll(async () => {
  on = await device("cpu");
  models = {
    policy: await lively(llama, on),
    reference: await lively(llama, on),
    reward: await lively(llama, on, "score"),
    critic: await lively(llama, on, "score"),
  };
});
afterAll(() => on.close());

/** Nothing is learnt, so that what is told can be measured again. */
const still = { ...ppoConfig, updates: 1, epochs: 1, stop: [3, 4, 5, 6, 7, 8, 9, 10] } satisfies PpoOptions;
const prompts = Array.from({ length: 16 }, (_, i) => [i + 20, 1, 2]);

async function update(requests: readonly Request[], options: PpoOptions) {
  const { policy, critic } = models;
  using learner = new Learner({ policy, critic }, { ...still, warmup: 0, learningRate: 0, steps: 1 });
  for await (const metrics of ppo(models, () => requests, options, learner))
    return { ...metrics, steps: learner.optimizers.policy.steps };
  throw new Error("no update");
}

describe("the minibatches of a pass", () => {
  test.each([1, 3, 9, 16, 40])("are as many as asked, of whole prompts: %d of 16", async (minibatches) => {
    expect((await update(requestsFor(prompts, 2), { ...still, minibatches })).steps).toBe(Math.min(minibatches, 16));
  });

  test("are of requests, also where their prompts are equal", async () => {
    const same = requestsFor(
      prompts.map(() => [1, 2, 3]),
      2,
    );
    expect((await update(same, { ...still, minibatches: 8 })).steps).toBe(8);
    const own = same.map((request, index) => ({ ...request, index }));
    expect((await update(own, { ...still, minibatches: 32 })).steps).toBe(32);
  });
});

describe("aggregation", () => {
  const told = (aggregation: PpoOptions["aggregation"]) =>
    update(requestsFor(prompts, 2), { ...still, aggregation, entropyCoef: 0, whitenAdvantages: false });

  test.each(["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"] as const)(
    "%s: entropy is the mean over tokens",
    async (mode) => {
      const completions = await generate(models.policy, requestsFor(prompts, 2), { ...still, update: 0 });
      expect(new Set(completions.map(({ completion }) => completion.length)).size).toBeGreaterThan(3);
      const entropies = (await logps(models.policy, completions, still)).entropy.flatMap((tokens) => [...tokens]);
      const { entropy, approxKl, clipFraction } = await told(mode);
      expect(entropy).toBeCloseTo(entropies.reduce((a, b) => a + b, 0) / entropies.length, 6);
      expect([approxKl, clipFraction]).toEqual([0, 0]);
    },
  );

  test("seq-mean-token-sum-norm is the sum over tokens by completions times maxTokens", async () => {
    const [sum, norm] = [await told("seq-mean-token-sum"), await told("seq-mean-token-sum-norm")];
    expect(Math.abs(sum.policyLoss)).toBeGreaterThan(1e-4);
    expect(norm.policyLoss).toBeCloseTo(sum.policyLoss / still.maxTokens, 6);
    expect(norm.valueLoss).toBeCloseTo(sum.valueLoss / still.maxTokens, 6);
    expect(norm.gradientNorm).toBeCloseTo(sum.gradientNorm / still.maxTokens, 5);
  });
});
