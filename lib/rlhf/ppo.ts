import { typeError } from "../device/errors.js";
import { Random } from "../device/philox.js";
import { generate, type Completion, type Request } from "../model/generate.js";
import type { Transformer } from "../model/transformer.js";
import * as ops from "../tensor/ops/index.js";
import { run } from "../tensor/op.js";
import type { Aggregation, KlEstimator } from "../tensor/ops/policyLoss.js";
import { scope, Tensor } from "../tensor/tensor.js";
import { klController, type KlController } from "./controller.js";
import { concat, packEpisodes, promptGroups, split, type Episode } from "./episode.js";
import { logps, scoreOf, values } from "./logp.js";
import { AdamW, learningRateAt, type AdamWOptions, type Schedule } from "./optimizer.js";
import { scored, type RewardFunction } from "./score.js";
import { nll, tokensIn } from "./sft.js";
import { accumulate, allFinite, finite, microBatches, stepOn } from "./update.js";

/** Proximal policy optimisation for language models: Ouyang et al. 2022, Huang et al. 2024 (the N+ details). */
export interface PpoConfig extends Omit<Schedule, "steps">, AdamWOptions {
  seed: number;
  updates: number;
  /** Passes over the completions of an update. */
  epochs: number;
  /** Optimizer steps of a pass. */
  minibatches: number;
  /** Episodes of a micro-batch; those of one prompt stay together. Bounds memory, changes no bit. */
  microBatch?: number;
  /** Backward runs each layer again instead of keeping what it computed. Bounds memory, changes no bit. */
  recompute?: boolean;
  /** Completions of one prompt share its computation: on by default. Memory and speed; gradients agree to rounding. */
  sharePrompts?: boolean;
  /** Of the critic; by default the policy's. */
  valueLearningRate?: number;
  /** Tokens of a completion at most. */
  maxTokens: number;
  /** Sampling, as in SamplingOptions; log-probs are those at the temperature over the whole vocabulary. */
  temperature: number;
  topK?: number;
  topP?: number;
  minP?: number;
  /** A completion ends with one of these ids. */
  stop?: readonly number[];
  /** Coefficient of the KL to the reference in the reward, per nat. */
  klCoef: number;
  klController: "fixed" | "adaptive";
  /** adaptive: nats per completion that it aims at. */
  klTarget?: number;
  /** adaptive: completions over which it adapts. */
  klHorizon?: number;
  /** Of the KL in the reward. */
  klEstimator: KlEstimator;
  /** Discount, and GAE's lambda. */
  gamma: number;
  lambda: number;
  /** These five as in PolicyLossOptions. */
  clipRatioLow: number;
  clipRatioHigh: number;
  clipRatioC?: number;
  logRatioClamp?: number;
  aggregation: Aggregation;
  /** The value is clipped to the rollout's +- this; Infinity is off. */
  valueClip: number;
  /** The loss has -entropyCoef entropy. */
  entropyCoef: number;
  /** Coefficient of the pretraining mix (PPO-ptx); it needs `pretraining` batches. */
  ptxCoef: number;
  /** Over the update, to mean 0 and deviation 1 (rewards: their mean stays), as in TRL. */
  whitenAdvantages: boolean;
  whitenRewards: boolean;
  /** Scores are divided by their running deviation, after their running mean is taken off. */
  rewardNormalise: boolean;
  /** Scores are clipped to +- this after that; Infinity is off. */
  rewardClip: number;
  /** Taken off the score of a completion that did not stop by itself. */
  missingEosPenalty: number;
  /** A score that cannot be had, or is not finite, stops the run, or its completion is left out of the update and counted (`masked`). */
  rewardFailure?: "stop" | "mask";
  /** An update stops early when its mean KL to the rollout policy (k3) exceeds this; Infinity is off. */
  targetKl: number;
  /** bf16: the policy samples and learns with weights that are rounded to it, at twice the speed of decoding; the optimizer keeps f32. */
  weights?: "f32" | "bf16";
}

/** The four models of PPO; the reward may be a function. */
export interface PpoModels {
  policy: Transformer;
  /** The frozen model that the policy is kept near. */
  reference: Transformer;
  /** Scores whole completions. */
  reward: Transformer | RewardFunction;
  /** Gives the value before each token; it is trained. */
  critic: Transformer;
}

/** What an update leaves for the next: with the weights, all that a checkpoint needs. */
export interface PpoState {
  policy: AdamW;
  critic: AdamW;
  controller: KlController;
  moments: RunningMoments;
  /** Updates done. */
  updates: number;
}

/** What an update tells. */
export interface PpoMetrics {
  /** Counted from 1. */
  step: number;
  /** Mean score of the reward model. */
  reward: number;
  /** Mean over completions of the summed KL estimate to the reference, nats. */
  kl: number;
  klCoef: number;
  /** Mean over tokens, nats. */
  entropy: number;
  /** Mean over the last epoch, as are the next three. */
  policyLoss: number;
  /** Share of the tokens whose ratio was clipped. */
  clipFraction: number;
  /** Mean KL (k3) to the rollout policy over the last epoch. */
  approxKl: number;
  valueLoss: number;
  /** Of the returns by the values: 1 - var(returns - values) / var(returns). */
  explainedVariance: number;
  /** Mean tokens of a completion. */
  length: number;
  /** Share of the completions that ended with a stop id. */
  stopped: number;
  /** Completions that had no score and were left out. */
  masked: number;
  /** Of the last step, before it was clipped. */
  gradientNorm: number;
  valueGradientNorm: number;
  learningRate: number;
  /** Passes made, fewer where targetKl ended them. */
  epochs: number;
  /** Tokens of the completions. */
  tokens: number;
}

/** What an update learns from: a completion with everything that was measured before the first step. */
interface Rollout extends Episode {
  completion: Int32Array;
  logp: Float32Array;
  values: Float32Array;
  advantages: Float32Array;
  returns: Float32Array;
}

/** Streams of random numbers, apart from the sampler's. */
const SHUFFLE_STREAM = 2;

/** The state before the first update. */
export function ppoState(models: PpoModels, config: PpoConfig): PpoState {
  return {
    policy: new AdamW(models.policy.trained, config),
    critic: new AdamW(models.critic.trained, config),
    controller: klController(config),
    moments: new RunningMoments(),
    updates: 0,
  };
}

/**
 * Fine-tunes the policy by PPO, one update per iteration: sample, score, advantages, a few epochs of loss and step; then its metrics.
 *
 * @param prompts     the requests of an update, counted from 0
 * @param state       goes on where it stands
 * @param pretraining the pretraining batch of a minibatch, by the policy's optimizer steps so far, where ptxCoef > 0
 * @throws RangeError `NAN` for a loss, gradient or measurement that is not finite, TypeError `REWARD` with the reward function's error (both carry
 *   the offending `batch`); TypeError `RATIO` if a ratio is not 1 before the first step
 */
export async function* ppo(
  models: PpoModels,
  prompts: (update: number) => readonly Request[],
  config: PpoConfig,
  state = ppoState(models, config),
  pretraining?: (step: number) => readonly Episode[],
): AsyncGenerator<PpoMetrics> {
  const { policy, reference, reward, critic } = models;
  if (config.weights === "bf16") for (const matrix of policy.matrices) matrix.round();
  for (; state.updates < config.updates;) {
    const update = state.updates;
    const learningRate = learningRateAt(update, { ...config, steps: config.updates });
    const valueLearningRate = learningRateAt(update, { ...config, learningRate: config.valueLearningRate ?? config.learningRate, steps: config.updates });

    const sampled = await generate(policy, prompts(update), { ...config, update }); // their log-probs are the old log-probs
    const { completions, rawScores, masked } = await scored(reward, sampled, config, update + 1);
    const refLogp = (await logps(reference, completions, config)).logp;
    const value = await values(critic, completions, config);
    completions.forEach((completion, i) => {
      const measured = { ...completion, refLogp: refLogp[i], values: value[i] };
      for (const name of ["logp", "refLogp", "values"] as const) allFinite(`${name} of completion ${i}`, measured[name], update + 1, [measured]);
    });
    const score = shapeScores(rawScores, completions, config, state.moments);
    const { rollouts, kl } = await advantages(policy, completions, refLogp, value, score, state.controller.coef, config);

    const groups = promptGroups(rollouts); // a prompt's completions stay in one minibatch

    const metrics = { policyLoss: 0, entropy: 0, clipFraction: 0, approxKl: 0, valueLoss: 0, gradientNorm: 0, valueGradientNorm: 0, epochs: 0 };
    for (let epoch = 0; epoch < config.epochs && !(metrics.approxKl > config.targetKl); epoch++) {
      Object.assign(metrics, { policyLoss: 0, entropy: 0, clipFraction: 0, approxKl: 0, valueLoss: 0, epochs: epoch + 1 });
      const order = new Random(config.seed, SHUFFLE_STREAM, update, epoch).shuffle(groups.map((_, i) => i));
      const size = Math.ceil(groups.length / config.minibatches);
      for (const [m, indices] of microBatches(order, size).entries()) {
        const minibatch = indices.map((i) => groups[i]);
        const batch = minibatch.flat();
        const mix = config.ptxCoef > 0 ? pretraining!(state.policy.steps) : [];
        const stats = await stepOn(batch, policyStep(policy, minibatch, mix, config, state.policy, learningRate));
        const valueStats = await stepOn(batch, valueStep(critic, minibatch, config, state.critic, valueLearningRate));
        if (epoch === 0 && m === 0 && stats.moved > 0)
          throw typeError(
            "RATIO",
            `ppo: update ${update}: ${stats.moved} of ${stats.tokens} ratios are not 1 before the first step; the sampler and the trainer disagree`,
          );
        const share = batch.length / rollouts.length;
        metrics.policyLoss += finite("the policy loss", stats.loss, update + 1, batch) * share;
        metrics.entropy += stats.entropy * share;
        metrics.clipFraction += stats.clipped * share;
        metrics.approxKl += stats.k3 * share;
        metrics.valueLoss += finite("the value loss", valueStats.loss, update + 1, batch) * share;
        metrics.gradientNorm = stats.norm;
        metrics.valueGradientNorm = valueStats.norm;
      }
    }

    state.updates++;
    const klPerCompletion = sum(kl) / completions.length;
    const klCoef = state.controller.coef;
    state.controller.observe(klPerCompletion, completions.length);
    yield {
      step: state.updates,
      reward: sum(rawScores) / rawScores.length,
      kl: klPerCompletion,
      klCoef,
      ...metrics,
      explainedVariance: explainedVariance(concat(rollouts.map((r) => r.values)), concat(rollouts.map((r) => r.returns))),
      length: tokensIn(completions) / completions.length,
      stopped: completions.filter((c) => c.stopped).length / completions.length,
      masked,
      learningRate,
      tokens: kl.length,
    };
  }
}

/** The scores that the policy is trained on: normalised, clipped, less the penalty for not ending. */
function shapeScores(raw: Float32Array, completions: readonly Completion[], config: PpoConfig, moments: RunningMoments): Float32Array {
  if (config.rewardNormalise) for (const score of raw) moments.observe(score);
  return raw.map((score, i) => {
    const normalised = config.rewardNormalise ? moments.normalise(score) : score;
    const clipped = Math.max(-config.rewardClip, Math.min(config.rewardClip, normalised));
    return completions[i].stopped ? clipped : clipped - config.missingEosPenalty;
  });
}

/** Rewards with the KL in them, then advantages and returns, over the whole update. */
async function advantages(
  policy: Transformer,
  completions: readonly Completion[],
  refLogp: readonly Float32Array[],
  value: readonly Float32Array[],
  score: Float32Array,
  klCoef: number,
  config: PpoConfig,
): Promise<{ rollouts: Rollout[]; kl: Float32Array }> {
  const { cuRows } = packEpisodes(completions);
  const on = (parts: readonly Float32Array[]) => Tensor.from(concat(parts), undefined, policy.device);
  const made = scope(() => {
    const logp = on(completions.map((c) => c.logp));
    let { rewards, kl } = run("tokenRewards", { logp, refLogp: on(refLogp), scores: score, cuSeqlens: cuRows, klCoef, estimator: config.klEstimator });
    if (config.whitenRewards) rewards = ops.whiten(rewards, cuRows, { shiftMean: false, form: "trl" });
    const { advantages, returns } = ops.gae(rewards, on(value), cuRows, { gamma: config.gamma, lambda: config.lambda });
    return { kl, returns, advantages: config.whitenAdvantages ? ops.whiten(advantages, cuRows, { form: "trl" }) : advantages };
  });
  const [kl, advantage, returns] = (await Promise.all([made.kl.read(), made.advantages.read(), made.returns.read()])) as Float32Array[];
  for (const tensor of Object.values(made)) tensor.dispose();
  const [advantageOf, returnsOf] = [split(advantage, cuRows), split(returns, cuRows)];
  const rollouts = completions.map(({ prompt, completion, logp }, b) => ({
    prompt,
    completion,
    logp,
    values: value[b],
    advantages: advantageOf[b],
    returns: returnsOf[b],
  }));
  return { rollouts, kl };
}

const denominatorOf = (rollouts: readonly Rollout[], aggregation: Aggregation) => (aggregation === "token-mean" ? tokensIn(rollouts) : rollouts.length);

/** The units of a minibatch's micro-batches: groups of one prompt, or single rollouts. */
const unitsOf = (minibatch: readonly Rollout[][], { sharePrompts = true }: PpoConfig) => (sharePrompts ? minibatch : promptGroups(minibatch.flat(), false));

async function policyStep(
  policy: Transformer,
  minibatch: readonly Rollout[][],
  mix: readonly Episode[],
  config: PpoConfig,
  optimizer: AdamW,
  learningRate: number,
) {
  const { temperature, clipRatioLow, clipRatioHigh, clipRatioC, logRatioClamp, aggregation, entropyCoef } = config;
  const denominator = denominatorOf(minibatch.flat(), aggregation);
  using stats = Tensor.from(new Float64Array(12), [12], policy.device);
  accumulate(unitsOf(minibatch, config), config.microBatch, (part) => {
    const batch = packEpisodes(part);
    const rollouts = part.flat();
    const { hidden, rows } = policy.scored(batch, config);
    return ops.linearPolicyLoss(hidden, policy.head, rows, batch.y, concat(rollouts.map((r) => r.logp)), concat(rollouts.map((r) => r.advantages)), {
      temperature,
      clipRatioLow,
      clipRatioHigh,
      clipRatioC,
      logRatioClamp,
      aggregation,
      entropyCoef,
      cuSeqlens: batch.cuRows,
      denominator,
      stats,
    }).loss;
  });
  using ptxStats = Tensor.from(new Float64Array(12), [12], policy.device);
  const { ptxCoef: scale, recompute } = config;
  if (mix.length > 0)
    accumulate(promptGroups(mix, config.sharePrompts), config.microBatch, (part) => nll(policy, part, tokensIn(mix), ptxStats, { scale, recompute }), 1);
  const norm = await optimizer.step(learningRate);
  const [, loss, , entropy, clipped, , , k3, , tokens, moved] = await stats.read();
  return { loss, entropy, clipped, k3, tokens, moved, norm };
}

async function valueStep(critic: Transformer, minibatch: readonly Rollout[][], config: PpoConfig, optimizer: AdamW, learningRate: number) {
  const denominator = denominatorOf(minibatch.flat(), config.aggregation);
  using stats = Tensor.from(new Float64Array(8), [8], critic.device);
  accumulate(unitsOf(minibatch, config), config.microBatch, (part) => {
    const batch = packEpisodes(part);
    const rollouts = part.flat();
    return ops.valueLoss(scoreOf(critic, batch, config), concat(rollouts.map((r) => r.returns)), {
      oldValues: concat(rollouts.map((r) => r.values)),
      clipRange: config.valueClip,
      cuSeqlens: batch.cuRows,
      aggregation: config.aggregation,
      denominator,
      stats,
    }).loss;
  });
  const norm = await optimizer.step(learningRate);
  const [loss] = await stats.read();
  return { loss, norm };
}

/** Mean and deviation of all that was observed (Welford 1962). */
export class RunningMoments {
  /** @param squares sum of the squared differences from the mean */
  constructor(
    public count = 0,
    public mean = 0,
    public squares = 0,
  ) {}
  /** Takes x in. */
  observe(x: number): void {
    this.count++;
    const delta = x - this.mean;
    this.mean += delta / this.count;
    this.squares += delta * (x - this.mean);
  }
  /** (x - mean) / (deviation + 1e-8), the deviation unbiased. */
  normalise(x: number): number {
    const deviation = this.count > 1 ? Math.sqrt(this.squares / (this.count - 1)) : 0;
    return (x - this.mean) / (deviation + 1e-8);
  }
}

const sum = (values: Float32Array) => values.reduce((a, b) => a + b, 0);

function explainedVariance(values: Float32Array, returns: Float32Array): number {
  const variance = (x: Float32Array) => {
    const mean = sum(x) / x.length;
    return x.reduce((total, v) => total + (v - mean) * (v - mean), 0) / x.length;
  };
  return 1 - variance(returns.map((r, i) => r - values[i])) / variance(returns);
}
