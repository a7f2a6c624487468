import { z } from "zod";
import { typeError } from "../../device/errors.js";
import type { Request } from "../../model/generate.js";
import type { Transformer } from "../../model/transformer.js";
import type { Episode } from "../batch/episode.js";
import { Learner } from "../learn/learner.js";
import { setRefLogp } from "../measure/logp.js";
import { setValues } from "../measure/score.js";
import { atLeast0, limit, positive, resolve, share } from "../options.js";
import type { Reward } from "../reward/criteria.js";
import { klController, RunningMoments, shapeScores } from "../reward/shape.js";
import { explainedVariance, setGae, setRewards } from "./advantages.js";
import { epochs, joined } from "./learn.js";
import { policyStep, valueStep } from "./loss.js";
import { policyOptions } from "./options.js";
import { rollout } from "./rollout.js";

/** The options of PPO. @hidden */
export const ppoOptions = z.strictObject({
  ...policyOptions,
  valueLearningRate: positive.default(5e-4).describe("the critic's highest learning rate"),
  klCoef: atLeast0.default(0.17).describe("coefficient of the KL to the base model in the reward, per nat"),
  klController: z.enum(["fixed", "adaptive"]).default("fixed").describe("adaptive steers klCoef toward klTarget"),
  klTarget: positive.default(6).describe("nats per completion that the adaptive controller aims at"),
  klHorizon: positive.default(10000).describe("completions over which it adapts"),
  klEstimator: z.enum(["k1", "abs", "k2", "k3"]).default("k1").describe("estimator of the KL in the reward"),
  gamma: share.default(1).describe("discount of a token's successor"),
  lambda: share.default(0.95).describe("GAE's, between one-step differences (0) and whole returns (1)"),
  valueClip: limit.default(0.2).describe("the value is clipped to the rollout's +- this; .inf is off"),
  ptxCoef: atLeast0.default(0).describe("coefficient of the pretraining mix (PPO-ptx)"),
  whitenAdvantages: z.boolean().default(true).describe("over the update, to mean 0 and deviation 1, as in TRL"),
  whitenRewards: z.boolean().default(false).describe("over the update, to deviation 1; their mean stays"),
});

/** Options of PPO; `rlhf config` lists them with their defaults. */
export type PpoOptions = z.input<typeof ppoOptions>;

/** The four models of PPO. */
export interface PpoModels {
  /** Samples completions and is trained. */
  policy: Transformer;
  /** The frozen model that the policy is kept near. */
  reference: Transformer;
  /** Scores whole completions: a frozen reward model, or functions. */
  reward: Reward;
  /** Gives the value before each token and is trained. */
  critic: Transformer;
}

/** What an update of PPO tells. */
export interface PpoMetrics {
  /** Counted from 1. */
  step: number;
  /** Mean score of the reward. */
  reward: number;
  /** Mean over completions of the summed KL estimate to the reference, nats. */
  kl: number;
  /** What a nat of KL cost in this update. */
  klCoef: number;
  /** Mean entropy over the tokens of the last epoch, nats. */
  entropy: number;
  /** Share of the tokens of the last epoch whose ratio was clipped. */
  clipFraction: number;
  /** KL (k3) to the rollout policy over the last epoch, nats per token. */
  approxKl: number;
  /** The policy's loss over the last epoch. */
  policyLoss: number;
  /** The critic's loss over the last epoch. */
  valueLoss: number;
  /** Share of the returns' variance that the values explain. */
  explainedVariance: number;
  /** Mean tokens of a completion. */
  length: number;
  /** Share of the completions that ended with a stop id. */
  stopped: number;
  /** Completions that had no score and were left out. */
  masked: number;
  /** Norm of the policy's gradient in the last step, before clipping. */
  gradientNorm: number;
  /** Norm of the critic's gradient in the last step, before clipping. */
  valueGradientNorm: number;
  /** The policy's learning rate in this update. */
  learningRate: number;
  /** Passes made: fewer where targetKl ended them. */
  epochs: number;
  /** Tokens of the completions. */
  tokens: number;
}

/** The optimizers and counters of PPO, for `ppo` to begin or go on with. */
export function ppoLearner(
  { policy, critic }: Pick<PpoModels, "policy" | "critic">,
  options: PpoOptions = {},
): Learner {
  const o = resolve("ppo", ppoOptions, options);
  return new Learner({ policy, critic }, { ...o, steps: o.updates }, { critic: o.valueLearningRate });
}

/**
 * Proximal policy optimisation for language models (Ouyang et al. 2022; Huang et al. 2024, the N+ details).
 * One update per iteration, then its metrics.
 *
 * @param prompts     the requests of an update, counted from 0
 * @param options     `PpoOptions`; what is left out has its default
 * @param given       a learner, which goes on where it stands; without one, the loop has its own
 * @param pretraining the pretraining batch of a policy step, counted from 0, where ptxCoef is above 0
 * @throws RangeError `EMPTY` for an update without prompts
 * @throws TypeError `ARGUMENT` for an unknown option, or ptxCoef above 0 without pretraining
 * @throws RangeError `NAN` for a loss, gradient or measurement that is not finite, TypeError `REWARD` with the reward
 *   function's error; both carry the offending `batch`. TypeError `RATIO` if a ratio is not 1 before the first step
 */
export async function* ppo(
  models: PpoModels,
  prompts: (update: number) => readonly Request[],
  options: PpoOptions = {},
  given?: Learner,
  pretraining?: (step: number) => readonly Episode[],
): AsyncGenerator<PpoMetrics> {
  const o = resolve("ppo", ppoOptions, options);
  if (o.ptxCoef > 0 && !pretraining)
    throw typeError("ARGUMENT", `ppo: ptxCoef is ${o.ptxCoef}, which needs batches of pretraining; there are none`);
  const { policy, reference, reward, critic } = models;
  using own = given ? undefined : ppoLearner(models, options);
  const learner = given ?? own!;
  const { controller, moments } = learner.carry({ controller: klController(o), moments: new RunningMoments() });
  if (o.weights === "bf16") for (const matrix of policy.matrices) matrix.round();
  for (const update of learner.rounds()) {
    using batch = await rollout(policy, reward, prompts(update), o, update); // their log-probs are the old log-probs
    setRefLogp(batch, reference, o);
    setValues(batch, critic);
    for (const measured of ["refLogp", "values"] as const) await batch.finite(measured, update + 1);
    const klCoef = controller.coef;
    setRewards(batch, shapeScores(batch.scores, batch.completions, o, moments), klCoef, o);
    setGae(batch, o);
    const learned = await epochs(batch, update, o, async (minibatch) => {
      const mix = o.ptxCoef > 0 && { ...o, episodes: pretraining!(learner.optimizers.policy.steps), coef: o.ptxCoef };
      const policyFigures = await policyStep(learner, policy, minibatch, o, mix || undefined);
      const valueFigures = await valueStep(learner, critic, minibatch, o);
      return joined(policyFigures, valueFigures);
    });
    const kl = (await batch.moments(batch.get("kl"))).sum / batch.size;
    controller.observe(kl, batch.size);
    const figures = {
      kl,
      klCoef,
      learningRate: learner.learningRate("policy"),
      explainedVariance: await explainedVariance(batch),
    };
    yield learner.endRound({ ...batch.metrics, ...learned, ...figures } as Omit<PpoMetrics, "step">);
  }
}
