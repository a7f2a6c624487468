import { z } from "zod";
import {
  atLeast0,
  limit,
  memoryOptions,
  optimizerOptions,
  positive,
  samplingOptions,
  share,
  weightsOption,
  whole,
} from "../options.js";

/** Options that every algorithm with a sampled policy has. */
export const policyOptions = {
  seed: whole(0)
    .max(2 ** 32 - 1)
    .default(0)
    .describe("seed of sampling and of the order of minibatches"),
  updates: whole(1).default(80).describe("rounds of sampling and learning"),
  epochs: whole(1).default(1).describe("passes over the completions of an update"),
  minibatches: whole(1).default(2).describe("optimizer steps of an epoch; a prompt's completions stay in one"),
  learningRate: positive.default(5e-4).describe("the policy's highest learning rate"),
  ...optimizerOptions,
  schedule: optimizerOptions.schedule.default("linear"),
  ...samplingOptions,
  stop: z.array(whole(0)).readonly().default([]).describe("a completion ends with one of these ids"),
  clipRatioLow: share.default(0.2).describe("the ratio is clipped to 1 - this from below"),
  clipRatioHigh: atLeast0.default(0.2).describe("the ratio is clipped to 1 + this from above"),
  clipRatioC: limit
    .default(Infinity)
    .describe("dual clip: bounds the loss where the advantage is negative; .inf is off"),
  logRatioClamp: limit.default(20).describe("logp - oldLogp is clamped to +- this; .inf is off"),
  aggregation: z
    .enum(["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
    .default("token-mean")
    .describe("how tokens become one loss; the last divides by the completions times maxTokens (Dr. GRPO)"),
  entropyCoef: atLeast0.default(0).describe("coefficient of the entropy, which the loss rewards"),
  rewardNormalise: z
    .boolean()
    .default(false)
    .describe("scores lose their running mean and are divided by their running deviation"),
  rewardClip: limit.default(Infinity).describe("scores are clipped to +- this; .inf is off"),
  missingEosPenalty: atLeast0.default(0).describe("taken off the score of a completion that did not end by itself"),
  rewardFailure: z
    .enum(["stop", "mask"])
    .default("stop")
    .describe("a completion whose score is not finite stops the run, or is left out and counted"),
  targetKl: limit.default(Infinity).describe("an update stops early beyond this KL to the rollout policy; .inf is off"),
  weights: weightsOption.describe(
    "of the frozen models and the policy's passes; the optimizer keeps the policy in f32",
  ),
  ...memoryOptions("completions"),
};
