import { rangeError } from "../../device/errors.js";
import { Tape } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { microBatches } from "../batch/units.js";

/**
 * Adds the gradients of a loss over the units of a minibatch to the parameters, micro-batch by micro-batch.
 * @param loss the losses of a part; their denominators must be those of the whole update
 * @param term which loss term of the update this is (Tape)
 */
export function accumulate<T>(
  units: readonly T[],
  microBatch: number | undefined,
  loss: (part: T[]) => Tensor | Tensor[],
  term = 0,
): void {
  backward(microBatches(units, microBatch), loss, term);
}

/** Adds the gradients of a loss over micro-batches to the parameters; see `accumulate`. */
export function backward<P>(parts: readonly P[], loss: (part: P) => Tensor | Tensor[], term = 0): void {
  for (const part of parts) {
    const tape = new Tape(term);
    const losses = [tape.record(() => loss(part))].flat();
    tape.backward(...losses);
    for (const one of losses) one.dispose();
  }
}

/**
 * The value, if it is finite.
 * @throws RangeError `NAN` naming what it is and the step. The error carries the batch
 */
export function finite(what: string, value: number, step?: number, batch?: readonly unknown[]): number {
  if (!Number.isFinite(value))
    throw Object.assign(rangeError("NAN", `${step === undefined ? "" : `step ${step}: `}${what} is ${value}`), {
      batch,
    });
  return value;
}

/** Checks every number of an array, one per token. See `finite`. */
export function allFinite(what: string, values: Float32Array, step?: number, batch?: readonly unknown[]): void {
  const at = values.findIndex((value) => !Number.isFinite(value));
  if (at >= 0) finite(`${what}, at token ${at},`, values[at], step, batch);
}

/** The outcome of a step; an error that it ends with carries the batch that it was given. */
export async function stepOn<T>(batch: readonly unknown[], step: Promise<T>): Promise<T> {
  try {
    return await step;
  } catch (error) {
    throw Object.assign(error as Error, { batch });
  }
}
