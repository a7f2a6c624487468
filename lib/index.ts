/// <reference lib="esnext.disposable" preserve="true" />
export type { Device, DeviceKind, Recorded } from "./device/device.js";
export type { CodedError } from "./device/errors.js";
export { math } from "./device/native.js";
export { device, type DeviceOptions } from "./device/open.js";
export { Random } from "./device/philox.js";
export { scope, Tensor } from "./tensor/tensor.js";
export { Parameter } from "./tensor/parameter.js";
export { Tape } from "./tensor/tape.js";
export type { Input } from "./tensor/op.js";
export * as ops from "./tensor/ops/index.js";

export { trainBpe } from "./tokenizer/bpe.js";
export { loadModel, loadModels, saveModel } from "./model/checkpoint.js";
export type { ModelConfig, RopeScaling } from "./model/config.js";
export { generate, requestsFor, type Completion, type Request, type SamplingOptions } from "./model/generate.js";
export { LORA_TARGETS, type Lora, type LoraOptions, type LoraTarget } from "./model/lora.js";
export { saveAdapter } from "./model/peft.js";
export { Tokenizer } from "./tokenizer/tokenizer.js";
export { pack, Transformer, type Packed } from "./model/transformer.js";

export { krippendorff } from "./data/agreement.js";
export { Annotator, sentiment } from "./data/annotator.js";
export { readCompletions, writeCompletions, type CompletionRow } from "./data/completions.js";
export { label, rank } from "./data/labels.js";
export { calibration, distinctN, repetition, winRate } from "./data/metrics.js";
export {
  readComparisons,
  readDemonstrations,
  readPrompts,
  type ComparisonRow,
  type PreferenceRow,
  type RankingRow,
} from "./data/preferences.js";

export { klController, type KlController } from "./rlhf/reward/controller.js";
export { packEpisodes, packWhole, type Episode } from "./rlhf/batch/episode.js";
export { bitsPerByte, klPerCompletion } from "./rlhf/measure/evaluate.js";
export { fullKl, logps, scores, values } from "./rlhf/measure/logp.js";
export { AdamW, learningRateAt, type AdamWOptions, type Schedule } from "./rlhf/learn/optimizer.js";
export { ppo, ppoState, type PpoConfig, type PpoMetrics, type PpoModels } from "./rlhf/policy/ppo.js";
export {
  preferences,
  probability,
  ranking,
  rewardModel,
  type Comparison,
  type RewardConfig,
} from "./rlhf/reward/model.js";
export { type RewardFunction } from "./rlhf/reward/criteria.js";
export { sft, type SftConfig } from "./rlhf/offline/sft.js";
export { itemBatches, textBatches, windows } from "./rlhf/batch/order.js";
export { accumulate, microBatches } from "./rlhf/learn/update.js";

// What the above mention.
export type { DeviceMemory, Placed } from "./device/device.js";
export type { LawMath, NativeArgument } from "./device/native.js";
export type { Argument, Dim, Dtype, OpSpec } from "./device/ops.js";
export type { RandomState } from "./device/philox.js";
export type { Data, Owner } from "./tensor/tensor.js";
export type { BpeOptions } from "./tokenizer/bpe.js";
export type { ChatTemplate, Message } from "./tokenizer/chat.js";
export type { Step } from "./tokenizer/pipeline.js";
export type { AddedToken, TokenizerConfig, TokenizerFiles, TokenizerJson, TokenStream } from "./tokenizer/tokenizer.js";
export type { Attend, HiddenOptions } from "./model/transformer.js";
export type { Judgement } from "./data/annotator.js";
export type { Candidates } from "./data/labels.js";
export type { Calibration, WinRate } from "./data/metrics.js";
export type { Chat, CompletedRow, DemonstrationRow, PromptRow } from "./data/preferences.js";
export type { Indexed } from "./data/spool.js";
export type { Group, Scored } from "./rlhf/batch/episode.js";
export type { TokenLogps } from "./rlhf/measure/logp.js";
export type { Moment } from "./rlhf/learn/optimizer.js";
export type { PpoState, RunningMoments } from "./rlhf/policy/ppo.js";
export type { RewardMetrics } from "./rlhf/reward/model.js";
export type { SftMetrics } from "./rlhf/offline/sft.js";
export type { Tokens } from "./rlhf/batch/order.js";
