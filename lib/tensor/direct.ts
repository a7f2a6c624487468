import type { Device } from "../device/device.js";
import { specs } from "../device/ops.js";
import { Tensor, withOwner, type Owner } from "./tensor.js";

/**
 * Queues an op of the list, its arguments in the list's order. Only the device checks them, and no
 * tape records the call.
 */
export function direct(op: "accumulate" | "cast" | "fill", ...args: [Tensor | number, Tensor]): void {
  args[1].device.call(specs.get(op)!, args);
}

/** Adopts nothing: what is made under it belongs to whoever made it. */
export const NOBODY: Owner = { adopt: () => undefined };

/** f32 numbers, all of one value. */
export function filled(value: number, shape: readonly number[], on: Device): Tensor {
  const y = Tensor.empty(shape, "f32", on);
  direct("fill", value, y);
  return y;
}

/** f32 zeros that no scope and no tape frees. */
export const zeros = (shape: readonly number[], on: Device) => withOwner(NOBODY, () => filled(0, shape, on));
