import { wantTensor } from "../op.js";
import { activeRecorder } from "../recorder.js";
import { withOwner, type Tensor } from "../tensor.js";

/** The same numbers under another shape of the same size; no copy. @throws RangeError `SHAPE` */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  wantTensor("reshape: x", x);
  const recorder = activeRecorder();
  if (!recorder) return x.reshape(shape);
  const y = withOwner(recorder, () => x.reshape(shape));
  if (x.tracked)
    recorder.push({ inputs: { x }, outputs: { y }, tensors: {}, gradient: (d) => ({ x: d.y?.reshape(x.shape) }) });
  return y;
}
