import { rangeError } from "../../device/errors.js";
import { optionsOf, run, shapeOfInput, type Input } from "../op.js";
import { Parameter } from "../parameter.js";
import { Tensor } from "../tensor.js";
import type { KlEstimator } from "./policy_loss.js";

/** What `gae` gives, in the shape of the rewards; no gradient flows through it. */
export interface Advantages {
  /** f32 */
  advantages: Tensor;
  /** f32: advantages + values */
  returns: Tensor;
}

/** What `tokenRewards` gives; no gradient flows through it. */
export interface TokenRewards {
  /** f32 [M] */
  rewards: Tensor;
  /** f32 [M], nats: the estimate at each token */
  kl: Tensor;
}

/**
 * Generalised advantage estimation over packed sequences (Schulman et al. 2016, eq. 16):
 * delta[t] = r[t] + gamma v[t+1] - v[t], A[t] = delta[t] + gamma lambda A[t+1], both 0 past the end.
 *
 * @param rewards   f32 [N]
 * @param values    f32 [N], before each token
 * @param cuSeqlens int32 [B+1]
 * @param options   `mask` int32 [N]: tokens that are not the policy's are passed over, as in verl
 * @returns advantages and returns = advantages + values, f32 [N]; no gradient flows through them
 * @throws RangeError `SHAPE`, `OFFSETS` if cuSeqlens is not monotone from 0 to N
 */
export function gae(
  rewards: Input,
  values: Input,
  cuSeqlens: Input,
  options: { gamma?: number; lambda?: number; mask?: Input } = {},
): Advantages {
  const { gamma = 1, lambda = 0.95, mask, ...unknown } = optionsOf("gae", options);
  const { advantages, returns } = run("gae", { ...unknown, rewards, values, mask, cuSeqlens, gamma, lambda });
  return { advantages, returns };
}

/**
 * The same over padded rows with a mask, verl's semantics.
 *
 * @param rewards f32 [B, T]
 * @param values  f32 [B, T]
 * @param mask    int32 [B, T]: 1 for the policy's tokens
 * @returns advantages and returns, f32 [B, T], 0 where masked; no gradient flows through them
 */
export function gaePadded(
  rewards: Input,
  values: Input,
  mask: Input,
  options: { gamma?: number; lambda?: number } = {},
): Advantages {
  const { gamma = 1, lambda = 0.95, ...unknown } = optionsOf("gaePadded", options);
  const { advantages, returns } = run("gaePadded", { ...unknown, rewards, values, mask, gamma, lambda });
  return { advantages, returns };
}

/**
 * The rewards of PPO (Stiennon et al. 2020): -klCoef kl[t] at each token, plus the score of the sequence at its last.
 *
 * @param logp      f32 [M], of the policy that sampled, nats
 * @param refLogp   f32 [M], of the reference, nats
 * @param scores    f32 [B]
 * @param cuSeqlens int32 [B+1], from 0 to M; a sequence without tokens has nowhere to put its score, which is dropped where
 *   cuSeqlens is a tensor, whose numbers are not looked at here
 * @returns rewards and kl, f32 [M]; no gradient flows through them
 * @throws RangeError `EMPTY` for a sequence without tokens, `SHAPE` `OFFSETS` `RANGE`
 */
export function tokenRewards(
  logp: Input,
  refLogp: Input,
  scores: Input,
  cuSeqlens: Input,
  options: { klCoef: number; estimator?: KlEstimator },
): TokenRewards {
  const { klCoef, estimator = "k1", ...unknown } = optionsOf("tokenRewards", options);
  const [offsets] = shapeOfInput("tokenRewards: cuSeqlens", cuSeqlens);
  if (!(cuSeqlens instanceof Tensor || cuSeqlens instanceof Parameter))
    for (let b = 0; b + 1 < offsets; b++)
      if (cuSeqlens[b] === cuSeqlens[b + 1])
        throw rangeError("EMPTY", `tokenRewards: sequence ${b} of cuSeqlens is empty, wanted a token for its score`);
  const { rewards, kl } = run("tokenRewards", { ...unknown, logp, refLogp, scores, cuSeqlens, klCoef, estimator });
  return { rewards, kl };
}

/**
 * (x - mean) / deviation over all unmasked tokens, as the named library has it: `verl` and `trl` divide by sqrt(variance + 1e-8), the
 * variance unbiased; `openrlhf` by sqrt(max(variance, 1e-8)), biased.
 *
 * @param x         f32 [N]
 * @param cuSeqlens int32 [B+1], from 0 to N; sums run sequence by sequence
 * @param options   `mask` int32 [N], 0 leaves a token out; `shiftMean` false adds the mean back
 * @returns f32 [N], 0 where masked; no gradient flows through it
 */
export function whiten(
  x: Input,
  cuSeqlens: Input,
  options: { mask?: Input; shiftMean?: boolean; form?: "verl" | "trl" | "openrlhf" } = {},
): Tensor {
  const { mask, shiftMean = true, form = "verl", ...unknown } = optionsOf("whiten", options);
  return run("whiten", { ...unknown, x, mask, cuSeqlens, shiftMean, form }).y;
}

/**
 * Sum, or mean, of each sequence's tokens: sequence log-probs for DPO and its family.
 *
 * @param x         f32 [N]
 * @param cuSeqlens int32 [B+1], from 0 to N
 * @returns f32 [B]
 */
export function sequenceSum(x: Input, cuSeqlens: Input, options: { mean?: boolean } = {}): Tensor {
  const { mean = false, ...unknown } = optionsOf("sequenceSum", options);
  const [N] = shapeOfInput("sequenceSum: x", x);
  return run("sequenceSum", { ...unknown, x, cuSeqlens, mean }, ({ y: dy }, { cuSeqlens }) => ({
    x: run("sequenceSumGrad", { dy, cuSeqlens, mean }, undefined, { N }).dx,
  })).y;
}
