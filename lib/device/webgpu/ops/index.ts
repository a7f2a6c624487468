import type { Dtype } from "../../ops.js";
import type { Run } from "../call.js";
import { advantage } from "./advantage.js";
import { attention } from "./attention.js";
import { elementwise } from "./elementwise.js";
import { logprob } from "./logprob.js";
import { losses } from "./losses.js";
import { sequence } from "./sequence.js";

/** The ops that the device has, by their names in the list. */
export const ops: Record<string, Run> = {
  ...elementwise,
  ...sequence,
  ...advantage,
  ...losses,
  ...logprob,
  ...attention,
};

/** The argument of an op that may be f16, whatever the others are. */
export const halves: Readonly<Record<string, string>> = {
  logprob: "logits",
  logprobGrad: "logits",
  linearLogprob: "weight",
  linearLogprobGrad: "weight",
  linearPolicyLoss: "weight",
};

/** What the device has an op at. */
export const dtypes = (op: string): Dtype[] => (op in ops ? (op in halves ? ["f32", "f16"] : ["f32"]) : []);
