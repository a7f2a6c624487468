// The truth of an op: its f64 reference, the inputs it is tried on, what it costs. One entry serves the tests, the
// benchmarks and the receipts of other devices.
import { Parameter, type Tensor } from "../lib/index.js";
import { Random } from "./random.js";

/** A tensor of a case. */
export interface Numbers {
  shape: readonly number[];
  data: Float32Array | Int32Array | Float64Array;
}
export type Case = Record<string, Numbers | number | string | boolean | undefined>;

/** The case as the reference sees it: tensors as f64 arrays with a shape. */
export type Wide = Float64Array & { shape: readonly number[] };
// deno-lint-ignore no-explicit-any
export type Widened = Record<string, any>;

export interface Truth {
  /** The op's name in the list, in camel case. */
  op: string;
  /**
   * The outputs that are compared, from f64 inputs. `f` rounds: the identity for the truth, Math.fround for the naive
   * f32 version, whose error sets the tolerance. Write f(...) around each operation as plain f32 code would round it.
   */
  reference(inputs: Widened, f: (x: number) => number): Record<string, ArrayLike<number>>;
  /** Fresh random cases: odd shapes, length 1, empty. */
  draw(random: Random): Case[];
  /** Cases at extreme values; the reference must hold there too. */
  extremes?(random: Random): Case[];
  /** Sizes of letters that no input binds. */
  sizes?(inputs: Case): Record<string, number>;
  /** Outputs that this op returns but the reference leaves out (compared for bits only). */
  bitsOnly?: readonly string[];
  /** Extra tolerance in ulp of the largest value of the output, over 2. */
  ulp?: number;
  /**
   * Outputs whose natural size is this, however small they come out where terms cancel: an error is
   * measured against it at least.
   */
  natural?: Record<string, number> | ((inputs: Widened) => Record<string, number>);
  /**
   * The public function, for the gradient check: gets inputs (those of `wrt` as parameters),
   * returns the outputs to differentiate.
   */
  gradient?: {
    wrt: readonly string[];
    outputs: readonly string[];
    call(inputs: Record<string, never>): Record<string, Tensor>;
  };
  /** For losses: output name -> the input that it is the gradient of `loss` for. */
  gradients?: Record<string, string>;
  /** Benchmarks: a case at a size, and what it must cost at least. */
  bench?: readonly Bench[];
  cost?(inputs: Case): { flops: number; read: number; write: number };
}

export interface Bench {
  shape: string;
  draw(random: Random): Case;
  /** The weight is packed before it is timed. */
  packed?: "f32" | "bf16";
  /** An op that is timed with it, before it: its inputs by the names of the case's. */
  before?: { op: string; inputs: Record<string, string> };
}

export function truth(entry: Truth): Truth {
  return entry;
}

/** f32 numbers, normal times `deviation`. */
export function normal(random: Random, shape: readonly number[], deviation = 1): Numbers {
  return { shape, data: Float32Array.from({ length: size(shape) }, () => random.normal() * deviation) };
}
export function uniform(random: Random, shape: readonly number[], low: number, high: number): Numbers {
  return { shape, data: Float32Array.from({ length: size(shape) }, () => random.uniform(low, high)) };
}
export function constant(shape: readonly number[], value: number): Numbers {
  return { shape, data: new Float32Array(size(shape)).fill(value) };
}
export function ids(random: Random, length: number, below: number): Numbers {
  return { shape: [length], data: Int32Array.from({ length }, () => random.below(below)) };
}
export function ints(values: readonly number[]): Numbers {
  return { shape: [values.length], data: Int32Array.from(values) };
}
/** cuSeqlens of sequences with these lengths. */
export function offsets(lengths: readonly number[]): Numbers {
  const data = new Int32Array(lengths.length + 1);
  lengths.forEach((length, i) => (data[i + 1] = data[i] + length));
  return { shape: [data.length], data };
}
/** The largest finite magnitude. */
export function largest(values: ArrayLike<number>): number {
  return Array.from(values).reduce((most, x) => (Number.isFinite(x) ? Math.max(most, Math.abs(x)) : most), 0);
}
export function size(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
/** Bytes of these tensors, of 4 each number. */
export function bytes(...tensors: Case[string][]): number {
  return tensors.reduce<number>((sum, tensor) => sum + 4 * size((tensor as Numbers).shape), 0);
}
/** [start, end] of each sequence. */
export function sequences(cuSeqlens: ArrayLike<number>): [number, number][] {
  return Array.from({ length: cuSeqlens.length - 1 }, (_, b) => [cuSeqlens[b], cuSeqlens[b + 1]]);
}
export function isNumbers(value: Case[string]): value is Numbers {
  return typeof value === "object";
}
export function widen(inputs: Case): Widened {
  return Object.fromEntries(
    Object.entries(inputs).map(([name, value]) => [
      name,
      isNumbers(value) ? Object.assign(Float64Array.from(value.data), { shape: value.shape }) : value,
    ]),
  );
}
export { Parameter };
