import { rangeError } from "../../device/errors.js";
import { optionsOf, run, shapeOfInput, type Input } from "../op.js";
import { Parameter } from "../parameter.js";
import { Tensor } from "../tensor.js";
import type { KlEstimator } from "./policy_loss.js";

/** What `tokenRewards` gives. These are targets: no gradient flows from them to log-probs or scores. */
export interface TokenRewards {
  /** f32 [M] */
  rewards: Tensor;
  /** f32 [M], nats: the estimate at each token */
  kl: Tensor;
}

/**
 * The rewards of PPO (Stiennon et al. 2020): -klCoef kl[t] at each token, plus the score of the sequence at its last.
 *
 * @param logp      f32 [M], of the policy that sampled, nats
 * @param refLogp   f32 [M], of the reference, nats
 * @param scores    f32 [B]
 * @param cuSeqlens int32 [B+1], from 0 to M; a sequence without tokens has nowhere to put its
 *   score, which is dropped where
 *   cuSeqlens is a tensor, whose numbers are not looked at here
 * @returns rewards and kl, f32 [M]: targets, so no gradient flows from them to log-probs or scores.
 *   A KL term that is to
 *   be learnt belongs into the loss (`klCoef` of `policyLoss`)
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
