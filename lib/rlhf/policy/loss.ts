import { typeError } from "../../device/errors.js";
import type { Transformer } from "../../model/transformer.js";
import * as ops from "../../tensor/ops/index.js";
import type { Aggregation, KlEstimator } from "../../tensor/ops/policy_loss.js";
import { readStats, zeroStats } from "../../tensor/ops/stats.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Minibatch, Part } from "../batch/batch.js";
import { promptGroups, type Episode } from "../batch/episode.js";
import { tokensIn } from "../batch/units.js";
import type { Learner } from "../learn/learner.js";
import { accumulate, backward, finite } from "../learn/update.js";
import { nll } from "../offline/sft.js";
import type { StepFigures } from "./learn.js";

/** What the loss of a policy depends on. */
export interface PolicyTerms {
  temperature: number;
  maxTokens: number;
  clipRatioLow: number;
  clipRatioHigh: number;
  clipRatioC: number;
  logRatioClamp: number;
  aggregation: Aggregation;
  entropyCoef: number;
  /** Coefficient of the KL to the reference in the loss; its column is `refLogp`. */
  lossKlCoef?: number;
  lossKlEstimator?: KlEstimator;
  recompute?: boolean;
}

/** A pretraining batch beside the loss of a policy (PPO-ptx). */
export interface PretrainingMix {
  episodes: readonly Episode[];
  coef: number;
  microBatch?: number;
  sharePrompts?: boolean;
}

/** What a minibatch's sum over tokens is divided by. */
function denominatorOf({ completions, tokens }: Minibatch, { aggregation, maxTokens }: PolicyTerms): number {
  if (aggregation === "token-mean") return tokens;
  return aggregation === "seq-mean-token-sum-norm" ? completions.length * maxTokens : completions.length;
}

/**
 * One step of the policy on a minibatch by the clipped loss, with a pretraining batch beside it where there is one.
 * @throws TypeError `RATIO` if a ratio is not 1 before the first step, RangeError `NAN` for a loss or a gradient
 */
export async function policyStep(
  learner: Learner,
  policy: Transformer,
  minibatch: Minibatch,
  options: PolicyTerms,
  mix?: PretrainingMix,
): Promise<StepFigures> {
  const { device } = policy;
  using stats = zeroStats("policy", device);
  backward(minibatch.parts, (part) => policyLoss(policy, part, minibatch, options, stats));
  if (mix) {
    using mixStats = zeroStats("policy", device);
    const [tokens, scale, { recompute }] = [tokensIn(mix.episodes), mix.coef, options];
    const units = promptGroups(mix.episodes, mix.sharePrompts);
    accumulate(units, mix.microBatch, (part) => nll(policy, part, tokens, mixStats, { scale, recompute }), 1);
  }
  const gradientNorm = await learner.step("policy", minibatch.completions);
  const { policyLoss: loss, klLoss, entropy, clipped, k3, tokens, moved } = await readStats("policy", stats);
  if (minibatch.isFirst && moved > 0)
    throw typeError(
      "RATIO",
      `update ${learner.round}: ${moved} of ${tokens} ratios are not 1 before the first step; ` +
        "the sampler and the trainer disagree",
    );
  return {
    perCompletion: {
      policyLoss: finite("the policy loss", loss, learner.round + 1, minibatch.completions),
      ...(options.lossKlCoef ? { klLoss } : {}),
    },
    perToken: { entropy: entropy / tokens, clipFraction: clipped / tokens, approxKl: k3 / tokens },
    last: { gradientNorm },
  };
}

function policyLoss(
  policy: Transformer,
  part: Part,
  minibatch: Minibatch,
  { temperature, recompute, lossKlCoef = 0, lossKlEstimator, ...terms }: PolicyTerms,
  stats: Tensor,
): Tensor {
  const { clipRatioLow, clipRatioHigh, clipRatioC, logRatioClamp, aggregation, entropyCoef } = terms;
  const { y, cuRows: cuSeqlens } = part.packed;
  const { hidden, rows } = policy.hiddenRows(part.packed, { recompute });
  const [oldLogp, advantages] = [part.column("logp"), part.column("advantages")];
  const kl = lossKlCoef ? { refLogp: part.column("refLogp"), klCoef: lossKlCoef, estimator: lossKlEstimator } : {};
  const denominator = denominatorOf(minibatch, { temperature, ...terms });
  return ops.linearPolicyLoss(hidden, policy.head, rows, y, oldLogp, advantages, {
    clipRatioLow,
    clipRatioHigh,
    clipRatioC,
    logRatioClamp,
    aggregation,
    entropyCoef,
    cuSeqlens,
    ...kl,
    temperature,
    denominator,
    stats,
  }).loss;
}

/**
 * One step of the critic on a minibatch by the clipped value loss.
 * @throws RangeError `NAN` for a loss or a gradient that is not finite
 */
export async function valueStep(
  learner: Learner,
  critic: Transformer,
  minibatch: Minibatch,
  { valueClip, recompute, ...terms }: PolicyTerms & { valueClip: number },
): Promise<StepFigures> {
  const { aggregation } = terms;
  const denominator = denominatorOf(minibatch, terms);
  using stats = zeroStats("value", critic.device);
  backward(minibatch.parts, (part) => {
    const { hidden, rows } = critic.hiddenRows(part.packed, { recompute });
    return ops.valueLoss(critic.score(hidden, rows), part.column("returns"), {
      oldValues: part.column("values"),
      clipRange: valueClip,
      cuSeqlens: part.packed.cuRows,
      aggregation,
      denominator,
      stats,
    }).loss;
  });
  const valueGradientNorm = await learner.step("critic", minibatch.completions);
  const { loss } = await readStats("value", stats);
  const valueLoss = finite("the value loss", loss, learner.round + 1, minibatch.completions);
  return { perCompletion: { valueLoss }, perToken: {}, last: { valueGradientNorm } };
}
