import { z } from "zod";
import { typeError } from "../../device/errors.js";
import type { Request } from "../../model/generate.js";
import type { Transformer } from "../../model/transformer.js";
import { Learner } from "../learn/learner.js";
import { setRefLogp } from "../measure/logp.js";
import { atLeast0, resolve } from "../options.js";
import type { Reward } from "../reward/criteria.js";
import { RunningMoments, shapeScores } from "../reward/shape.js";
import { groupAdvantages, setRewards } from "./advantages.js";
import { epochs } from "./learn.js";
import { policyStep } from "./loss.js";
import { policyOptions } from "./options.js";
import { rollout } from "./rollout.js";

/** The options of GRPO. @hidden */
export const grpoOptions = z.strictObject({
  ...policyOptions,
  klCoef: atLeast0.default(0.2).describe("coefficient of the KL to the base model in the loss, per nat and token"),
  klEstimator: z.enum(["k1", "k2", "k3"]).default("k3").describe("estimator of the KL in the loss"),
  normalisation: z
    .enum(["trl", "verl", "openrlhf"])
    .default("trl")
    .describe(
      "how a group's scores are normalised: eps 1e-4 (TRL), 1e-6 (verl) or 1e-9 (OpenRLHF) beside the deviation",
    ),
});

/** Options of GRPO; `rlhf config` lists them with their defaults. */
export type GrpoOptions = z.input<typeof grpoOptions>;

/** The models of GRPO. */
export interface GrpoModels {
  /** Samples completions and is trained. */
  policy: Transformer;
  /** The frozen model that the policy is kept near, where klCoef is above 0. */
  reference?: Transformer;
  /** Scores whole completions: a frozen reward model, or functions. */
  reward: Reward;
}

/** What an update of GRPO tells. */
export interface GrpoMetrics {
  /** Counted from 1. */
  step: number;
  /** Mean score of the reward. */
  reward: number;
  /** Mean over completions of the summed k1 estimate of the KL to the reference, nats. Absent where klCoef is 0. */
  kl?: number;
  /** Share of the groups whose completions all have the same score: nothing is learnt from them. */
  groupsWithoutVariance: number;
  /** Mean entropy over the tokens of the last epoch, nats. */
  entropy: number;
  /** Share of the tokens of the last epoch whose ratio was clipped. */
  clipFraction: number;
  /** KL (k3) to the rollout policy over the last epoch, nats per token. */
  approxKl: number;
  /** The policy's loss over the last epoch, without the KL. */
  policyLoss: number;
  /** The KL's part of the loss over the last epoch. */
  klLoss?: number;
  /** Mean tokens of a completion. */
  length: number;
  /** Share of the completions that ended with a stop id. */
  stopped: number;
  /** Completions that had no score and were left out. */
  masked: number;
  /** Norm of the policy's gradient in the last step, before clipping. */
  gradientNorm: number;
  /** The learning rate in this update. */
  learningRate: number;
  /** Passes made: fewer where targetKl ended them. */
  epochs: number;
  /** Tokens of the completions. */
  tokens: number;
}

/** The optimizer and the counters of GRPO, for `grpo` to begin or go on with. */
export function grpoLearner({ policy }: Pick<GrpoModels, "policy">, options: GrpoOptions = {}): Learner {
  const o = resolve("grpo", grpoOptions, options);
  return new Learner({ policy }, { ...o, steps: o.updates });
}

/**
 * Group relative policy optimisation (Shao et al. 2024): PPO's clipped loss. The group's mean stands in place of a
 * critic, and the KL to the reference is in the loss.
 *
 * @param prompts the requests of an update, counted from 0: several completions of each prompt are a group
 * @param options `GrpoOptions`; what is left out has its default
 * @param given   a learner, which goes on where it stands; without one, the loop has its own
 * @throws RangeError `EMPTY` for an update without prompts or a group of one, TypeError `ARGUMENT` for klCoef above 0
 *   without a reference. Other errors are those of `ppo`
 */
export async function* grpo(
  models: GrpoModels,
  prompts: (update: number) => readonly Request[],
  options: GrpoOptions = {},
  given?: Learner,
): AsyncGenerator<GrpoMetrics> {
  const o = resolve("grpo", grpoOptions, options);
  const { policy, reference, reward } = models;
  if (o.klCoef > 0 && !reference)
    throw typeError("ARGUMENT", `grpo: klCoef is ${o.klCoef}, which needs a reference; there is none`);
  using own = given ? undefined : grpoLearner(models, options);
  const learner = given ?? own!;
  const { moments } = learner.carry({ moments: new RunningMoments() });
  if (o.weights === "bf16") for (const matrix of policy.matrices) matrix.round();
  for (const update of learner.rounds()) {
    using batch = await rollout(policy, reward, prompts(update), o, update); // their log-probs are the old log-probs
    const scores = shapeScores(batch.scores, batch.completions, o, moments);
    const groups = batch.groups.map((group) => group.map(({ place }) => place));
    const { advantages, withoutVariance } = groupAdvantages(scores, groups, o.normalisation, batch.metrics.masked > 0);
    batch.spread("advantages", advantages);
    if (o.klCoef > 0) {
      setRefLogp(batch, reference!, o);
      await batch.finite("refLogp", update + 1);
      setRewards(batch, scores, 0, { klEstimator: "k1" }); // for the KL alone, which is told
    }
    const terms = { ...o, lossKlCoef: o.klCoef, lossKlEstimator: o.klEstimator };
    const learned = await epochs(batch, update, o, (minibatch) => policyStep(learner, policy, minibatch, terms));
    const kl = o.klCoef > 0 ? { kl: (await batch.moments(batch.get("kl"))).sum / batch.size } : {};
    const figures = { ...kl, groupsWithoutVariance: withoutVariance, learningRate: learner.learningRate("policy") };
    yield learner.endRound({ ...batch.metrics, ...learned, ...figures } as Omit<GrpoMetrics, "step">);
  }
}
