import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { typeError } from "../device/errors.js";
import { MODEL_FILES, saveModel } from "../model/checkpoint.js";
import { families, type ModelConfig } from "../model/config.js";
import { baseFolder } from "../files/adapter.js";
import { readObject, tokenIds } from "../files/json.js";
import { writeListed } from "../files/listed.js";
import { ADAPTER_FILES, saveAdapter } from "../model/peft.js";
import { readListed, SUMS } from "../files/sums.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Transformer } from "../model/transformer.js";
import type { Role } from "../rlhf/algorithms.js";
import type { Config } from "./config/schema.js";
import { withAdapter } from "../model/adapt.js";

const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
const GENERATION_FILE = "generation_config.json";

/** The model that a run's configuration describes. */
export function modelConfig({ model }: Config, eosId: number | undefined): ModelConfig {
  const { kind, layers, width, heads, mlp, vocabulary, context, tied } = model;
  const kvHeads = kind === "gpt2" ? heads : model.kvHeads;
  const ids = { eosId, bosId: eosId, padId: eosId };
  return {
    ...families[kind],
    layers,
    width,
    heads,
    kvHeads,
    headSize: width / heads,
    mlp,
    vocabulary,
    context,
    ropeTheta: 10000,
    normEps: 1e-5,
    tied,
    ...ids,
  };
}

/**
 * What ends a completion of the model in the folder: all that its tokenizer, its config.json and
 * its generation_config.json say.
 */
export async function stopIds(folder: string, { config }: Transformer, tokenizer: Tokenizer): Promise<number[]> {
  const file = [folder, await baseFolder(folder)].map((one) => join(one, GENERATION_FILE)).find(existsSync);
  const generation = file === undefined ? [] : tokenIds((await readObject(file)).eos_token_id);
  const ids = [...tokenIds(tokenizer.eosId), ...tokenIds(config.eosIds ?? config.eosId), ...generation];
  return [...new Set(ids)].filter((id) => id >= 0 && id < config.vocabulary);
}

/** Does the work with the models, then gives back their memory. */
export async function withModels<T>(models: readonly Transformer[], work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } finally {
    for (const model of models) model.dispose();
  }
}

/**
 * What a stage trains of a model: an adapter where the configuration asks for one, else all of it;
 * to another head, it is drawn.
 * @throws TypeError `LORA` for an adapter that the configuration does not ask for
 */
export function toTrain(
  model: Transformer,
  { lora, seed }: Pick<Config, "lora" | "seed">,
  head = model.headKind,
): Transformer {
  if (lora.rank > 0) return withAdapter(model, lora, seed, head);
  if (model.lora)
    throw typeError(
      "LORA",
      `the model is an adapter: lora.rank=${model.lora.rank} goes on with it, rlhf merge makes a whole model of it`,
    );
  return head === model.headKind ? model : model.copy(head, seed);
}

/** What `saveTrained` and `copyTokenizer` may write or remove. */
export const TRAINED_FILES = [...MODEL_FILES, ...ADAPTER_FILES, ...TOKENIZER_FILES, GENERATION_FILE, SUMS];

/**
 * Writes what was trained of the model in `from`, the adapter alone where there is one, in place of
 * what an earlier command saved in the folder.
 */
export async function saveTrained(model: Transformer, out: string, from?: string): Promise<void> {
  const adapts = model.lora && from !== undefined;
  const stale = adapts ? MODEL_FILES : ADAPTER_FILES;
  await writeListed(out, Object.fromEntries(stale.map((name) => [name, undefined])));
  await (adapts ? saveAdapter(model, out, await baseFolder(from)) : saveModel(model, out));
}

/**
 * A model's tokenizer, and how it is to be sampled, go where the model goes; an adapter that has
 * none has its base's.
 */
export async function copyTokenizer(model: string, to: string): Promise<void> {
  const base = await baseFolder(model);
  const from = existsSync(join(model, "tokenizer.json")) ? model : base;
  const files: Record<string, Buffer> = {};
  for (const name of TOKENIZER_FILES)
    if (existsSync(join(from, name))) files[name] = await readListed(join(from, name));
  const generation = [model, base].map((folder) => join(folder, GENERATION_FILE)).find(existsSync);
  if (generation) files[GENERATION_FILE] = await readListed(generation);
  await writeListed(to, files);
}

/**
 * Training writes to another folder than that of the model it begins with: a killed run begins with
 * that model again.
 * @throws TypeError `LORA` or `MODEL`, before the work
 */
export async function checkFolders({ lora }: Config, out: string, option: string, from: string): Promise<void> {
  if (lora.rank > 0 && resolve(out) === resolve(await baseFolder(from)))
    throw typeError("LORA", `--out: ${out} holds the weights that the adapter is for, wanted another folder`);
  if (resolve(out) === resolve(from))
    throw typeError("MODEL", `--out: ${out} is the folder of ${option}, wanted another one`);
}

/**
 * Loads the models that roles begin with: with adapters all at once, so that they share weights,
 * else one by one.
 */
export type LoadModels = (from: Role["from"][], weights: "f32" | "bf16") => Promise<Transformer[]>;

/**
 * The models of an algorithm by their roles. With adapters, roles that begin with one model are one
 * copy of its weights. What is trained is loaded in f32.
 * @param weights the dtype of what is frozen
 */
export async function modelsByRole(
  roles: Record<string, Role>,
  config: Pick<Config, "lora" | "seed">,
  weights: "f32" | "bf16",
  load: LoadModels,
): Promise<Record<string, Transformer>> {
  const all = Object.entries(roles);
  if (config.lora.rank === 0) {
    const own = async (role: Role): Promise<Transformer> => {
      const [loaded] = await load([role.from], role.trained ? "f32" : weights);
      const model = role.trained ? toTrain(loaded, config, role.head) : loaded;
      if (model !== loaded) loaded.dispose();
      return model;
    };
    const models: Record<string, Transformer> = {};
    for (const [name, role] of all) models[name] = await own(role); // in order, so that the same fault is told each time
    return models;
  }
  const from = [...new Set(all.map(([, role]) => role.from))];
  const loaded = await load(from, weights);
  const models: Record<string, Transformer> = {};
  for (const [name, role] of all) {
    const base = loaded[from.indexOf(role.from)];
    models[name] = role.trained ? toTrain(base, config, role.head) : base;
  }
  const used = new Set(Object.values(models));
  for (const base of loaded) if (!used.has(base)) base.dispose();
  return models;
}

/**
 * A model that an option names must have the head that its part wants, and a vocabulary for every
 * id of the tokenizer.
 * @throws TypeError `MODEL` naming the option and its folder
 */
export function checkModel(
  option: string,
  folder: string,
  model: Transformer,
  head: Transformer["headKind"] | "any",
  tokenizer?: Tokenizer,
): void {
  const wrong = (what: string) => typeError("MODEL", `${option}: ${folder} ${what}`);
  if (head !== "any" && model.headKind !== head)
    throw wrong(
      head === "score" ? "has no score head, wanted a reward model" : "has a score head, wanted a language model",
    );
  const { vocabulary } = model.config;
  if (tokenizer && tokenizer.vocabularySize > vocabulary)
    throw wrong(
      `has a vocabulary of ${vocabulary}, the tokenizer has ids up to ${tokenizer.vocabularySize - 1}: it is of another model`,
    );
}
