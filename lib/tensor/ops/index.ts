/**
 * The ops. Each takes tensors, weights or numbers (copied before the call returns; f32 unless
 * another dtype is said), checks them, queues the work and returns; under a tape it records its
 * gradient. N tokens, B sequences, M scored rows, H query and G key/value heads of size D, C the
 * width, V the vocabulary; shapes are row-major.
 *
 * @throws of every op: TypeError `DTYPE`, `LAYOUT`, `DEVICE`, `DISPOSED`, `ARGUMENT`, `CHOICE`, or
 *   `OP` for one that the device lacks; RangeError `SHAPE`, `ID`, `OFFSETS`, `RANGE`, `MEMORY`;
 *   each names the argument, what was given and what was wanted. What only a device sees (a bad id
 *   in a tensor) rejects every `read` of what the op wrote, and of what was computed from that.
 *
 * @packageDocumentation
 */
export { gelu, swiglu } from "./activation.js";
export { gae, gaePadded, type Advantages } from "./advantage.js";
export { attention } from "./attention.js";
export { add, cast, clamp, mul, scale, sub, sum } from "./elementwise.js";
export { embedding } from "./embedding.js";
export { linear, pack } from "./linear.js";
export { linearLogprob, linearNll, linearPolicyLoss, type TokenLoss } from "./linear_head.js";
export { logprob, type Logprobs } from "./logprob.js";
export { loraLinear, type LoraFactors } from "./lora.js";
export { whiten } from "./moments.js";
export { layerNorm, rmsNorm } from "./norm.js";
export { policyLoss, type Aggregation, type KlEstimator, type Loss, type PolicyLossOptions } from "./policy_loss.js";
export { preferenceLoss, type PreferenceLossOptions } from "./preference_loss.js";
export { reshape } from "./reshape.js";
export { tokenRewards, type TokenRewards } from "./rewards.js";
export { rope } from "./rope.js";
export { score } from "./score.js";
export { sequenceSum } from "./sequence.js";
export { valueLoss, type ValueLossOptions } from "./value_loss.js";
export {
  readStats,
  zeroStats,
  type LossStats,
  type PolicyStats,
  type PreferenceStats,
  type ValueStats,
} from "./stats.js";
