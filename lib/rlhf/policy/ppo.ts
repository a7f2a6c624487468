import { rangeError, typeError } from "../../device/errors.js";
import { Random } from "../../device/philox.js";
import { generate, type Completion, type Request } from "../../model/generate.js";
import type { Transformer } from "../../model/transformer.js";
import * as ops from "../../tensor/ops/index.js";
import { run } from "../../tensor/op.js";
import type { Aggregation, KlEstimator } from "../../tensor/ops/policy_loss.js";
import { scope, Tensor } from "../../tensor/tensor.js";
import { klController, type KlController } from "../reward/controller.js";
import { concat, packEpisodes, promptGroups, split, type Episode } from "../batch/episode.js";
import { logps, scoreOf, values } from "../measure/logp.js";
import { AdamW, learningRateAt, type AdamWOptions, type Schedule } from "../learn/optimizer.js";
import { scored, type RewardFunction } from "../reward/criteria.js";
import { nll, tokensIn } from "../offline/sft.js";
import { accumulate, allFinite, finite, stepOn } from "../learn/update.js";

/** Proximal policy optimisation for language models: Ouyang et al. 2022, Huang et al. 2024 (the N+ details). */
export interface PpoConfig extends Omit<Schedule, "steps">, AdamWOptions {
  /** Of sampling and of the order of the minibatches: a whole number from 0 to 2^32 - 1. */
  seed: number;
  /** Rounds of sampling and learning. */
  updates: number;
  /** Passes over the completions of an update. */
  epochs: number;
  /** Optimizer steps of a pass; as many as there are prompts, where there are fewer. A prompt's completions stay in one. */
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
  /** 0 is off, the default. */
  topK?: number;
  /** 1 is off, the default. */
  topP?: number;
  /** 0 is off, the default. */
  minP?: number;
  /** A completion ends with one of these ids. */
  stop?: readonly number[];
  /** Coefficient of the KL to the reference in the reward, per nat. */
  klCoef: number;
  /** `adaptive` steers klCoef so that the KL comes to klTarget (Ziegler et al. 2019). */
  klController: "fixed" | "adaptive";
  /** adaptive: nats per completion that it aims at. */
  klTarget?: number;
  /** adaptive: completions over which it adapts. */
  klHorizon?: number;
  /** Of the KL in the reward. */
  klEstimator: KlEstimator;
  /** Discount of a token's successor. */
  gamma: number;
  /** GAE's, between one-step differences (0) and whole returns (1). */
  lambda: number;
  /** The ratio is clipped from below to 1 - this. */
  clipRatioLow: number;
  /** The ratio is clipped from above to 1 + this. */
  clipRatioHigh: number;
  /** Dual clip, as in PolicyLossOptions; Infinity is off, the default. */
  clipRatioC?: number;
  /** logp - oldLogp is clamped to +- this, 20 by default. */
  logRatioClamp?: number;
  /** How tokens become one loss, the value's too. */
  aggregation: Aggregation;
  /** The value is clipped to the rollout's +- this; Infinity is off. */
  valueClip: number;
  /** The loss has -entropyCoef entropy. */
  entropyCoef: number;
  /** Coefficient of the pretraining mix (PPO-ptx); it needs `pretraining` batches. */
  ptxCoef: number;
  /** Over the update, to mean 0 and deviation 1, as in TRL. */
  whitenAdvantages: boolean;
  /** Over the update, to deviation 1; their mean stays. */
  whitenRewards: boolean;
  /** Scores are divided by their running deviation, after their running mean is taken off. */
  rewardNormalise: boolean;
  /** Scores are clipped to +- this after that; Infinity is off. */
  rewardClip: number;
  /** Taken off the score of a completion that did not stop by itself. */
  missingEosPenalty: number;
  /** A score that cannot be had, or is not finite, stops the run, or its completion is left out of the update and counted (`masked`). */
  rewardFailure?: "stop" | "mask";
  /** An update stops early when its mean KL to the rollout policy (approxKl) exceeds this; Infinity is off. */
  targetKl: number;
  /** bf16: the policy samples and learns with weights that are rounded to it, and decodes in less time; the optimizer keeps f32. */
  weights?: "f32" | "bf16";
}

/** The four models of PPO; the reward may be a function. */
export interface PpoModels {
  /** Samples and is trained. */
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
  /** The policy's optimizer. */
  policy: AdamW;
  /** The critic's. */
  critic: AdamW;
  /** Of klCoef. */
  controller: KlController;
  /** Of the scores so far, for rewardNormalise. */
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
  /** What the KL counted in this update, per nat. */
  klCoef: number;
  /** Mean over the tokens of the last epoch, whatever the aggregation, nats; the next two are too. */
  entropy: number;
  /** Share of the tokens whose ratio was clipped. */
  clipFraction: number;
  /** KL (k3) to the rollout policy, nats. */
  approxKl: number;
  /** As aggregated, mean over the completions of the last epoch; so is the value's. */
  policyLoss: number;
  /** Of the critic, before any scale. */
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
  /** The same of the critic. */
  valueGradientNorm: number;
  /** Of the policy in this update. */
  learningRate: number;
  /** Passes made, fewer where targetKl ended them. */
  epochs: number;
  /** Tokens of the completions. */
  tokens: number;
}

/** What an update learns from: a completion with everything that was measured before the first step. */
interface Rollout extends Episode {
  /** Of the request. */
  index: number;
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
 * @param given       a state, which goes on where it stands; without one, the loop has its own
 * @param pretraining the pretraining batch of a minibatch, by the policy's optimizer steps so far, where ptxCoef > 0
 * @throws RangeError `EMPTY` for an update without prompts, TypeError `ARGUMENT` where ptxCoef is above 0 and there is no pretraining
 * @throws RangeError `NAN` for a loss, gradient or measurement that is not finite, TypeError `REWARD` with the reward function's error (both carry
 *   the offending `batch`); TypeError `RATIO` if a ratio is not 1 before the first step
 */
export async function* ppo(
  models: PpoModels,
  prompts: (update: number) => readonly Request[],
  config: PpoConfig,
  given?: PpoState,
  pretraining?: (step: number) => readonly Episode[],
): AsyncGenerator<PpoMetrics> {
  const { policy, reference, reward, critic } = models;
  const state = given ?? ppoState(models, config);
  using _policy = given ? undefined : state.policy; // freed with the loop, as what is given is not
  using _critic = given ? undefined : state.critic;
  if (config.ptxCoef > 0 && !pretraining)
    throw typeError(
      "ARGUMENT",
      `ppo: ptxCoef is ${config.ptxCoef}, which needs batches of pretraining; there are none`,
    );
  if (config.weights === "bf16") for (const matrix of policy.matrices) matrix.round();
  for (; state.updates < config.updates;) {
    const update = state.updates;
    const learningRate = learningRateAt(update, { ...config, steps: config.updates });
    const valueLearningRate = learningRateAt(update, {
      ...config,
      learningRate: config.valueLearningRate ?? config.learningRate,
      steps: config.updates,
    });

    const requests = prompts(update);
    if (requests.length === 0) throw rangeError("EMPTY", `ppo: update ${update + 1} has no prompts`);
    const sampled = await generate(policy, requests, { ...config, update }); // their log-probs are the old log-probs
    const { completions, rawScores, masked } = await scored(reward, sampled, config, update + 1);
    const refLogp = (await logps(reference, completions, config)).logp;
    const value = await values(critic, completions, config);
    completions.forEach((completion, i) => {
      const measured = { ...completion, refLogp: refLogp[i], values: value[i] };
      for (const name of ["logp", "refLogp", "values"] as const)
        allFinite(`${name} of completion ${i}`, measured[name], update + 1, [measured]);
    });
    const score = shapeScores(rawScores, completions, config, state.moments);
    const { rollouts, kl } = await advantages(
      policy,
      completions,
      refLogp,
      value,
      score,
      state.controller.coef,
      config,
    );

    const groups = requestGroups(rollouts); // a prompt's completions stay in one minibatch
    const [allTokens, { minibatches: m }] = [tokensIn(rollouts), config];

    const metrics = {
      policyLoss: 0,
      entropy: 0,
      clipFraction: 0,
      approxKl: 0,
      valueLoss: 0,
      gradientNorm: 0,
      valueGradientNorm: 0,
      epochs: 0,
    };
    for (let epoch = 0; epoch < config.epochs && !(metrics.approxKl > config.targetKl); epoch++) {
      Object.assign(metrics, {
        policyLoss: 0,
        entropy: 0,
        clipFraction: 0,
        approxKl: 0,
        valueLoss: 0,
        epochs: epoch + 1,
      });
      const order = new Random(config.seed, SHUFFLE_STREAM, update, epoch).shuffle(groups.map((_, i) => i));
      const bounds = Array.from({ length: m + 1 }, (_, i) => Math.floor((i * order.length) / m));
      const parts = bounds.slice(1).flatMap((end, i) => (end > bounds[i] ? [order.slice(bounds[i], end)] : []));
      for (const [step, indices] of parts.entries()) {
        const minibatch = indices.map((i) => groups[i]);
        const batch = minibatch.flat();
        const mix = config.ptxCoef > 0 ? pretraining!(state.policy.steps) : [];
        const stats = await stepOn(batch, policyStep(policy, minibatch, mix, config, state.policy, learningRate));
        const valueStats = await stepOn(batch, valueStep(critic, minibatch, config, state.critic, valueLearningRate));
        if (epoch === 0 && step === 0 && stats.moved > 0)
          throw typeError(
            "RATIO",
            `ppo: update ${update}: ${stats.moved} of ${stats.tokens} ratios are not 1 before the first step; the sampler and the trainer disagree`,
          );
        const [share, tokenShare] = [batch.length / rollouts.length, stats.tokens / allTokens];
        metrics.policyLoss += finite("the policy loss", stats.loss, update + 1, batch) * share;
        metrics.entropy += stats.entropy * tokenShare;
        metrics.clipFraction += stats.clipped * tokenShare;
        metrics.approxKl += stats.k3 * tokenShare;
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
      explainedVariance: explainedVariance(
        concat(rollouts.map((r) => r.values)),
        concat(rollouts.map((r) => r.returns)),
      ),
      length: tokensIn(completions) / completions.length,
      stopped: completions.filter((c) => c.stopped).length / completions.length,
      masked,
      learningRate,
      tokens: kl.length,
    };
  }
}

/** The scores that the policy is trained on: normalised, clipped, less the penalty for not ending. */
function shapeScores(
  raw: Float32Array,
  completions: readonly Completion[],
  config: PpoConfig,
  moments: RunningMoments,
): Float32Array {
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
    let { rewards, kl } = run("tokenRewards", {
      logp,
      refLogp: on(refLogp),
      scores: score,
      cuSeqlens: cuRows,
      klCoef,
      estimator: config.klEstimator,
    });
    if (config.whitenRewards) rewards = ops.whiten(rewards, cuRows, { shiftMean: false, form: "trl" });
    const { advantages, returns } = ops.gae(rewards, on(value), cuRows, { gamma: config.gamma, lambda: config.lambda });
    return {
      kl,
      returns,
      advantages: config.whitenAdvantages ? ops.whiten(advantages, cuRows, { form: "trl" }) : advantages,
    };
  });
  const [kl, advantage, returns] = (await Promise.all([
    made.kl.read(),
    made.advantages.read(),
    made.returns.read(),
  ])) as Float32Array[];
  for (const tensor of Object.values(made)) tensor.dispose();
  const [advantageOf, returnsOf] = [split(advantage, cuRows), split(returns, cuRows)];
  const rollouts = completions.map(({ index, prompt, completion, logp }, b) => ({
    index,
    prompt,
    completion,
    logp,
    values: value[b],
    advantages: advantageOf[b],
    returns: returnsOf[b],
  }));
  return { rollouts, kl };
}

/** Completions that follow one another with one prompt and one request index: an equal prompt that was asked again is another group. */
const requestGroups = (rollouts: readonly Rollout[]) =>
  promptGroups(rollouts).flatMap((same) => {
    const starts = same.flatMap(({ index }, i) => (i === 0 || index !== same[i - 1].index ? [i] : []));
    return starts.map((start, i) => same.slice(start, starts[i + 1]));
  });

function denominatorOf(rollouts: readonly Rollout[], { aggregation, maxTokens }: PpoConfig): number {
  if (aggregation === "token-mean") return tokensIn(rollouts);
  return aggregation === "seq-mean-token-sum-norm" ? rollouts.length * maxTokens : rollouts.length;
}

/** The units of a minibatch's micro-batches: groups of one prompt, or single rollouts. */
const unitsOf = (minibatch: readonly Rollout[][], { sharePrompts = true }: PpoConfig) =>
  sharePrompts ? minibatch : promptGroups(minibatch.flat(), false);

async function policyStep(
  policy: Transformer,
  minibatch: readonly Rollout[][],
  mix: readonly Episode[],
  config: PpoConfig,
  optimizer: AdamW,
  learningRate: number,
) {
  const { temperature, clipRatioLow, clipRatioHigh, clipRatioC, logRatioClamp, aggregation, entropyCoef } = config;
  const denominator = denominatorOf(minibatch.flat(), config);
  using stats = Tensor.from(new Float64Array(12), [12], policy.device);
  using tokenStats = Tensor.from(new Float64Array(12), [12], policy.device);
  const isTokenMean = config.aggregation === "token-mean";
  accumulate(unitsOf(minibatch, config), config.microBatch, (part) => {
    const batch = packEpisodes(part);
    const rollouts = part.flat();
    const { hidden, rows } = policy.scored(batch, config);
    const [oldLogp, advantages] = (["logp", "advantages"] as const).map((name) => concat(rollouts.map((r) => r[name])));
    const options = {
      clipRatioLow,
      clipRatioHigh,
      clipRatioC,
      logRatioClamp,
      aggregation,
      entropyCoef,
      cuSeqlens: batch.cuRows,
    };
    const { loss, logp, entropy } = ops.linearPolicyLoss(hidden, policy.head, rows, batch.y, oldLogp, advantages, {
      ...options,
      temperature,
      denominator,
      stats,
    });
    if (!isTokenMean)
      ops.policyLoss(logp, oldLogp, advantages, {
        ...options,
        entropy,
        aggregation: "token-mean",
        denominator: tokensIn(minibatch.flat()),
        stats: tokenStats,
      });
    return loss;
  });
  using ptxStats = Tensor.from(new Float64Array(12), [12], policy.device);
  const { ptxCoef: scale, recompute } = config;
  if (mix.length > 0)
    accumulate(
      promptGroups(mix, config.sharePrompts),
      config.microBatch,
      (part) => nll(policy, part, tokensIn(mix), ptxStats, { scale, recompute }),
      1,
    );
  const norm = await optimizer.step(learningRate);
  const [, loss] = await stats.read();
  const [, , , entropy, clipped, , , k3, , tokens, moved] = await (isTokenMean ? stats : tokenStats).read();
  return { loss, entropy, clipped, k3, tokens, moved, norm };
}

async function valueStep(
  critic: Transformer,
  minibatch: readonly Rollout[][],
  config: PpoConfig,
  optimizer: AdamW,
  learningRate: number,
) {
  const denominator = denominatorOf(minibatch.flat(), config);
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
  constructor(
    /** Numbers observed. */
    public count = 0,
    /** Theirs. */
    public mean = 0,
    /** Sum of the squared differences from the mean. */
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
