import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import {
  device,
  generate,
  grpo,
  ppo,
  requestsFor,
  type Completion,
  type Device,
  type Request,
  type Reward,
  type Transformer,
} from "../../lib/index.js";
import { llama, lively } from "../models.js";

// What an update reads from the device: what sampling needs, scores, and figures. No number of a token.

let on: Device;
let models: Record<"policy" | "reference" | "critic" | "scorer", Transformer>;
beforeAll(async () => {
  on = await device("cpu", { threads: 2 });
  models = {
    policy: await lively(llama, on),
    reference: await lively(llama, on),
    critic: await lively(llama, on, "score"),
    scorer: await lively(llama, on, "score"),
  };
});
afterAll(() => on.close());

/** Bytes of each read, and the passes through a model, while `work` runs. */
async function watched(work: () => Promise<unknown>) {
  const [reads, passes]: [number[], Record<string, number>] = [[], {}];
  const [read, call] = [on.read.bind(on), on.call.bind(on)];
  on.read = (address, bytes, dtype) => {
    reads.push(bytes);
    return read(address, bytes, dtype);
  };
  on.call = (op, args) => {
    passes[op.name] = (passes[op.name] ?? 0) + 1;
    call(op, args);
  };
  try {
    await work();
  } finally {
    Object.assign(on, { read, call });
  }
  return { reads, passes };
}

const sampling = { seed: 3, maxTokens: 30, stop: [3, 4, 5, 6] };
const step = { ...sampling, updates: 2, epochs: 2, minibatches: 2, microBatch: 64, learningRate: 1e-4 };
const byLength = ({ completion }: Completion) => completion.length % 7;
type Loop = (requests: readonly Request[], reward: Reward) => AsyncGenerator<unknown>;

const [MOMENTS, NORM, POLICY, VALUE] = [5 * 8, 8, 12 * 8, 8 * 8];
const loops: Record<string, { loop: Loop; figures: number[]; passes: Record<string, number> }> = {
  ppo: {
    loop: (requests, reward) => ppo({ ...models, reward }, () => requests, step),
    figures: [
      // the reference's log-probs and the values are finite
      MOMENTS,
      MOMENTS,
      ...Array.from({ length: 4 }, () => [NORM, POLICY, NORM, VALUE]).flat(),
      // KL, explained variance
      MOMENTS,
      MOMENTS,
      MOMENTS,
    ],
    passes: { linearLogprob: 1, linearPolicyLoss: 4, attention: llama.layers * (2 + 8) },
  },
  grpo: {
    loop: (requests, reward) => grpo({ ...models, reward }, () => requests, step),
    figures: [MOMENTS, ...Array.from({ length: 4 }, () => [NORM, POLICY]).flat(), MOMENTS],
    passes: { linearLogprob: 1, linearPolicyLoss: 4, attention: llama.layers * (1 + 4) },
  },
  "grpo, its loss not the mean over tokens": {
    loop: (requests, reward) =>
      grpo({ ...models, reward }, () => requests, { ...step, aggregation: "seq-mean-token-mean" }),
    figures: [MOMENTS, ...Array.from({ length: 4 }, () => [NORM, POLICY]).flat(), MOMENTS],
    passes: { linearLogprob: 1, linearPolicyLoss: 4, attention: llama.layers * (1 + 4) },
  },
  "grpo without a KL": {
    loop: (requests, reward) => grpo({ policy: models.policy, reward }, () => requests, { ...step, klCoef: 0 }),
    figures: Array.from({ length: 4 }, () => [NORM, POLICY]).flat(),
    passes: { linearPolicyLoss: 4, attention: llama.layers * 4 },
  },
};

describe.each(Object.entries(loops))("an update of %s", (_, { loop, figures, passes }) => {
  test.each([
    { reward: "a function", prompts: 3 },
    { reward: "a function", prompts: 9 },
    { reward: "a model", prompts: 3 },
    { reward: "a model", prompts: 9 },
  ])("reads no number of a token: $reward, $prompts prompts of 4", async ({ reward, prompts }) => {
    const requests = requestsFor(
      Array.from({ length: prompts }, (_, i) => [i + 20, 1, 2]),
      4,
    );
    let tokens = 0;
    const alone = await watched(async () => {
      for (const { completion } of await generate(models.policy, requests, { ...sampling, update: 0 }))
        tokens += completion.length;
    });
    expect(tokens).toBeGreaterThan(8 * requests.length);
    const isModel = reward === "a model";
    const whole = await watched(() => loop(requests, isModel ? models.scorer : byLength).next());
    expect(whole.reads.slice(0, alone.reads.length)).toEqual(alone.reads);
    const scores = isModel ? [4 * requests.length] : [];
    expect(whole.reads.slice(alone.reads.length)).toEqual([...scores, ...figures]);

    const { attention } = alone.passes;
    const scoring = isModel ? llama.layers : 0;
    const more = { ...passes, attention: passes.attention + attention + scoring };
    expect(whole.passes).toMatchObject(more);
  });
});
