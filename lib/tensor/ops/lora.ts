import type { Input } from "../op.js";
import type { Tensor } from "../tensor.js";
import { addTo, scale } from "./elementwise.js";
import { linear } from "./linear.js";

/** What is learned beside a frozen weight. */
export interface LoraFactors {
  /** f32 [r, I]; on a CPU the factors may be bf16, as the weight may */
  a: Input;
  /** f32 [O, r] */
  b: Input;
  /** alpha / r */
  scale: number;
}

/**
 * y = x W^T + bias + (scale x A^T) B^T: a linear layer with a low-rank adapter beside it (LoRA, Hu
 * et al. 2021). The adapter's product is a chain of its own, added last; where B is 0, y has the
 * bits of the layer alone.
 *
 * @param x      f32 [N, I]
 * @param weight f32 [O, I], row-major or packed
 * @param bias   f32 [O]
 * @returns f32 [N, O]; the tape keeps neither product beside it
 * @throws RangeError `SHAPE`, TypeError `DTYPE`
 */
export function loraLinear(x: Tensor, weight: Input, bias: Input | undefined, factors: LoraFactors): Tensor {
  const y = linear(x, weight, bias);
  const delta = linear(scale(linear(x, factors.a), factors.scale), factors.b);
  const sum = addTo(y, delta);
  delta.dispose(); // no gradient needs its numbers either
  return sum;
}
