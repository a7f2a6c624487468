import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { typeError } from "../device/errors.js";
import type { Device } from "../device/device.js";
import { loadModel, loadModels, MODEL_FILES, saveModel } from "../model/checkpoint.js";
import { families, type ModelConfig } from "../model/config.js";
import { baseFolder } from "../files/adapter.js";
import { readObject, tokenIds } from "../files/json.js";
import { writeListed } from "../files/listed.js";
import { ADAPTER_FILES, saveAdapter } from "../model/peft.js";
import { readListed, SUMS } from "../files/sums.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Transformer } from "../model/transformer.js";
import type { Config } from "./config/schema.js";

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

/** What ends a completion of the model in the folder: all that its tokenizer, its config.json and its generation_config.json say. */
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
 * What a stage trains of a model: an adapter where the configuration asks for one, else all of it; to another head, it is drawn.
 * @throws TypeError `LORA` for an adapter that the configuration does not ask for
 */
export function toTrain(
  model: Transformer,
  { lora, seed }: Pick<Config, "lora" | "seed">,
  head = model.headKind,
): Transformer {
  if (lora.rank > 0) return model.adapted(lora, seed, head);
  if (model.lora)
    throw typeError(
      "LORA",
      `the model is an adapter: lora.rank=${model.lora.rank} goes on with it, rlhf merge makes a whole model of it`,
    );
  return head === model.headKind ? model : model.copy(head, seed);
}

/** What `saveTrained` and `copyTokenizer` may write or remove. */
export const TRAINED_FILES = [...MODEL_FILES, ...ADAPTER_FILES, ...TOKENIZER_FILES, GENERATION_FILE, SUMS];

/** Writes what was trained of the model in `from`, the adapter alone where there is one, in place of what an earlier command saved in the folder. */
export async function saveTrained(model: Transformer, out: string, from?: string): Promise<void> {
  const adapts = model.lora && from !== undefined;
  const stale = adapts ? MODEL_FILES : ADAPTER_FILES;
  await writeListed(out, Object.fromEntries(stale.map((name) => [name, undefined])));
  await (adapts ? saveAdapter(model, out, await baseFolder(from)) : saveModel(model, out));
}

/** A model's tokenizer, and how it is to be sampled, go where the model goes; an adapter that has none has its base's. */
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
 * What is trained lies apart from what training begins with: a run that is killed begins with that again.
 * @throws TypeError `LORA` or `MODEL`, before the work
 */
export async function apart({ lora }: Config, out: string, option: string, from: string): Promise<void> {
  if (lora.rank > 0 && resolve(out) === resolve(await baseFolder(from)))
    throw typeError("LORA", `--out: ${out} holds the weights that the adapter is for, wanted another folder`);
  if (resolve(out) === resolve(from))
    throw typeError("MODEL", `--out: ${out} is the folder of ${option}, wanted another one`);
}

/** The four models of PPO. With adapters, policy and reference are one copy of their weights, as are reward model and critic, or all four if they have one base. */
export async function ppoModels(device: Device, config: Config, { model, reward }: { model: string; reward: string }) {
  const { weights } = config.ppo;
  if (config.lora.rank > 0) {
    const [reference, scores] = await loadModels([model, reward], device, weights);
    return { policy: toTrain(reference, config), reference, reward: scores, critic: toTrain(scores, config) };
  }
  const loaded = [[model], [model, weights], [reward, weights], [reward]] as const;
  const [policy, reference, scores, critic] = await Promise.all(
    loaded.map(([folder, dtype]) => loadModel(folder, device, dtype)),
  );
  return { policy: toTrain(policy, config), reference, reward: scores, critic: toTrain(critic, config) };
}
