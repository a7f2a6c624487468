import { z } from "zod";
import { LORA_TARGETS } from "../../model/lora.js";
import { algorithms, type Algorithm, type AlgorithmName, type Options } from "../../rlhf/algorithms.js";
import { atLeast0, positive, samplingOptions, share, weightsOption, whole } from "../../rlhf/options.js";

// A run's configuration: every option once, with its default and what it means. The defaults are
// the demo's. The options of the algorithms are those of the list.
//
// Tried for the defaults, seed 0, two cores of an AMD EPYC with AVX-512, in about three minutes:
// model   4 layers of 192, 400 steps of 2,048 tokens at 2.5e-3: 1.553 bits per byte. 800 steps of
//         1,024: 1.682. The noise of a step is too large at that rate. 4 layers of 128 see twice
//         the text for the same FLOPs. 1,500 steps of 1,024 at 3e-3: 1.356.
// reward  4 completions of each of 2,048 prompts: 66.7 % of held-out comparisons right. At a rate
//         of 5e-4 it is 66.5 %, with batches of 4 it is 64.8 %, all near 50 % for an epoch.
//         On the base model of 1.356, 8 completions of each of 1,536: 73.1 %.
// ppo     60 updates of 64 prompts, klCoef 0.09: win rate 86.5 % at 6.28 nats. On the models above,
//         80 updates of 4 completions of each of 16 prompts, klCoef 0.15: 92.0 % at 6.17 nats, but
//         3:13 in all.
//
//                                  bits per byte        win rate, %       nats              time
// before, seeds 0, 1, 2            1.553 1.617 1.578    86.5 84.9 84.2    6.28 4.88 5.45    3:12 3:10 3:09
// these defaults, seeds 0, 1, 2    1.377 1.398 1.427    88.9 88.9 82.8    5.05 5.05 3.68    2:53 2:41 3:16

const section = <T extends z.ZodRawShape>(shape: T) => z.strictObject(shape).prefault({} as never);

/** The sections that belong to no algorithm of the list. */
export const ownSections = {
  seed: whole(0)
    .max(2 ** 32 - 1)
    .default(0),
  model: section({
    kind: z.enum(["llama", "gpt2"]).default("llama"),
    layers: whole(1).default(4),
    width: whole(16).default(128),
    heads: whole(1).default(2),
    kvHeads: whole(1).default(2).describe("key/value heads, a divisor of heads"),
    mlp: whole(1).default(352).describe("width of the MLP"),
    vocabulary: whole(257).default(4096).describe("tokens of the tokenizer that is trained"),
    context: whole(2).default(128).describe("tokens at most"),
    tied: z.boolean().default(true).describe("the head is the embedding"),
  }),
  lora: section({
    rank: whole(0).default(0).describe("of the adapters that are trained beside frozen weights; 0 trains all weights"),
    alpha: positive.default(16).describe("an adapter's product counts alpha / rank"),
    targets: z
      .union([z.literal("all-linear"), z.array(z.enum(LORA_TARGETS)).min(1)], {
        error: `Invalid input: expected all-linear, or some of ${LORA_TARGETS.join(", ")}`,
      })
      .default("all-linear")
      .describe(`the layers that have one, or some of ${LORA_TARGETS.join(", ")}`),
  }),
  prompts: section({
    minTokens: whole(1).default(8).describe("tokens of a prompt at least"),
    maxTokens: whole(1).default(16).describe("and at most"),
  }),
  collect: section({
    prompts: whole(1).default(1536),
    samples: whole(2).default(8).describe("completions of each prompt"),
    weights: weightsOption.describe("bf16: the model's matrices take half the memory, and decoding less time"),
    ...samplingOptions,
  }),
  label: section({
    annotators: whole(1).default(10).describe("who vote on each pair"),
    pairs: z.enum(["all", "disjoint"]).default("all").describe("which completions of a prompt are compared"),
    noise: atLeast0.default(1).describe("Bradley-Terry temperature, in units of the lexicon's score; 0 is none"),
    size: whole(2).max(9).default(2).describe("people: completions compared at once; above 2 they are ranked"),
    criteria: z
      .array(z.string().regex(/^[a-z][a-z0-9_]{0,23}$/, "names of small letters, digits and _"))
      .default([])
      .describe("people: what they judge, as in [helpful, harmless]; each a column, the first is agreement too"),
    twice: share.default(0.2).describe("people: share of the comparisons that two of them label"),
  }),
  eval: section({
    prompts: whole(1).default(500),
    ...samplingOptions,
    weights: weightsOption.describe("of all models"),
  }),
  checkpoint: section({
    every: z
      .union([atLeast0, z.literal("auto")], { error: "Invalid input: expected a number from 0, or auto" })
      .default("auto")
      .describe("seconds between checkpoints; auto is a twentieth of the stage"),
    keep: whole(1).default(2).describe("how many are kept, the newest"),
  }),
};

/** The list of algorithms, each with its section's name. */
const list: [AlgorithmName, Algorithm][] = Object.entries(algorithms) as [AlgorithmName, Algorithm][];

const { seed, model, lora, prompts, collect, label, eval: evaluation, checkpoint } = ownSections;
const trained = (isWanted: (entry: Algorithm) => boolean) =>
  Object.fromEntries(
    list.filter(([, entry]) => isWanted(entry)).map(([name, { options }]) => [name, section(options.shape)]),
  );

/** A run's configuration, in the order in which a run needs it. */
export const schema = z.strictObject({
  seed,
  model,
  lora,
  ...trained(({ material }) => material === "texts"),
  prompts,
  collect,
  label,
  ...trained(({ material }) => material === "comparisons"),
  ...trained(({ material }) => material === "prompts"),
  eval: evaluation,
  checkpoint,
});

/** A run's configuration. The sections of the algorithms hold the options of the list. */
export type Config = z.infer<z.ZodObject<typeof ownSections>> & Record<AlgorithmName, Options>;

/**
 * Options that mean something only where another is set so: given without it, they are an error.
 */
export const usedOnlyWhen: { options: string[]; when: (config: Config) => boolean; because: string }[] = [
  {
    options: ["model.kvHeads"],
    when: ({ model }) => model.kind === "llama",
    because: "model.kind is gpt2, which has as many key/value heads as heads",
  },
  { options: ["lora.alpha", "lora.targets"], when: ({ lora }) => lora.rank > 0, because: "lora.rank is 0" },
  ...(["collect", "eval"] as const).map((stage) => ({
    options: ["topK", "topP", "minP"].map((name) => `${stage}.${name}`),
    when: (config: Config) => config[stage].temperature > 0,
    because: `${stage}.temperature is 0`,
  })),
  ...list.flatMap(([name, { usedWhen }]) =>
    usedWhen.map(({ options, holds, because }) => ({
      options: options.map((option) => `${name}.${option}`),
      when: (config: Config) => holds(config[name]),
      because: inSection(name, because),
    })),
  ),
];

/**
 * Words of an entry of the list, which name its options in backquotes, with the names that a
 * configuration has for them.
 */
function inSection(name: string, words: string): string {
  return words.replace(/`(\w+)`/g, `${name}.$1`);
}

/** Columns that a line of labels has besides its criteria. */
const COLUMNS = [
  "prompt",
  "chosen",
  "rejected",
  "agreement",
  "annotators",
  "clearly",
  "margin",
  "ranking",
  "overall",
  "rendered",
  "sampled",
];

interface SectionRule {
  option: string;
  holds: (config: Config) => boolean;
  wanted: string;
}

/** What must hold between options. */
export const rules: SectionRule[] = [
  {
    option: "model.heads",
    holds: ({ model }) => model.width % model.heads === 0 && (model.width / model.heads) % 2 === 0,
    wanted: "a divisor of model.width with an even quotient",
  },
  {
    option: "model.kvHeads",
    holds: ({ model }) => model.kind === "gpt2" || model.heads % model.kvHeads === 0,
    wanted: "a divisor of model.heads",
  },
  {
    option: "prompts.maxTokens",
    holds: ({ prompts }) => prompts.minTokens <= prompts.maxTokens,
    wanted: "at least prompts.minTokens",
  },
  ...list.flatMap(([name, { material }]) => (material === "texts" ? [textsFit(name)] : [])),
  ...(["collect", "eval"] as const).map(completionsFit),
  ...list.flatMap(([name, { material }]) => (material === "prompts" ? [completionsFit(name)] : [])),
  {
    option: "label.criteria",
    holds: ({ label }) => new Set([...label.criteria, ...COLUMNS]).size === label.criteria.length + COLUMNS.length,
    wanted: `names that differ, and none of ${COLUMNS.join(", ")}`,
  },
  ...list.flatMap(([name, entry]) =>
    entry.rules.map(({ option, holds, wanted }) => ({
      option: `${name}.${option}`,
      holds: (config: Config) => holds(config[name]),
      wanted: inSection(name, wanted),
    })),
  ),
];

function textsFit(name: AlgorithmName): SectionRule {
  return {
    option: `${name}.sequenceLength`,
    holds: (config) => config[name].sequenceLength <= config.model.context,
    wanted: "at most model.context",
  };
}

function completionsFit(name: AlgorithmName | "collect" | "eval"): SectionRule {
  return {
    option: `${name}.maxTokens`,
    holds: (config) => config.prompts.maxTokens + config[name].maxTokens <= config.model.context,
    wanted: "at most model.context less prompts.maxTokens",
  };
}
