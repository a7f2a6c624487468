import { optionsOf, run, type Input } from "../op.js";
import { endOfTape } from "../tape.js";
import type { Tensor } from "../tensor.js";
import type { Aggregation, Loss } from "./policy_loss.js";

/** Options of the value loss. */
export interface ValueLossOptions {
  /** f32 [M]: values at the rollout, with clipRange */
  oldValues?: Input;
  /** The value is clipped to oldValues +- clipRange. Infinity is off. */
  clipRange?: number;
  /** int32 [B+1], from 0 to M */
  cuSeqlens: Input;
  /** How tokens become one loss; `token-mean` by default. */
  aggregation?: Aggregation;
  /**
   * What the sum is divided by, over the whole update: tokens, sequences, or sequences times a
   * constant.
   */
  denominator: number;
  /** int32 [M]: tokens that count; what stands in the others changes no bit */
  mask?: Input;
  /** Factor of the loss and of its gradients. */
  scale?: number;
  /**
   * f64 [8], continued; `readStats` names them: loss. Sums over tokens, whatever the aggregation:
   * clipped, value, squared error, return, squared return. Tokens; 0
   */
  stats?: Tensor;
}

/**
 * The clipped value loss of PPO (clipped as in OpenAI's baselines; Huang et al. 2022): 0.5 max((v -
 * R)^2, (clip(v) - R)^2), with its gradient.
 *
 * @param values  f32 [M]
 * @param returns f32 [M]
 * @returns loss f32 [1], which ends the tape; stats f64 [8]
 * @throws RangeError `SHAPE` `OFFSETS` `RANGE`, TypeError `CHOICE` `ARGUMENT`
 */
export function valueLoss(values: Input, returns: Input, options: ValueLossOptions): Loss {
  const {
    oldValues,
    clipRange = Infinity,
    cuSeqlens,
    aggregation = "token-mean",
    denominator,
    mask,
    scale = 1,
    stats: given = true,
    ...unknown
  } = optionsOf("valueLoss", options);
  const { loss, stats } = run(
    "valueLoss",
    {
      ...unknown, // is refused
      values,
      oldValues: clipRange === Infinity ? undefined : oldValues,
      returns,
      mask,
      cuSeqlens,
      clipRange,
      aggregation,
      denominator,
      scale,
      stats: given,
    },
    (d, t) => {
      endOfTape("valueLoss", d);
      return { values: t.dvalues };
    },
  );
  return { loss, stats };
}
