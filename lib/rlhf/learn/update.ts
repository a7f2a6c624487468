import { rangeError } from "../../device/errors.js";
import { Tape } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";

/**
 * Splits the units of a minibatch (sequences, prompt groups, pairs, rankings) into runs of at most `size`, in their order; a group counts
 * as many as are in it, and stays whole where it is larger. The split bounds memory and changes nothing else.
 */
export function microBatches<T>(units: readonly T[], size = Infinity): T[][] {
  const parts: T[][] = [];
  let room = 0;
  for (const unit of units) {
    const count = Array.isArray(unit) ? unit.length : 1;
    if (parts.length === 0 || count > room) {
      parts.push([]);
      room = size;
    }
    parts.at(-1)!.push(unit);
    room -= count;
  }
  return parts;
}

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
  for (const part of microBatches(units, microBatch)) {
    const tape = new Tape(term);
    const losses = [tape.record(() => loss(part))].flat();
    tape.backward(...losses);
    for (const one of losses) one.dispose();
  }
}

/** @throws RangeError `NAN` naming what is not finite, and the step, if it is one's; the error carries its batch */
export function finite(what: string, value: number, step?: number, batch?: readonly unknown[]): number {
  if (!Number.isFinite(value))
    throw Object.assign(rangeError("NAN", `${step === undefined ? "" : `step ${step}: `}${what} is ${value}`), {
      batch,
    });
  return value;
}

/** As `finite`, for the numbers of an array. */
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
