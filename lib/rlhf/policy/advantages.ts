import { rangeError } from "../../device/errors.js";
import { run } from "../../tensor/op.js";
import * as ops from "../../tensor/ops/index.js";
import type { KlEstimator } from "../../tensor/ops/policy_loss.js";
import { scope } from "../../tensor/tensor.js";
import type { Batch, Moments } from "../batch/batch.js";

/**
 * Sets the columns `kl` and `rewards` (Stiennon et al. 2020). A reward is -klCoef kl at each token. The last token of a
 * completion has the completion's score beside it.
 */
export function setRewards(
  batch: Batch,
  scores: Float32Array,
  klCoef: number,
  { klEstimator, whitenRewards = false }: { klEstimator: KlEstimator; whitenRewards?: boolean },
): void {
  const { cuRows: cuSeqlens } = batch;
  const { rewards, kl } = scope(() => {
    const logps = { logp: batch.get("logp"), refLogp: batch.get("refLogp") };
    const made = run("tokenRewards", { ...logps, scores, cuSeqlens, klCoef, estimator: klEstimator });
    const whitened = { shiftMean: false, form: "trl" } as const;
    return { kl: made.kl, rewards: whitenRewards ? ops.whiten(made.rewards, cuSeqlens, whitened) : made.rewards };
  });
  batch.set("rewards", rewards);
  batch.set("kl", kl);
}

/** Sets the columns `advantages` and `returns` from `rewards` and `values`, by GAE (Schulman et al. 2016). */
export function setGae(
  batch: Batch,
  { gamma, lambda, whitenAdvantages = false }: { gamma: number; lambda: number; whitenAdvantages?: boolean },
): void {
  const { cuRows } = batch;
  const { advantages, returns } = scope(() => {
    const made = ops.gae(batch.get("rewards"), batch.get("values"), cuRows, { gamma, lambda });
    const advantages = whitenAdvantages ? ops.whiten(made.advantages, cuRows, { form: "trl" }) : made.advantages;
    return { advantages, returns: made.returns };
  });
  batch.set("advantages", advantages);
  batch.set("returns", returns);
}

/** The share of the returns' variance that the values explain: 1 - var(returns - values) / var(returns). */
export async function explainedVariance(batch: Batch): Promise<number> {
  const variance = ({ count, sum, squares }: Moments) => squares / count - (sum / count) ** 2;
  using residual = scope(() => ops.sub(batch.get("returns"), batch.get("values")));
  const [left, all] = await Promise.all([batch.moments(residual), batch.moments(batch.get("returns"))]);
  return 1 - variance(left) / variance(all);
}

/**
 * How GRPO normalises the scores of a group, by the library that does so. Each divides by the unbiased deviation plus
 * an eps: 1e-4 in TRL (`scale_rewards="group"`), 1e-6 in verl, 1e-9 in OpenRLHF (`group_norm`).
 * In verl a group of one has mean 0 and deviation 1. The others have no answer for it.
 */
export type GroupNormalisation = "trl" | "verl" | "openrlhf";
const groupEps: Record<GroupNormalisation, number> = { trl: 1e-4, verl: 1e-6, openrlhf: 1e-9 };

/** What `groupAdvantages` gives. */
export interface GroupAdvantages {
  /** f32, one for each completion. */
  advantages: Float32Array;
  /** Share of the groups whose scores are all the same. */
  withoutVariance: number;
}

/**
 * Advantages of completions relative to their group (Shao et al. 2024): (score - mean) / (deviation + eps).
 * @param groups    the places of each group's completions in `scores`
 * @param hasMasked completions were left out: one that is alone for that reason has advantage 0, except in `verl`
 * @returns f32 like scores, and the share of the groups whose scores are all the same
 * @throws RangeError `EMPTY` for a group of one, except in `verl`
 */
export function groupAdvantages(
  scores: Float32Array,
  groups: readonly (readonly number[])[],
  form: GroupNormalisation,
  hasMasked = false,
): GroupAdvantages {
  const advantages = new Float32Array(scores.length);
  let same = 0;
  for (const group of groups) {
    const n = group.length;
    const isVerlAlone = n === 1 && form === "verl";
    if (n === 1 && !isVerlAlone && !hasMasked)
      throw rangeError("EMPTY", `a group has one completion, wanted two or more: ${form} has no deviation of one`);
    let mean = 0;
    for (const i of group) mean += scores[i] / n;
    let squares = 0;
    for (const i of group) squares += (scores[i] - mean) * (scores[i] - mean);
    const deviation = n > 1 ? Math.sqrt(squares / (n - 1)) : 1;
    const center = isVerlAlone ? 0 : mean;
    for (const i of group) advantages[i] = (scores[i] - center) / (deviation + groupEps[form]);
    if (group.every((i) => scores[i] === scores[group[0]])) same++;
  }
  return { advantages, withoutVariance: same / groups.length };
}
