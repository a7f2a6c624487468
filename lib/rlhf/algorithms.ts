import type { Request } from "../model/generate.js";
import type { Transformer } from "../model/transformer.js";
import { comparisonOptions, promptOptions, textOptions } from "./batch/data.js";
import type { Comparison } from "./batch/comparison.js";
import type { Episode } from "./batch/episode.js";
import type { Learner, Round } from "./learn/learner.js";
import { sft, sftLearner, sftOptions } from "./offline/sft.js";
import { picked, whole, type OptionList } from "./options.js";
import { grpo, grpoLearner, grpoOptions, type GrpoModels } from "./policy/grpo.js";
import { ppo, ppoLearner, ppoOptions, type PpoModels } from "./policy/ppo.js";
import { rewardLearner, rewardModel, rewardOptions } from "./reward/model.js";

// The list of algorithms. From an entry come its command with the help, its section of the
// configuration with the checks, its row of `rlhf plan` and of `rlhf algorithms`, its curves in
// the report and its page of the docs.

/** What an algorithm learns from: texts, comparisons of completions, or samples for prompts. */
export type Material = "texts" | "comparisons" | "prompts";

/** The material of a loop, as its `run` takes it. */
export interface Materials {
  /** Material of an algorithm that learns from texts. */
  texts: {
    /** The episodes of a step, counted from 0. */
    batches: (step: number) => readonly Episode[];
  };
  /** Material of an algorithm that learns from comparisons. */
  comparisons: {
    /** The comparisons of a step, counted from 0. */
    batches: (step: number) => readonly Comparison[];
  };
  /** Material of an algorithm that learns from its own samples. */
  prompts: {
    /** The requests of an update, counted from 0. */
    prompts: (update: number) => readonly Request[];
    /** The pretraining batch of a policy step, counted from 0. */
    pretraining?: (step: number) => readonly Episode[];
  };
}

/** A model that an algorithm has: where it comes from, its head, and whether it is trained. */
export interface Role {
  /** The option that names it: `--model` or `--reward`. */
  from: "model" | "reward";
  /** What its head gives. A score's head is drawn where the model has none. */
  head: "logits" | "score";
  /** It learns. The rest are frozen. */
  trained?: boolean;
  /** A file of reward functions may stand in its place. */
  orFunctions?: boolean;
  /** It is there only where this holds of the options, in words. */
  when?: {
    /** Whether it is there. */
    holds: (options: Options) => boolean;
    /** When it is there, in words. */
    text: string;
  };
}

/** A picture of metrics over steps, or of one metric against another. */
export interface Chart {
  /** What stands above the picture. */
  title: string;
  /** What is drawn, and its unit. */
  about: string;
  /** Metrics that are drawn, each with its label. */
  series: [metric: string, label: string][];
  /** The metric on the other axis, in place of the step. */
  against?: [metric: string, label: string];
  /** A noisy curve gets its running average. */
  smoothed?: boolean;
}

/** The options of a section, as the configuration holds them. */
// eslint-disable-next-line typescript/no-explicit-any
export type Options = Record<string, any>;

/** An option that means something only where the others say so. Words name options in backquotes. */
export interface UsedWhen {
  /** The options that have a use only then. */
  options: string[];
  /** Whether they have a use. */
  holds: (options: Options) => boolean;
  /** Why they have none, in words. */
  because: string;
}

/** What must hold between options of the section. Words name options in backquotes. */
export interface Rule {
  /** The option that is at fault where the rule does not hold. */
  option: string;
  /** Whether the rule holds. */
  holds: (options: Options) => boolean;
  /** What the option must be, in words. */
  wanted: string;
}

/** An algorithm of the list. */
export interface Algorithm {
  /** What people call it. */
  title: string;
  /** One sentence for the command's help. */
  about: string;
  /** The paper that it is from. */
  source: string;
  /** The models by role. */
  models: Record<string, Role>;
  /** The role that is saved. */
  saves: string;
  /** What it learns from. */
  material: Material;
  /** Options of its section: each with its default, range and meaning. */
  options: OptionList;
  /** Options that mean something only beside others. */
  usedWhen: UsedWhen[];
  /** What must hold between options. */
  rules: Rule[];
  /** What a round is called. */
  rounds: "steps" | "updates";
  /** The optimizers and counters before the first round. */
  // eslint-disable-next-line typescript/no-explicit-any
  learner: (models: any, options: any) => Learner;
  /** The loop: one round per iteration. */
  // eslint-disable-next-line typescript/no-explicit-any
  run: (models: any, material: any, options: any, learner: Learner) => AsyncGenerator<Round>;
  /** Two figures of a round for the progress bar. */
  note: (metrics: Record<string, number>) => string;
  /** The curves of the report. */
  charts: Chart[];
}

/** Options that the run gives to a loop and no section has. */
const ofTheRun = { seed: true, stop: true } as const;

const samplingOptionsUsed: UsedWhen[] = [
  { options: ["topK", "topP", "minP"], holds: ({ temperature }) => temperature > 0, because: "`temperature` is 0" },
];

const policyRules: Rule[] = [
  {
    option: "samples",
    holds: ({ rolloutBatch, samples }) => rolloutBatch % samples === 0,
    wanted: "a divisor of `rolloutBatch`",
  },
  {
    option: "minibatches",
    holds: ({ minibatches, rolloutBatch, samples }) => minibatches <= rolloutBatch / samples,
    wanted: "at most the prompts of an update, `rolloutBatch` / `samples`",
  },
  { option: "temperature", holds: ({ temperature }) => temperature > 0, wanted: "above 0: it learns from samples" },
];

const policyCharts: Chart[] = [
  { title: "Reward", about: "mean score of the reward", series: [["reward", "reward"]] },
  { title: "KL", about: "to the base model, nats per completion", series: [["kl", "KL"]] },
  {
    title: "Reward against KL",
    about: "what a nat buys",
    series: [["reward", "reward"]],
    against: ["kl", "KL, nats per completion"],
  },
  { title: "Entropy", about: "of the policy, nats per token", series: [["entropy", "entropy"]] },
  {
    title: "Clip fraction",
    about: "share of tokens whose ratio was clipped",
    series: [["clipFraction", "clip fraction"]],
  },
  { title: "Length", about: "tokens per completion", series: [["length", "tokens"]] },
];

const rewardNote = ({ reward, kl }: Record<string, number>) =>
  `reward ${reward.toFixed(2)}${kl === undefined ? "" : `, KL ${kl.toFixed(1)}`}`;

const entry = (algorithm: Algorithm): Algorithm => algorithm;

/** Every algorithm by its name, which is its command's and its section's. */
export const algorithms = {
  /** Learns to continue texts, or to answer as demonstrations do. */
  sft: entry({
    title: "Supervised fine-tuning",
    about: "train a language model on text, from nothing or from a model",
    source: "Ouyang et al. 2022, arXiv:2203.02155, step 1",
    models: { model: { from: "model", head: "logits", trained: true } },
    saves: "model",
    material: "texts",
    options: sftOptions.extend(textOptions),
    usedWhen: [],
    rules: [],
    rounds: "steps",
    learner: ({ model }: { model: Transformer }, options) => sftLearner(model, picked(sftOptions, options)),
    run: ({ model }, { batches }: Materials["texts"], options, learner) =>
      sft(model, batches, picked(sftOptions, options), learner),
    note: ({ loss }) => `loss ${loss.toFixed(2)}`,
    charts: [{ title: "Loss", about: "nats per token", series: [["loss", "loss"]], smoothed: true }],
  }),
  /** Learns a score from comparisons. */
  reward: entry({
    title: "Reward model",
    about: "train a reward model on comparisons",
    source: "Christiano et al. 2017, arXiv:1706.03741; Ouyang et al. 2022, arXiv:2203.02155, step 2",
    models: { model: { from: "model", head: "score", trained: true } },
    saves: "model",
    material: "comparisons",
    options: rewardOptions.omit({ steps: true }).extend(comparisonOptions),
    usedWhen: [],
    rules: [],
    rounds: "steps",
    learner: ({ model }: { model: Transformer }, options) => rewardLearner(model, picked(rewardOptions, options)),
    run: ({ model }, { batches }: Materials["comparisons"], options, learner) =>
      rewardModel(model, batches, picked(rewardOptions, options), learner),
    note: ({ accuracy }) => `accuracy ${accuracy.toFixed(2)}`,
    charts: [
      {
        title: "Accuracy",
        about: "share of each batch's comparisons that it gets right",
        series: [["accuracy", "accuracy"]],
        smoothed: true,
      },
      { title: "Loss", about: "nats per comparison", series: [["loss", "loss"]], smoothed: true },
    ],
  }),
  /** Moves a policy toward what a reward model scores high, with a critic. */
  ppo: entry({
    title: "Proximal policy optimisation",
    about: "fine-tune a policy against a reward model, near its base",
    source: "Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155, step 3",
    models: {
      policy: { from: "model", head: "logits", trained: true },
      reference: { from: "model", head: "logits" },
      reward: { from: "reward", head: "score" },
      critic: { from: "reward", head: "score", trained: true },
    },
    saves: "policy",
    material: "prompts",
    options: ppoOptions.omit(ofTheRun).extend({
      ...promptOptions,
      ptxBatchTokens: whole(1).default(1024).describe("pretraining tokens of a minibatch"),
    }),
    usedWhen: [
      ...samplingOptionsUsed,
      {
        options: ["klTarget", "klHorizon"],
        holds: (o) => o.klController === "adaptive",
        because: "`klController` is fixed",
      },
      { options: ["ptxBatchTokens"], holds: (o) => o.ptxCoef > 0, because: "`ptxCoef` is 0" },
      { options: ["klEstimator"], holds: (o) => o.klCoef > 0, because: "`klCoef` is 0" },
    ],
    rules: policyRules,
    rounds: "updates",
    learner: (models: PpoModels, options) => ppoLearner(models, picked(ppoOptions, options)),
    run: (models: PpoModels, { prompts, pretraining }: Materials["prompts"], options, learner) =>
      ppo(models, prompts, picked(ppoOptions, options), learner, pretraining),
    note: rewardNote,
    charts: [
      ...policyCharts,
      { title: "Value loss", about: "half the mean squared error", series: [["valueLoss", "value loss"]] },
      {
        title: "Explained variance",
        about: "of the returns, by the critic",
        series: [["explainedVariance", "explained variance"]],
      },
      {
        title: "Gradient norm",
        about: "before clipping",
        series: [
          ["gradientNorm", "policy"],
          ["valueGradientNorm", "critic"],
        ],
      },
    ],
  }),
  /** Moves a policy toward what scores high in its group, without a critic. */
  grpo: entry({
    title: "Group relative policy optimisation",
    about: "fine-tune a policy against a reward model or reward functions, with a group's mean in place of a critic",
    source: "Shao et al. 2024, arXiv:2402.03300",
    models: {
      policy: { from: "model", head: "logits", trained: true },
      reference: {
        from: "model",
        head: "logits",
        when: { holds: ({ klCoef }) => klCoef > 0, text: "`klCoef` is above 0" },
      },
      reward: { from: "reward", head: "score", orFunctions: true },
    },
    saves: "policy",
    material: "prompts",
    options: grpoOptions.omit(ofTheRun).extend(promptOptions),
    usedWhen: [
      ...samplingOptionsUsed,
      { options: ["klEstimator"], holds: (o) => o.klCoef > 0, because: "`klCoef` is 0" },
    ],
    rules: policyRules,
    rounds: "updates",
    learner: (models: GrpoModels, options) => grpoLearner(models, picked(grpoOptions, options)),
    run: (models: GrpoModels, { prompts }: Materials["prompts"], options, learner) =>
      grpo(models, prompts, picked(grpoOptions, options), learner),
    note: rewardNote,
    charts: [
      ...policyCharts,
      {
        title: "Groups without variance",
        about: "share of the groups that teach nothing",
        series: [["groupsWithoutVariance", "share"]],
      },
      { title: "Gradient norm", about: "before clipping", series: [["gradientNorm", "policy"]] },
    ],
  }),
} satisfies Record<string, Algorithm>;

/** The name of an algorithm. */
export type AlgorithmName = keyof typeof algorithms;
