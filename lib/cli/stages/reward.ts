import { itemBatches } from "../../rlhf/text.js";
import type { Transformer } from "../../model/transformer.js";
import { calibration, type Calibration } from "../../data/metrics.js";
import { preferences, rewardModel, type Comparison } from "../../rlhf/reward.js";
import { AdamW } from "../../rlhf/optimizer.js";
import type { Context } from "./context.js";

export interface RewardResult extends Record<string, unknown> {
  comparisons: number;
  heldOut: number;
  /** NaN where none is held out. */
  accuracy: number;
  calibration: Calibration;
}

/** What the held-out comparisons say of the model. */
export const verdict = ({ accuracy, calibration, heldOut }: Pick<RewardResult, "accuracy" | "calibration" | "heldOut">): string =>
  heldOut > 0
    ? `${(100 * accuracy).toFixed(1)} % of ${heldOut} held-out comparisons right, calibration error ${calibration.error.toFixed(3)}`
    : "no comparisons held out to judge it";

/** Trains a reward model on comparisons; those held out judge it: by default the last share of the comparisons, in whole prompts,
 * which leaves one at least to learn from. */
export async function rewardStage(
  { config, run, progress }: Context,
  model: Transformer,
  comparisons: readonly Comparison[],
  heldOut?: readonly Comparison[],
): Promise<RewardResult> {
  const { reward: options, seed } = config;
  const held = heldOut ? 0 : Math.min(comparisons.length - 1, Math.round(comparisons.length * options.heldOut));
  const training = comparisons.slice(0, comparisons.length - held);
  heldOut ??= comparisons.slice(comparisons.length - held);
  const pairsIn = (units: readonly Comparison[]) => units.reduce((n, { pairs }) => n + pairs.length, 0);
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
  const judged = await judge(model, heldOut);
  const result = { comparisons: pairsIn(training), heldOut: pairsIn(heldOut), ...judged };
  bar.done(verdict(result));
  return result;
}

/** Accuracy (against the majority; a pair without one counts half) and calibration (against the share of annotators) of P(A preferred to B); A is the chosen of every other pair. */
export async function judge(model: Transformer, comparisons: readonly Comparison[]): Promise<{ accuracy: number; calibration: Calibration }> {
  const pairs = comparisons.flatMap(({ episodes, pairs }) =>
    pairs.map(({ chosen, rejected, label = 1 }) => ({ chosen: episodes[chosen], rejected: episodes[rejected], label })),
  );
  const p = await preferences(
    model,
    pairs.map(({ chosen, rejected }, i) => (i % 2 === 0 ? { a: chosen, b: rejected } : { a: rejected, b: chosen })),
  );
  let right = 0;
  const outcomes = Array.from(p, (probability, i) => {
    const outcome = i % 2 === 0 ? pairs[i].label : 1 - pairs[i].label;
    right += probability === 0.5 || outcome === 0.5 ? 0.5 : Number(probability > 0.5 === outcome > 0.5);
    return { probability, outcome };
  });
  return { accuracy: right / pairs.length, calibration: calibration(outcomes) };
}
