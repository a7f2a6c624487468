import { run, type Input } from "../op.js";
import { activeTape } from "../tape.js";
import { withOwner, type Tensor } from "../tensor.js";
import { scale } from "./elementwise.js";
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
 * y = x W^T + bias + (scale x A^T) B^T: a linear layer with a low-rank adapter beside it (LoRA, Hu et al. 2021). The adapter's product is
 * a chain of its own, added last; where B is 0, y has the bits of the layer alone.
 *
 * @param x      f32 [N, I]
 * @param weight f32 [O, I], row-major or packed
 * @param bias   f32 [O]
 * @returns f32 [N, O]; the tape keeps neither product beside it
 * @throws RangeError `SHAPE`, TypeError `DTYPE`
 */
export function loraLinear(x: Tensor, weight: Input, bias: Input | undefined, factors: LoraFactors): Tensor {
  const y = linear(x, weight, bias);
  return addedTo(y, linear(scale(linear(x, factors.a), factors.scale), factors.b));
}

/** y + delta, where y was; of either, no gradient needs the numbers. */
function addedTo(y: Tensor, delta: Tensor): Tensor {
  run("accumulate", { x: delta, y });
  delta.dispose();
  const tape = activeTape();
  if (!tape || !(y.tracked || delta.tracked)) return y;
  const sum = withOwner(tape, () => y.reshape(y.shape));
  tape.push({ inputs: { y, delta }, outputs: { sum }, tensors: {}, gradient: ({ sum: d }) => ({ y: d, delta: d }) });
  return sum;
}
