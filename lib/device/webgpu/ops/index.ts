import type { Call } from "../call.js";
import { advantage } from "./advantage.js";
import { attention } from "./attention.js";
import { elementwise } from "./elementwise.js";
import { logprob } from "./logprob.js";
import { losses } from "./losses.js";
import { sequence } from "./sequence.js";

/** Queues the kernels of one call. */
export type Run = (call: Call) => void;

/** The ops that the device has, by their names in the list. */
export const ops: Record<string, Run> = { ...elementwise, ...sequence, ...advantage, ...losses, ...logprob, ...attention };
