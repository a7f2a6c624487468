import { grid, type Call } from "../call.js";
import type { Region } from "../memory.js";
import { pair, u32, write, type Scalar } from "../queue.js";

export const BLOCK = 4096; // tokens of a partial sum
export const FAR = 3e38; // stands for a limit that is off: infinity, which WGSL does not know

/** Whether an argument is given, as a parameter of a kernel. */
export const flag = (call: Call, name: string) => u32(Number(call.has(name)));

/** What parameters of the losses over tokens begin with. */
export function shared(call: Call, M: number, fifth: Scalar): Scalar[] {
  const perSequence = Number(call.choice("aggregation") === "seq-mean-token-mean");
  const sizes = [u32(M), u32(call.size("cuSeqlens") - 1), u32(perSequence), flag(call, "mask")];
  return [...sizes, fifth, ...pair(call.number("denominator")), ...pair(call.number("scale"))];
}

/** w [M], and per sequence whether a token of it counts. */
export function weigh(
  call: Call,
  files: readonly string[],
  M: number,
  scalars: readonly Scalar[],
): { weights: Region; kept: Region } {
  const B = call.size("cuSeqlens") - 1;
  const [weights, kept] = [call.scratch(4 * M), call.scratch(4 * B)];
  const bound = { 0: call.in("mask"), 1: call.in("cuSeqlens"), 2: write(weights), 3: write(kept) };
  call.queue.dispatch({ files, entry: "token_weights" }, bound, scalars, grid(B, 1));
  return { weights, kept };
}
