import type { Dtype } from "../../ops.js";
import type { Run } from "../call.js";
import { advantage } from "./advantage.js";
import { attention } from "./attention.js";
import { elementwise } from "./elementwise.js";
import { linearHead } from "./linear_head.js";
import { logprob } from "./logprob.js";
import { moments } from "./moments.js";
import { policyLoss } from "./policy_loss.js";
import { preferenceLoss } from "./preference_loss.js";
import { rewards } from "./rewards.js";
import { sequence } from "./sequence.js";
import { valueLoss } from "./value_loss.js";

/** The ops that the device has, by their names in the list. */
export const ops: Record<string, Run> = {
  ...advantage,
  ...attention,
  ...elementwise,
  ...linearHead,
  ...logprob,
  ...moments,
  ...policyLoss,
  ...preferenceLoss,
  ...rewards,
  ...sequence,
  ...valueLoss,
};

/** The argument of an op that may be f16, whatever the others are. */
export const f16Arguments: Readonly<Record<string, string>> = {
  logprob: "logits",
  logprobGrad: "logits",
  linearLogprob: "weight",
  linearLogprobGrad: "weight",
  linearPolicyLoss: "weight",
};

/** What the device has an op at. */
export const dtypes = (op: string): Dtype[] => (op in ops ? (op in f16Arguments ? ["f32", "f16"] : ["f32"]) : []);
