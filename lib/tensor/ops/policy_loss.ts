import { optionsOf, run, type Input } from "../op.js";
import { endOfTape } from "../tape.js";
import type { Tensor } from "../tensor.js";

/**
 * How tokens become one loss, by verl's names; `denominator` is what the sum is divided by.
 *
 * `token-mean`: sum over tokens, over tokens. `seq-mean-token-sum`: sum over tokens, over
 * sequences. `seq-mean-token-mean`: mean over each sequence's unmasked tokens, over sequences.
 * `seq-mean-token-sum-norm`: sum over tokens, over a constant (Liu et al. 2025, Dr. GRPO).
 */
export type Aggregation = "token-mean" | "seq-mean-token-sum" | "seq-mean-token-mean" | "seq-mean-token-sum-norm";
/**
 * Estimators of KL(p || q) from samples of p, in nats, with d = log p - log q (Schulman 2020). k1
 * is d, abs is |d|, k2 is d^2 / 2, k3 is exp(-d) - 1 + d, at most 10 as in verl (TRL's GRPO sets no
 * limit).
 */
export type KlEstimator = "k1" | "abs" | "k2" | "k3";

/** What a loss gives. */
export interface Loss {
  /** f32 [1]; it ends the tape. */
  loss: Tensor;
  /** f64, figures beside the loss: those given in the options, continued, or new ones. */
  stats: Tensor;
}

/** Options of the policy losses. */
export interface PolicyLossOptions {
  /** int32 [B+1]: the scored tokens of each sequence */
  cuSeqlens: Input;
  /**
   * What the sum is divided by, over the whole update: tokens (token-mean), sequences, or sequences
   * times a constant (seq-mean-token-sum-norm). Never inferred from a slice.
   */
  denominator: number;
  /** How tokens become one loss; `token-mean` by default. */
  aggregation?: Aggregation;
  /**
   * How far below 1 the ratio may go before it is clipped to [1 - clipRatioLow, 1 + clipRatioHigh];
   * 0.2 by default.
   */
  clipRatioLow?: number;
  /** How far above 1 the ratio may go before it is clipped; 0.2 by default. */
  clipRatioHigh?: number;
  /**
   * Dual clip (Ye et al. 2020): a lower bound of the loss where the advantage is negative. It is 1
   * or more; Infinity, the default, is off. verl's default is 3.
   */
  clipRatioC?: number;
  /** logp - oldLogp is clamped to +- this, 20 by default. Infinity is off. */
  logRatioClamp?: number;
  /**
   * f32 [M], log-probs of the reference. With klCoef, the KL to it is part of the loss; without,
   * only stats tell it
   */
  refLogp?: Input;
  /** Coefficient of the KL to the reference, per nat; 0 is off, the default. */
  klCoef?: number;
  /** The estimator of the KL to the reference; `k3` by default. */
  estimator?: KlEstimator;
  /** Coefficient of the entropy, which the loss has with a minus: more entropy is less loss. */
  entropyCoef?: number;
  /** f32 [M]: constant weights of the tokens (truncated importance sampling) */
  importance?: Input;
  /** int32 [M]: tokens that count; what stands in the others changes no bit */
  mask?: Input;
  /** Factor of the loss and of its gradients. */
  scale?: number;
  /**
   * f64 [12], continued; `readStats` names them. Weighted as the loss: loss, policy loss, KL loss.
   * Sums over tokens, whatever the aggregation: entropy, clipped, clipped by clipRatioC, k1 and k3
   * to the old policy, ratio. Counts: tokens, tokens whose ratio is not 1, sequences
   */
  stats?: Tensor;
}

/** Every option with its default. */
export const resolved = (
  options: Partial<PolicyLossOptions>,
  objective: "clipped-ratio" | "log-likelihood" = "clipped-ratio",
) => {
  const {
    cuSeqlens,
    denominator,
    aggregation = "token-mean",
    clipRatioLow = 0.2,
    clipRatioHigh = 0.2,
    clipRatioC = Infinity,
  } = options;
  const {
    logRatioClamp = 20,
    refLogp,
    klCoef = 0,
    estimator = "k3",
    entropyCoef = 0,
    importance,
    mask,
    scale = 1,
    stats = true,
    ...unknown
  } = options;
  return {
    ...unknown, // is refused
    objective,
    cuSeqlens,
    denominator,
    aggregation,
    clipRatioLow,
    clipRatioHigh,
    clipRatioC,
    logRatioClamp,
    refLogp,
    klCoef,
    estimator,
    entropyCoef,
    importance,
    mask,
    scale,
    stats,
  };
};

/**
 * The clipped PPO loss (Schulman et al. 2017; names, masks and aggregation modes as in verl) with
 * its gradient, in one pass: per token max(-A r, -A clip(r)), r = exp(logp - oldLogp).
 *
 * @param logp       f32 [M], of the current policy
 * @param oldLogp    f32 [M], of the policy that sampled
 * @param advantages f32 [M]
 * @param options    `entropy` f32 [M], where entropyCoef is not 0
 * @returns loss f32 [1], which ends the tape; stats f64 [12]
 * @throws RangeError `SHAPE` `OFFSETS` `RANGE`, TypeError `CHOICE` `ARGUMENT`
 */
export function policyLoss(
  logp: Input,
  oldLogp: Input,
  advantages: Input,
  options: PolicyLossOptions & { entropy?: Input },
): Loss {
  const { entropy, ...rest } = optionsOf("policyLoss", options);
  const { loss, stats } = run(
    "policyLoss",
    { logp, entropy, oldLogp, advantages, ...resolved(rest), dentropy: entropy !== undefined },
    (d, t) => {
      endOfTape("policyLoss", d);
      return { logp: t.dlogp, entropy: t.dentropy };
    },
  );
  return { loss, stats };
}
