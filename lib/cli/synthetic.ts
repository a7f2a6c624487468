import type { Device } from "../device/device.js";
import { requestsFor, type Request } from "../model/generate.js";
import { loraOf, loraShapes } from "../model/lora.js";
import { Transformer } from "../model/transformer.js";
import type { Material, Materials, Options } from "../rlhf/algorithms.js";
import { ranking, type Comparison } from "../rlhf/batch/comparison.js";
import type { Episode } from "../rlhf/batch/episode.js";
import { logps } from "../rlhf/measure/logp.js";
import { judge } from "../rlhf/reward/judge.js";
import type { Config } from "./config/schema.js";
import { modelConfig, toTrain, type LoadModels } from "./model.js";

// Models and data of the sizes that a run would have, for its plan. Prompts are as they are drawn,
// completions at their longest.

/** Numbers of an adapter, 0 where the configuration asks for none. */
export function adapterSize(config: Config): number {
  if (config.lora.rank === 0) return 0;
  const described = modelConfig(config, undefined);
  return loraShapes(described, loraOf(described, config.lora)).reduce((sum, { shape: [a, b] }) => sum + a * b, 0);
}

/** A language model of random weights. */
export const languageModel = (config: Config, on: Device): Transformer =>
  Transformer.random(modelConfig(config, undefined), "logits", on, config.seed);

/** What was trained beside the base: an adapter over its weights, or a model with its own. */
export function trainedBeside(base: Transformer, config: Config, head = base.headKind): Transformer {
  if (config.lora.rank > 0) return toTrain(base, config, head);
  const model = languageModel(config, base.device);
  if (head === "logits") return model;
  const scoring = model.copy("score", config.seed);
  model.dispose();
  return scoring;
}

/** The model in a run's dtype. A run never holds the f32 of a bf16 model. */
export function stored(model: Transformer, weights: "f32" | "bf16"): Transformer {
  if (weights === "f32") return model;
  model.toBf16();
  model.device.resetPeak();
  return model;
}

/** Loads random models in place of those in folders. */
export const syntheticModels =
  (config: Config, on: Device): LoadModels =>
  (from, weights) => {
    const base = stored(languageModel(config, on), weights);
    const models = from.map((option) =>
      option === "model" ? base : stored(trainedBeside(base, config, "score"), weights),
    );
    if (!from.includes("model")) base.dispose();
    return Promise.resolve(models);
  };

const ids = (length: number) => new Int32Array(length);
/** Prompts differ, as they do in a run, or they would be computed once for all. */
const begun = (i: number, length: number, { model }: Config) => ids(length).fill(i % model.vocabulary, 0, 1);
const prompt = (i: number, config: Config) => {
  const { minTokens, maxTokens } = config.prompts;
  return begun(i, minTokens + (i % (maxTokens - minTokens + 1)), config);
};

/** Requests for samples of prompts. */
export function requests(count: number, samples: number, config: Config): Request[] {
  const asked = Array.from({ length: Math.ceil(count / samples) }, (_, i) => prompt(i, config));
  return requestsFor(asked, samples).slice(0, count);
}

function comparisons(count: number, config: Config): Comparison[] {
  const episode = (i: number): Episode => ({ prompt: prompt(i, config), completion: ids(config.collect.maxTokens) });
  return Array.from({ length: count }, (_, i) => ranking(Array<Episode>(config.collect.samples).fill(episode(i))));
}

function texts(tokens: number, config: Config, length = config.sft.sequenceLength as number): Episode[] {
  const count = Math.max(1, Math.round(tokens / length));
  return Array.from({ length: count }, (_, i) => ({ prompt: begun(i, 1, config), completion: ids(length) }));
}

/**
 * What an algorithm learns from in a round, how many rounds there are, and what judges its model.
 */
export interface SyntheticMaterial {
  material: Materials[Material];
  rounds: number;
  /** What a run measures once, beside its rounds. */
  judge?: (model: Transformer) => Promise<unknown>;
}

/** Material of a section's sizes. */
export const synthetic: Record<Material, (options: Options, config: Config) => SyntheticMaterial> = {
  texts: (options, config) => {
    const half = config.model.context >> 1;
    const window = (i: number): Episode => ({ prompt: begun(i, half, config), completion: ids(half) });
    return {
      material: { batches: () => texts(options.batchTokens as number, config, options.sequenceLength as number) },
      rounds: options.steps as number,
      judge: (model) =>
        logps(
          model,
          Array.from({ length: 64 }, (_, i) => window(i)),
        ),
    };
  },
  comparisons: (options, config) => {
    const { heldOut, batch, epochs } = options as Record<"heldOut" | "batch" | "epochs", number>;
    const { prompts } = config.collect;
    const learnt = Math.ceil(prompts * (1 - heldOut)); // comparisons: all of a prompt are one
    const some = comparisons(Math.min(batch, learnt), config);
    return {
      material: { batches: () => some },
      rounds: Math.ceil(learnt / batch) * epochs,
      judge: (model) => judge(model, comparisons(Math.min(prompts - learnt, 64), config)),
    };
  },
  prompts: (options, config) => {
    const { rolloutBatch, samples, ptxBatchTokens } = options as Record<
      "rolloutBatch" | "samples" | "ptxBatchTokens",
      number
    >;
    return {
      material: {
        prompts: () => requests(rolloutBatch, samples, config),
        pretraining: () => texts(ptxBatchTokens, config),
      },
      rounds: options.updates as number,
    };
  },
};
