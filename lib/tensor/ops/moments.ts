import { optionsOf, run, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

/**
 * (x - mean) / deviation over all unmasked tokens, as the named library has it: `verl` and `trl`
 * divide by sqrt(variance + 1e-8), the variance unbiased; `openrlhf` by sqrt(max(variance, 1e-8)),
 * biased.
 *
 * @param x         f32 [N]
 * @param cuSeqlens int32 [B+1], from 0 to N; sums run sequence by sequence
 * @param options   `mask` int32 [N], 0 leaves a token out; `shiftMean` false adds the mean back
 * @returns f32 [N], 0 where masked: a target, so no gradient flows from it to x
 */
export function whiten(
  x: Input,
  cuSeqlens: Input,
  options: { mask?: Input; shiftMean?: boolean; form?: "verl" | "trl" | "openrlhf" } = {},
): Tensor {
  const { mask, shiftMean = true, form = "verl", ...unknown } = optionsOf("whiten", options);
  return run("whiten", { ...unknown, x, mask, cuSeqlens, shiftMean, form }).y;
}
