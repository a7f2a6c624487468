import { createHash } from "node:crypto";
import type { Device } from "../device/device.js";
import { typeError } from "../device/errors.js";
import { makeFolder } from "../files/durable.js";
import { writeListed } from "../files/listed.js";
import { loadModel, loadModels } from "../model/checkpoint.js";
import { Transformer } from "../model/transformer.js";
import {
  algorithms,
  type Algorithm,
  type AlgorithmName,
  type Material,
  type Options,
  type Role,
} from "../rlhf/algorithms.js";
import { TextRewards, type Reward } from "../rlhf/reward/criteria.js";
import { countWords, trainBpe } from "../tokenizer/bpe.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { isFunctions } from "./files.js";
import { openMaterial, type Judgement, type OpenMaterial, type Sources, type TextSource } from "./material.js";
import { checkModel, copyTokenizer, modelConfig, modelsByRole, saveTrained, stopIds, withModels } from "./model.js";
import type { Progress } from "./progress.js";
import type { Config } from "./config/schema.js";
import type { Context } from "./stages/context.js";

// Any algorithm of the list: its models, its material, its loop with checkpoints, what it leaves.

/** Where the models of an algorithm come from, and where what it trains goes. */
export interface ModelFolders {
  /** Without it, a tokenizer is trained and the weights are drawn. */
  model?: string;
  /** A reward model, or a file of reward functions. */
  reward?: string;
  out: string;
}

/** What a stage of training tells. */
export type Trained = Record<string, unknown> & Pick<Judgement, "verdict"> & Judgement["figures"];

/**
 * Trains the models of an algorithm and saves the one that it is for. It is the work of a stage.
 */
export async function train(
  context: Context,
  name: AlgorithmName,
  folders: ModelFolders,
  sources: Sources[Material],
): Promise<Trained> {
  const { config, device, run, progress } = context;
  const entry: Algorithm = algorithms[name];
  await makeFolder(folders.out);
  const tokenizer = folders.model
    ? await Tokenizer.load(folders.model)
    : await newTokenizer(sources as Sources["texts"], folders.out, config.model.vocabulary, progress);
  const { models, functions } = await openModels(device, config, name, folders, tokenizer);
  return withModels(Object.values(models), async () => {
    const trained = models[entry.saves];
    const stop = folders.model ? await stopIds(folders.model, trained, tokenizer) : [];
    const section: Options = { ...config[name], seed: config.seed, stop };
    using material = await openMaterial(context, { name, entry, options: section, tokenizer, models }, sources);
    const options: Options = { ...section, ...material.options };
    const bar = progress.stage(name, options[entry.rounds] as number, entry.rounds);
    const reference = models.reference && { referenceSha256: await contentHash(models.reference) };
    const all = { ...models, ...functions };
    const { last, ...counted } = await rounds({ run, bar, name, models: all, material, options, ...reference });
    const { verdict, figures } = await material.judge(models, last);
    await saveTrained(trained, folders.out, folders.model);
    if (folders.model) await copyTokenizer(folders.model, folders.out);
    bar.done(verdict);
    return { parameters: trained.size, ...counted, ...reference, ...figures, verdict };
  });
}

/** The rounds of the loop, with their lines in the log and the checkpoints between them. */
async function rounds({
  run,
  bar,
  name,
  models,
  material: { material },
  options,
  referenceSha256,
}: {
  run: Context["run"];
  bar: ReturnType<Progress["stage"]>;
  name: AlgorithmName;
  models: Record<string, Transformer | Reward>;
  material: OpenMaterial;
  options: Options;
  referenceSha256?: string;
}): Promise<{ tokens: number; tokensPerSecond: number; last: Record<string, number> }> {
  const entry: Algorithm = algorithms[name];
  using learner = entry.learner(models, options);
  let [tokens, last]: [number, Record<string, number>] = [0, {}];
  const checkpoint = run.checkpoint(name, {
    models: learner.trained,
    optimizers: learner.optimizers,
    state: {
      get: () => ({ ...learner.state(), tokens, last }),
      set(saved) {
        learner.restore(saved as unknown as ReturnType<typeof learner.state>);
        ({ tokens, last } = saved as { tokens: number; last: Record<string, number> });
      },
    },
  });
  await checkpoint.restore();
  bar.advance(learner.round);
  const mark = referenceSha256 === undefined ? {} : { reference: referenceSha256.slice(0, 16) };
  const [start, before] = [performance.now(), tokens];
  for await (const metrics of entry.run(models, material, options, learner)) {
    last = { ...metrics };
    tokens += last.tokens ?? 0;
    await run.log({ stage: name, ...mark, ...metrics });
    bar.advance(1, entry.note(last));
    await checkpoint.due(metrics.step, options[entry.rounds] as number);
  }
  const seconds = (performance.now() - start) / 1000;
  return { tokens, tokensPerSecond: (tokens - before) / seconds, last };
}

/**
 * The models that the options ask for, by role, and the reward functions where a file of them is
 * given.
 */
async function openModels(
  device: Device,
  config: Config,
  name: AlgorithmName,
  folders: ModelFolders,
  tokenizer: Tokenizer,
): Promise<{ models: Record<string, Transformer>; functions: Record<string, TextRewards> }> {
  const entry: Algorithm = algorithms[name];
  const active = Object.entries(entry.models).filter(([, { when }]) => when?.holds(config[name]) ?? true);
  if (!folders.model) {
    const drawn = Transformer.random(modelConfig(config, tokenizer.eosId), "logits", device, config.seed);
    return { models: { [entry.saves]: drawn }, functions: {} };
  }
  const file = folders.reward !== undefined && isFunctions(folders.reward) ? folders.reward : undefined;
  const byFunctions = active.filter(([, { from, orFunctions }]) => file && from === "reward" && orFunctions);
  const roles = Object.fromEntries(active.filter((one) => !byFunctions.includes(one)));
  if (file && Object.values(roles).some(({ from }) => from === "reward"))
    throw typeError("MODEL", `--reward: ${file} holds functions, ${name} wants a reward model`);
  const functions: Record<string, TextRewards> = {};
  for (const [role] of byFunctions) functions[role] = await TextRewards.load(file!, tokenizer);
  const load = async (from: Role["from"][], weights: "f32" | "bf16") => {
    const paths = from.map((option) => folders[option]!);
    const loaded =
      config.lora.rank > 0
        ? await loadModels(paths, device, weights)
        : await Promise.all(paths.map((path) => loadModel(path, device, weights)));
    loaded.forEach((model, i) =>
      checkModel(`--${from[i]}`, paths[i], model, headOf(Object.values(entry.models), from[i]), tokenizer),
    );
    return loaded;
  };
  const weights = (config[name].weights ?? "f32") as "f32" | "bf16"; // of what is frozen, where there is an option for it
  return { models: await modelsByRole(roles, config, weights, load), functions };
}

/** The head that a model must have: any, where a score's head is drawn for what is trained. */
function headOf(roles: Role[], option: Role["from"]): Transformer["headKind"] | "any" {
  const own = roles.filter(({ from }) => from === option);
  return own.every(({ head, trained }) => head === "score" && trained) ? "any" : own[0].head;
}

async function newTokenizer(
  { text }: { text: TextSource },
  out: string,
  vocabulary: number,
  progress: Progress,
): Promise<Tokenizer> {
  const bar = progress.stage("tokenizer", 1, "vocabulary");
  const words = new Map<string, number>();
  for await (const one of text)
    for (const part of typeof one === "string" ? [one] : [one.prompt, one.completion]) countWords(part, words);
  const { tokenizer, tokenizerConfig } = trainBpe(words, { vocabulary, specials: ["<|endoftext|>"] });
  await writeListed(out, {
    "tokenizer.json": JSON.stringify(tokenizer),
    "tokenizer_config.json": JSON.stringify(tokenizerConfig, null, 2) + "\n",
  });
  bar.advance(1);
  bar.done(`${vocabulary} tokens`);
  return Tokenizer.load(out);
}

/** SHA-256 of a model's weights: what every KL of the log is measured to. */
async function contentHash(model: Transformer): Promise<string> {
  const hash = createHash("sha256");
  for (const [name, { value }] of model.parameters)
    hash.update(`${name} ${value.shape.join()}\n`).update(new Uint8Array((await value.read()).buffer));
  return hash.digest("hex");
}
