import { wantTensor } from "../op.js";
import { activeRecorder } from "../recorder.js";
import { withOwner, type Tensor } from "../tensor.js";

/** Gives numbers another shape of the same size, without a copy. @throws RangeError `SHAPE` */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  wantTensor("reshape: x", x);
  const recorder = activeRecorder();
  if (!recorder) return x.reshape(shape);
  const y = withOwner(recorder, () => x.reshape(shape));
  if (x.tracked)
    recorder.push({ inputs: { x }, outputs: { y }, tensors: {}, gradient: (d) => ({ x: d.y?.reshape(x.shape) }) });
  return y;
}
