import { itemBatches } from "../../rlhf/batch/order.js";
import type { Transformer } from "../../model/transformer.js";
import { calibration, type Calibration } from "../../data/metrics.js";
import { part, sliceOf, type Indexed } from "../../data/spool.js";
import { preferences, rewardModel, type Comparison } from "../../rlhf/reward/model.js";
import type { Comparisons } from "../../rlhf/batch/rows.js";
import { AdamW } from "../../rlhf/learn/optimizer.js";
import type { Context } from "./context.js";

export interface RewardResult extends Record<string, unknown> {
  comparisons: number;
  heldOut: number;
  /** NaN where none is held out. */
  accuracy: number;
  calibration: Calibration;
}

/** What the held-out comparisons say of the model. */
export const verdict = ({
  accuracy,
  calibration,
  heldOut,
}: Pick<RewardResult, "accuracy" | "calibration" | "heldOut">): string =>
  heldOut > 0
    ? `${(100 * accuracy).toFixed(1)} % of ${heldOut} held-out comparisons right, calibration error ${calibration.error.toFixed(3)}`
    : "no comparisons held out to judge it";

/** Trains a reward model on comparisons; those held out judge it: by default the last share of the comparisons, in whole prompts,
 * which leaves one at least to learn from. */
export async function rewardStage(
  { config, run, progress }: Context,
  model: Transformer,
  comparisons: Comparisons,
  heldOut?: Comparisons,
): Promise<RewardResult> {
  const { reward: options, seed } = config;
  const held = heldOut ? 0 : Math.min(comparisons.length - 1, Math.round(comparisons.length * options.heldOut));
  const training = part(comparisons, 0, comparisons.length - held);
  const steps = Math.ceil(training.length / options.batch) * options.epochs;
  const optimizer = new AdamW(model.trained, options);
  const checkpoint = run.checkpoint("reward", { models: { model }, optimizers: { model: optimizer } });
  await checkpoint.restore();
  const bar = progress.stage("reward model", steps, "steps");
  bar.advance(optimizer.steps);
  const batches = itemBatches(training, { batch: options.batch, seed });
  for await (const metrics of rewardModel(model, batches, { ...options, steps }, optimizer)) {
    await run.log({ stage: "reward", ...metrics });
    bar.advance(1, `accuracy ${metrics.accuracy.toFixed(2)}`);
    await checkpoint.due(metrics.step, steps);
  }
  optimizer.dispose();
  const { pairs, ...judged } = await judge(model, heldOut ?? part(comparisons, training.length, comparisons.length));
  const result = { comparisons: comparisons.pairs - (heldOut ? 0 : pairs), heldOut: pairs, ...judged };
  bar.done(verdict(result));
  return result;
}

const AT_ONCE = 1024; // comparisons

/**
 * Accuracy (against the majority; a pair without one counts half) and calibration (against the share of annotators) of P(A preferred to B);
 * A is the chosen of every other pair.
 */
export async function judge(
  model: Transformer,
  comparisons: Indexed<Comparison>,
): Promise<{ pairs: number; accuracy: number; calibration: Calibration }> {
  const outcomes: { probability: number; outcome: number }[] = [];
  let right = 0;
  for (let first = 0; first < comparisons.length; first += AT_ONCE) {
    const pairs = sliceOf(comparisons, first, first + AT_ONCE).flatMap(({ episodes, pairs }) =>
      pairs.map(({ chosen, rejected, label = 1 }) => ({
        chosen: episodes[chosen],
        rejected: episodes[rejected],
        label,
      })),
    );
    const before = outcomes.length;
    const isTurned = (i: number) => (before + i) % 2 === 1;
    const p = await preferences(
      model,
      pairs.map(({ chosen, rejected }, i) => (isTurned(i) ? { a: rejected, b: chosen } : { a: chosen, b: rejected })),
    );
    for (const [i, probability] of p.entries()) {
      const outcome = isTurned(i) ? 1 - pairs[i].label : pairs[i].label;
      right += probability === 0.5 || outcome === 0.5 ? 0.5 : Number(probability > 0.5 === outcome > 0.5);
      outcomes.push({ probability, outcome });
    }
  }
  return { pairs: outcomes.length, accuracy: right / outcomes.length, calibration: calibration(outcomes) };
}
