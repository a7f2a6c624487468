import { run, type Input } from "../op.js";
import { endOfTape } from "../tape.js";
import type { Tensor } from "../tensor.js";
import type { Aggregation } from "./policyLoss.js";

export interface ValueLossOptions {
  /** f32 [M]: values at the rollout, with clipRange */
  oldValues?: Input;
  /** The value is clipped to oldValues +- clipRange. Infinity is off. */
  clipRange?: number;
  /** int32 [B+1] */
  cuSeqlens: Input;
  aggregation?: Aggregation;
  /** As for the policy loss: over the whole update. */
  denominator: number;
  mask?: Input;
  scale?: number;
  /** f64 [8], continued: loss, clipped, value, squared error, return, squared return (weighted as the loss); tokens; 0 */
  stats?: Tensor;
}

/**
 * The clipped value loss of PPO: 0.5 max((v - R)^2, (clip(v) - R)^2), with its gradient.
 *
 * @param values  f32 [M]
 * @param returns f32 [M]
 * @returns loss f32 [1], which ends the tape
 */
export function valueLoss(values: Input, returns: Input, options: ValueLossOptions): { loss: Tensor; stats: Tensor } {
  const { oldValues, clipRange = Infinity, cuSeqlens, aggregation = "token-mean", denominator, mask, scale = 1, stats: given } = options;
  const { loss, stats } = run(
    "valueLoss",
    {
      values,
      oldValues: clipRange === Infinity ? undefined : oldValues,
      returns,
      mask,
      cuSeqlens,
      clipRange,
      aggregation,
      denominator,
      scale,
      stats: given ?? true,
    },
    (d, t) => {
      endOfTape("valueLoss", d);
      return { values: t.dvalues };
    },
  );
  return { loss, stats };
}
