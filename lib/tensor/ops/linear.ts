import { run, wantTensor, type Input } from "../op.js";
import { packedSize, Tensor } from "../tensor.js";

/**
 * y = x W^T + b.
 *
 * @param x      f32 [N, I]
 * @param weight f32 [O, I], row-major or packed; on a CPU it may be bf16, which is widened: the
 *   result is that of the widened weight
 * @param bias   f32 [O], added after the sum
 * @returns f32 [N, O]
 * @throws RangeError `SHAPE`, TypeError `DTYPE`
 */
export function linear(x: Input, weight: Input, bias?: Input): Tensor {
  return run("linear", { x, weight, bias }, ({ y: dy }, { x, weight }, wants) => {
    const [dweight, dbias] = [wants.into("weight"), wants.into("bias")];
    if (dweight) run("linearGradWeight", { dy, x, dweight, dbias });
    // a column of weights, for inputs of 1
    else if (dbias) run("linearGradWeight", { dy, x: ones(x), dweight: dbias.reshape([dbias.size, 1]) });
    return { x: wants.needs("x") && run("linearGradInput", { dy, weight }).dx };
  }).y;
}

const ones = (rows: Tensor) => run("fill", { value: 1, y: Tensor.empty([rows.shape[0], 1], "f32", rows.device) }).y;

/**
 * The panels that the matrix kernels read, for a weight that many calls share.
 *
 * @param weight f32 or bf16 [O, I]
 * @param dtype  of the panels: bf16 is half the bytes, rounded to nearest
 * @returns the same matrix under the layout tag `panels`; `linear` takes it in place of the weight
 */
export function pack(weight: Tensor, dtype?: Tensor["dtype"]): Tensor {
  wantTensor("pack: weight", weight);
  const packed = Tensor.empty([packedSize(weight.shape, false)], dtype ?? weight.dtype, weight.device);
  run("pack", { weight, transposed: 0, packed });
  const tagged = packed.withLayout("panels", weight.shape);
  packed.dispose();
  return tagged;
}
