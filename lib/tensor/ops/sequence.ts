import { optionsOf, run, shapeOfInput, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

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
