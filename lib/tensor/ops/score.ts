import { run, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

/**
 * A head with one output, at chosen rows: value[m] = h[rows[m]] . weight + bias. Rewards and
 * values.
 *
 * @param h      f32 [N, C], hidden state
 * @param weight f32 [1, C]
 * @param rows   int32 [M], each in [0, N); a row may occur many times or never
 * @param bias   f32 [1]
 * @returns f32 [M]
 * @throws RangeError `SHAPE` `ID`
 */
export function score(h: Input, weight: Input, rows: Input, bias?: Input): Tensor {
  return run("score", { h, weight, bias, rows }, ({ value: dvalue }, { h, weight, rows }, wants) => {
    const made = run("scoreGrad", {
      dvalue,
      h,
      weight,
      rows,
      dh: wants.needs("h"),
      dweight: wants.into("weight"),
      dbias: wants.into("bias"),
    });
    return { h: made.dh };
  }).value;
}
