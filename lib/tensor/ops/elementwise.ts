import { run, wantTensor, type Input } from "../op.js";
import { activeRecorder } from "../recorder.js";
import { Tensor, withOwner } from "../tensor.js";

/**
 * x in another dtype, f32 or bf16 (to nearest, ties to even; a NaN stays one).
 * The gradient passes as it is: gradients are f32, whatever the dtype of x and of the result.
 */
export function cast(x: Tensor, dtype: "f32" | "bf16"): Tensor {
  wantTensor("cast: x", x);
  const recorder = activeRecorder();
  const make = () => Tensor.empty(x.shape, dtype, x.device);
  const { y } = run("cast", { x, y: recorder ? withOwner(recorder, make) : make() });
  if (recorder && x.tracked)
    recorder.push({ inputs: { x }, outputs: { y }, tensors: {}, gradient: ({ y: d }) => ({ x: d }) });
  return y;
}

/** a + b, f32 of one shape. */
export function add(a: Input, b: Input): Tensor {
  return run("add", { a, b }, ({ y: dy }) => ({ a: dy, b: dy })).y;
}

/** @internal y + x, where y was: for an output of `linear`, whose numbers no gradient needs. */
export function addTo(y: Tensor, x: Tensor): Tensor {
  run("accumulate", { x, y });
  const recorder = activeRecorder();
  if (!recorder || !(y.tracked || x.tracked)) return y;
  const sum = withOwner(recorder, () => y.reshape(y.shape));
  recorder.push({ inputs: { y, x }, outputs: { sum }, tensors: {}, gradient: ({ sum: d }) => ({ y: d, x: d }) });
  return sum;
}

/** a - b, f32 of one shape. */
export function sub(a: Input, b: Input): Tensor {
  return run("sub", { a, b }, ({ y: dy }, _, wants) => ({ a: dy, b: wants.needs("b") && scale(dy!, -1) })).y;
}

/** a * b, elementwise, f32 of one shape. */
export function mul(a: Input, b: Input): Tensor {
  return run("mul", { a, b }, ({ y: dy }, { a, b }, wants) => ({
    a: wants.needs("a") && run("mul", { a: dy, b }).y,
    b: wants.needs("b") && run("mul", { a: dy, b: a }).y,
  })).y;
}

/** x * factor + shift, f32 of any shape. */
export function scale(x: Input, factor: number, shift = 0): Tensor {
  return run("scale", { x, factor, shift }, ({ y: dy }) => ({ x: run("scale", { x: dy, factor, shift: 0 }).y })).y;
}

/**
 * x, no less than low and no more than high, f32 of any shape. The gradient is dy where low <= x <=
 * high, else 0.
 */
export function clamp(x: Input, low: number, high: number): Tensor {
  return run("clamp", { x, low, high }, ({ y: dy }, { x }) => ({ x: run("clampGrad", { dy, x, low, high }).dx })).y;
}

/** The sum of all numbers of f32 [...]: f32 [1], summed in f64. */
export function sum(x: Input): Tensor {
  return run("sum", { x }, ({ y: dy }, { x }) => ({
    x: run("sequenceSumGrad", { dy, cuSeqlens: Int32Array.of(0, x.size), mean: 0 }, undefined, {
      N: x.size,
    }).dx.reshape(x.shape),
  })).y;
}
