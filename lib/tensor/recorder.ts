import type { Parameter, Use } from "./parameter.js";
import type { Owner, Tensor } from "./tensor.js";

/** What a gradient function may ask of the tape. */
export interface Wants {
  /** Does a gradient flow to this input? */
  needs(input: string): boolean;
  /** The accumulator that this input's gradient is added to, or undefined if none is needed. */
  into(input: string): Tensor | undefined;
}

/**
 * From the gradients of the outputs (undefined where none came) and the op's tensors, the gradients
 * of the inputs.
 */
export type Gradient = (
  d: Record<string, Tensor | undefined>,
  t: Record<string, Tensor>,
  wants: Wants,
) => Record<string, Tensor | undefined | false> | void;

/** An op as it is recorded. */
export interface RecordedOp {
  inputs: Record<string, Tensor | Parameter>;
  /** Only what gradients may flow from. */
  outputs: Record<string, Tensor>;
  /** All tensors of the call, for the gradient function. */
  tensors: Record<string, Tensor>;
  gradient: Gradient;
  /** Computes the outputs again, those that were freed too. */
  again?: () => void;
}

/** What records ops: the tape, as the ops see it. Tensors that are made meanwhile are its own. */
export interface Recorder extends Owner {
  /** Takes an op with an input that a gradient flows to. */
  push(op: RecordedOp): void;
  /** The use that the parameter's next op is. */
  nextUse(parameter: Parameter): Use;
}

let recording: Recorder | undefined;

/** What records now, if anything does. */
export function activeRecorder(): Recorder | undefined {
  return recording;
}

/** Runs `f` while `recorder` records. */
export function recordedBy<T>(recorder: Recorder, f: () => T): T {
  const outer = recording;
  recording = recorder;
  try {
    return f();
  } finally {
    recording = outer;
  }
}
