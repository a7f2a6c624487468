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
export { averageModels, mergeAdapter, withAdapter } from "./model/adapt.js";
export { loadModel, loadModels, saveModel } from "./model/checkpoint.js";
export type { ModelConfig, RopeScaling } from "./model/config.js";
export { generate, requestsFor, type Completion, type Request } from "./model/generate.js";
export { LORA_TARGETS, type Lora, type LoraOptions, type LoraTarget } from "./model/lora.js";
export { packSequences, type Packed } from "./model/packed.js";
export { saveAdapter } from "./model/peft.js";
export type { SamplingOptions } from "./model/sampling.js";
export { Tokenizer } from "./tokenizer/tokenizer.js";
export { Transformer } from "./model/transformer.js";

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

export { algorithms, type Algorithm, type AlgorithmName } from "./rlhf/algorithms.js";
export { Batch } from "./rlhf/batch/batch.js";
export { ranking, type Comparison } from "./rlhf/batch/comparison.js";
export { type Episode } from "./rlhf/batch/episode.js";
export { itemBatches, textBatches, windows } from "./rlhf/batch/order.js";
export { packEpisodes, packWhole } from "./rlhf/batch/pack.js";
export { Comparisons, Demonstrations, Documents, Prompts } from "./rlhf/batch/rows.js";
export { microBatches } from "./rlhf/batch/units.js";
export { Learner } from "./rlhf/learn/learner.js";
export { AdamW, learningRateAt, type AdamWOptions, type Schedule } from "./rlhf/learn/optimizer.js";
export { accumulate } from "./rlhf/learn/update.js";
export { bitsPerByte, klPerCompletion } from "./rlhf/measure/evaluate.js";
export { fullKl, logps } from "./rlhf/measure/logp.js";
export { scores, values } from "./rlhf/measure/score.js";
export { sft, sftLearner, type SftOptions } from "./rlhf/offline/sft.js";
export { groupAdvantages, type GroupNormalisation } from "./rlhf/policy/advantages.js";
export { grpo, grpoLearner, type GrpoMetrics, type GrpoModels, type GrpoOptions } from "./rlhf/policy/grpo.js";
export { ppo, ppoLearner, type PpoMetrics, type PpoModels, type PpoOptions } from "./rlhf/policy/ppo.js";
export { TextRewards, type Reward, type RewardFunction, type TextReward } from "./rlhf/reward/criteria.js";
export { judge } from "./rlhf/reward/judge.js";
export { preferences, probability, rewardLearner, rewardModel, type RewardOptions } from "./rlhf/reward/model.js";
export { klController, type KlController } from "./rlhf/reward/shape.js";

// What the above mention.
export type { DeviceMemory, Placed } from "./device/device.js";
export type { LawMath, NativeArgument } from "./device/native.js";
export type { Argument, Dim, Dtype, OpSpec } from "./device/ops.js";
export type { RandomState } from "./device/philox.js";
export type { Data, Owner } from "./tensor/tensor.js";
export type { BpeOptions } from "./tokenizer/bpe.js";
export type { ChatTemplate, Message } from "./tokenizer/chat.js";
export type { TokenizerRule } from "./tokenizer/pipeline.js";
export type { AddedToken, TokenizerConfig, TokenizerFiles, TokenizerJson, TokenStream } from "./tokenizer/tokenizer.js";
export type { Attend } from "./model/block.js";
export type { HiddenOptions } from "./model/transformer.js";
export type { Weights } from "./model/weights.js";
export type { Judgement } from "./data/annotator.js";
export type { Candidates } from "./data/labels.js";
export type { Calibration, WinRate } from "./data/metrics.js";
export type { Chat, CompletedRow, DemonstrationRow, PromptRow } from "./data/preferences.js";
export type { Indexed } from "./data/spool.js";
export type { Chart, Material, Materials, Options, Role, Rule, UsedWhen } from "./rlhf/algorithms.js";
export type { Column, Minibatch, Moments, Part, PlacedCompletion, RolloutMetrics } from "./rlhf/batch/batch.js";
export type { Group } from "./rlhf/batch/episode.js";
export type { Scored } from "./rlhf/batch/pack.js";
export type { TokenLogps } from "./rlhf/measure/logp.js";
export type { Carried, LearnerState, Round } from "./rlhf/learn/learner.js";
export type { Moment } from "./rlhf/learn/optimizer.js";
export type { GroupAdvantages } from "./rlhf/policy/advantages.js";
export type { RewardJudgement } from "./rlhf/reward/judge.js";
export type { Prompt } from "./rlhf/batch/rows.js";
export type { Source } from "./data/rows.js";
export { grpoOptions } from "./rlhf/policy/grpo.js";
export { ppoOptions } from "./rlhf/policy/ppo.js";
export { rewardOptions } from "./rlhf/reward/model.js";
export { sftOptions } from "./rlhf/offline/sft.js";
export type { OptionList } from "./rlhf/options.js";
export type { RewardMetrics } from "./rlhf/reward/model.js";
export type { SftMetrics } from "./rlhf/offline/sft.js";
export type { Tokens } from "./rlhf/batch/order.js";
