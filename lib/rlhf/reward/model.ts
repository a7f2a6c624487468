import { math } from "../../device/native.js";
import type { Transformer } from "../../model/transformer.js";
import * as ops from "../../tensor/ops/index.js";
import { Tensor } from "../../tensor/tensor.js";
import { packWhole, promptGroups, type Episode } from "../batch/episode.js";
import { scoreOf, scores } from "../measure/logp.js";
import { AdamW, learningRateAt, type AdamWOptions, type Schedule } from "../learn/optimizer.js";
import { accumulate, finite, stepOn } from "../learn/update.js";

/** Completions of one prompt that were compared: pair i prefers `episodes[chosen[i]]` to `episodes[rejected[i]]`, unless its label says otherwise. */
export interface Comparison {
  /** Prompt and completion each. */
  episodes: Episode[];
  /** Which were compared. */
  pairs: {
    /** The episode that was preferred. */
    chosen: number;
    /** The other one. */
    rejected: number;
    /** The probability that the chosen is preferred, 1 by default. */
    label?: number;
    /** How much better it is, in units of the score; 0 by default. */
    margin?: number;
  }[];
}

/** All pairs of a ranking, best first (Ouyang et al. 2022): each counts 1 / (K choose 2). */
export function ranking(episodes: Episode[]): Comparison {
  const pairs = episodes.flatMap((_, chosen) =>
    episodes.slice(chosen + 1).map((_, i) => ({ chosen, rejected: chosen + 1 + i })),
  );
  return { episodes, pairs };
}

/** Options of a reward model's training. */
export interface RewardConfig extends Schedule, AdamWOptions {
  /** Share of the labels taken to be wrong, in [0, 0.5]. */
  labelSmoothing?: number;
  /** Pulls scores toward 0: coefficient of (chosen + rejected)^2 (Eisenstein et al. 2023). */
  centerCoef?: number;
  /** Comparisons of a micro-batch. Bounds memory, changes no bit. */
  microBatch?: number;
  /** Backward runs each layer again instead of keeping what it computed. Bounds memory, changes no bit. */
  recompute?: boolean;
  /** The completions of a comparison share the computation of their prompt: on by default. Memory and speed; gradients agree to rounding. */
  sharePrompts?: boolean;
}

/** What a step tells. */
export interface RewardMetrics {
  /** Counted from 1. */
  step: number;
  /** Mean over comparisons, nats. */
  loss: number;
  /** Share of the pairs whose preferred completion, the chosen unless the label is below 0.5, scores higher; where neither is preferred, or they score the same, half a pair. */
  accuracy: number;
  /** Mean score of the chosen minus that of the rejected. */
  difference: number;
  /** Of all weights, before it was clipped. */
  gradientNorm: number;
  /** Of this step. */
  learningRate: number;
}

/** @param wins as `stats`, of the pairs alone in which one is preferred, that one as the chosen and without a margin */
function loss(
  model: Transformer,
  part: readonly Comparison[],
  denominator: number,
  config: RewardConfig,
  stats: Tensor,
  wins: Tensor,
): Tensor {
  const batch = packWhole(part.flatMap(({ episodes }) => promptGroups(episodes, config.sharePrompts)));
  let first = 0;
  const pairs = part.flatMap(({ episodes, pairs }) => {
    const start = first;
    first += episodes.length;
    return pairs.map((pair) => ({
      ...pair,
      chosen: start + pair.chosen,
      rejected: start + pair.rejected,
      weight: 1 / pairs.length,
    }));
  });
  const scores = scoreOf(model, batch, config);
  const decided = pairs.flatMap(({ chosen, rejected, label = 1 }) =>
    label === 0.5 ? [] : [label > 0.5 ? [chosen, rejected] : [rejected, chosen]],
  );
  const [preferred, other] = [0, 1].map((place) => Int32Array.from(decided, (pair) => pair[place]));
  if (decided.length > 0)
    ops.preferenceLoss(scores, preferred, other, { form: "bradley-terry", denominator, stats: wins });
  return ops.preferenceLoss(
    scores,
    Int32Array.from(pairs, ({ chosen }) => chosen),
    Int32Array.from(pairs, ({ rejected }) => rejected),
    {
      form: "bradley-terry",
      denominator,
      stats,
      label: Float32Array.from(pairs, ({ label = 1 }) => label),
      margin: Float32Array.from(pairs, ({ margin = 0 }) => margin),
      weight: Float32Array.from(pairs, ({ weight }) => weight),
      labelSmoothing: config.labelSmoothing,
      centerCoef: config.centerCoef,
    },
  ).loss;
}

/**
 * Trains a reward model on comparisons by the Bradley-Terry likelihood (Christiano et al. 2017): one optimizer step per batch, and its metrics.
 *
 * @param model   one with a score for a head
 * @param batches the comparisons of a step, counted from 0
 * @param given   an optimizer, which goes on where it stands; without one, the loop has its own
 * @throws RangeError `NAN` for a loss or gradient that is not finite; its `batch` is the offending one, the weights are the last good ones
 */
export async function* rewardModel(
  model: Transformer,
  batches: (step: number) => readonly Comparison[],
  config: RewardConfig,
  given?: AdamW,
): AsyncGenerator<RewardMetrics> {
  using own = given ? undefined : new AdamW(model.trained, config);
  const optimizer = given ?? own!;
  while (optimizer.steps < config.steps) {
    const step = optimizer.steps;
    const comparisons = batches(step);
    using stats = Tensor.from(new Float64Array(8), [8], model.device);
    using decided = Tensor.from(new Float64Array(8), [8], model.device);
    accumulate(comparisons, config.microBatch, (part) => loss(model, part, comparisons.length, config, stats, decided));
    const learningRate = learningRateAt(step, config);
    const gradientNorm = await stepOn(comparisons, optimizer.step(learningRate));
    const [total, , , chosen, rejected, pairs] = await stats.read();
    const [, wins, , , , decidedPairs] = await decided.read();
    yield {
      step: step + 1,
      loss: finite("the loss", total, step + 1, comparisons),
      accuracy: (wins + (pairs - decidedPairs) / 2) / pairs,
      difference: (chosen - rejected) / pairs,
      gradientNorm,
      learningRate,
    };
  }
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
