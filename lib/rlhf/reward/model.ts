import { z } from "zod";
import { math } from "../../device/native.js";
import type { Transformer } from "../../model/transformer.js";
import * as ops from "../../tensor/ops/index.js";
import { readStats, zeroStats } from "../../tensor/ops/stats.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Comparison } from "../batch/comparison.js";
import { promptGroups, type Episode } from "../batch/episode.js";
import { packWhole } from "../batch/pack.js";
import { Learner } from "../learn/learner.js";
import { accumulate, finite } from "../learn/update.js";
import { scoreOf, scores } from "../measure/score.js";
import { atLeast0, memoryOptions, optimizerOptions, positive, resolve, whole } from "../options.js";

/** The options of a reward model's training. @hidden */
export const rewardOptions = z.strictObject({
  steps: whole(1).describe("optimizer steps"),
  learningRate: positive.default(1e-3).describe("the highest learning rate"),
  ...optimizerOptions,
  weightDecay: optimizerOptions.weightDecay.default(0.1),
  warmup: optimizerOptions.warmup.default(20),
  labelSmoothing: z.number().min(0).max(0.5).default(0).describe("share of the labels taken to be wrong"),
  centerCoef: atLeast0
    .default(0.01)
    .describe("pulls scores toward 0: coefficient of (chosen + rejected)^2 (Eisenstein et al. 2023)"),
  ...memoryOptions("comparisons"),
});

/** Options of a reward model's training; `rlhf config` lists them with their defaults. */
export type RewardOptions = z.input<typeof rewardOptions>;

/** What a step of a reward model's training tells. */
export interface RewardMetrics {
  /** Counted from 1. */
  step: number;
  /** Mean over comparisons, nats. */
  loss: number;
  /**
   * Share of the pairs whose preferred completion scores higher. The preferred one is the chosen, or the rejected where
   * the label is below 0.5. A pair counts half where neither is preferred, or both score the same.
   */
  accuracy: number;
  /** Mean score of the chosen minus that of the rejected. */
  difference: number;
  /** Norm of the gradient of all weights before clipping. */
  gradientNorm: number;
  /** The learning rate of this step. */
  learningRate: number;
}

/** The optimizer and the counters of a reward model's training, for `rewardModel` to begin or go on with. */
export const rewardLearner = (model: Transformer, options: RewardOptions): Learner =>
  new Learner({ model }, resolve("rewardModel", rewardOptions, options));

/**
 * Trains a reward model on comparisons by the Bradley-Terry likelihood (Christiano et al. 2017): one optimizer step per
 * batch, then its metrics.
 *
 * @param model   one with a score for a head
 * @param batches the comparisons of a step, counted from 0
 * @param options `RewardOptions`; `steps` is needed, the rest has defaults
 * @param given   a learner, which goes on where it stands; without one, the loop has its own
 * @throws RangeError `NAN` for a loss or gradient that is not finite; its `batch` is the offending one, the weights are
 *   the last good ones
 */
export async function* rewardModel(
  model: Transformer,
  batches: (step: number) => readonly Comparison[],
  options: RewardOptions,
  given?: Learner,
): AsyncGenerator<RewardMetrics> {
  const o = resolve("rewardModel", rewardOptions, options);
  using own = given ? undefined : rewardLearner(model, options);
  const learner = given ?? own!;
  for (const step of learner.rounds()) {
    const comparisons = batches(step);
    using stats = zeroStats("preference", model.device);
    using decided = zeroStats("preference", model.device);
    const denominator = comparisons.length;
    accumulate(comparisons, o.microBatch, (part) => loss(model, part, { ...o, denominator }, stats, decided));
    const learningRate = learner.learningRate("model");
    const gradientNorm = await learner.step("model", comparisons);
    const [all, clear] = await Promise.all([readStats("preference", stats), readStats("preference", decided)]);
    yield learner.endRound({
      loss: finite("the loss", all.loss, step + 1, comparisons),
      accuracy: (clear.wins + (all.pairs - clear.pairs) / 2) / all.pairs,
      difference: (all.chosen - all.rejected) / all.pairs,
      gradientNorm,
      learningRate,
    });
  }
}

/** @param decided continued with the pairs in which one is preferred, that one as the chosen and without a margin */
function loss(
  model: Transformer,
  part: readonly Comparison[],
  options: z.output<typeof rewardOptions> & { denominator: number },
  stats: Tensor,
  decided: Tensor,
): Tensor {
  const { denominator, labelSmoothing, centerCoef, sharePrompts } = options;
  const batch = packWhole(part.flatMap(({ episodes }) => promptGroups(episodes, sharePrompts)));
  const scores = scoreOf(model, batch, options);
  const pairs = placed(part);
  const form = "bradley-terry";
  const clear = pairs.filter(({ label }) => label !== 0.5);
  if (clear.length > 0) {
    const preferred = clear.map(({ chosen, rejected, label }) => (label > 0.5 ? chosen : rejected));
    const other = clear.map(({ chosen, rejected, label }) => (label > 0.5 ? rejected : chosen));
    ops.preferenceLoss(scores, Int32Array.from(preferred), Int32Array.from(other), {
      form,
      denominator,
      stats: decided,
    });
  }
  const [chosen, rejected] = [pairs.map((pair) => pair.chosen), pairs.map((pair) => pair.rejected)];
  return ops.preferenceLoss(scores, Int32Array.from(chosen), Int32Array.from(rejected), {
    form,
    denominator,
    stats,
    label: Float32Array.from(pairs, ({ label }) => label),
    margin: Float32Array.from(pairs, ({ margin }) => margin),
    weight: Float32Array.from(pairs, ({ weight }) => weight),
    labelSmoothing,
    centerCoef,
  }).loss;
}

/** The pairs of some comparisons, by the places of their episodes among all. */
function placed(part: readonly Comparison[]) {
  let first = 0;
  return part.flatMap(({ episodes, pairs }) => {
    const start = first;
    first += episodes.length;
    const weight = 1 / pairs.length;
    return pairs.map(({ chosen, rejected, label = 1, margin = 0 }) => ({
      chosen: start + chosen,
      rejected: start + rejected,
      label,
      margin,
      weight,
    }));
  });
}

/** r in [0, 1] of a score: the probability that it is preferred to a score of 0. */
export const probability = (score: number) => 1 / (1 + math.exp(-score));

/** P(A preferred to B) for each pair: f64 [pairs]. @throws RangeError `EMPTY` for a completion without tokens, `ID` */
export async function preferences(
  model: Transformer,
  pairs: readonly { a: Episode; b: Episode }[],
  options: { microBatch?: number } = {},
): Promise<Float64Array> {
  const r = await scores(
    model,
    pairs.flatMap(({ a, b }) => [a, b]),
    options,
  );
  return Float64Array.from(pairs, (_, i) => probability(r[2 * i] - r[2 * i + 1]));
}
