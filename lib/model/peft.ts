import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { shown, typeError } from "../device/errors.js";
import { ARRAYS, Tensor } from "../tensor/tensor.js";
import type { ModelConfig } from "./config.js";
import { ADAPTER_CONFIG } from "../files/adapter.js";
import { readObject } from "../files/json.js";
import { writeListed } from "../files/listed.js";
import { loraOf, loraShapes, type Lora } from "./lora.js";
import { place } from "./places.js";
import { readSafetensorsFile, safetensors, type Writable } from "./safetensors.js";
import type { Transformer } from "./transformer.js";

// A LoRA adapter as Hugging Face's PEFT keeps it: adapter_config.json, and
// adapter_model.safetensors with A and B by the names of the base's modules.

const WEIGHTS = "adapter_model.safetensors";
/** The files that `saveAdapter` writes. */
export const ADAPTER_FILES = [ADAPTER_CONFIG, WEIGHTS];
const SCORE = "base_model.model.score.weight";

/**
 * Options of variants, in which A and B mean something else or the base is changed: they must be
 * empty. What only draws the first A is none.
 */
const VARIANTS =
  /^(use_.*|(?!eva_).*_config|rank_pattern|alpha_pattern|layer_replication|lora_bias|alora_invocation_tokens)$/;
const DRAWN = ["gaussian", "orthogonal", "eva"];

/**
 * Our factors: the key of each, and where the base has query, key and value in one layer, which
 * third of its B.
 */
function* factors(
  config: ModelConfig,
  lora: Lora,
): Generator<{ name: string; shape: number[]; key: string; third?: number }> {
  for (const { name, shape } of loraShapes(config, lora)) {
    const [layer, factor] = [name.slice(0, -".loraA".length), name.slice(-1)];
    const { name: weight, third } = place(`${layer.replace(/qkv$/, "q")}.weight`, config);
    yield {
      name,
      shape,
      key: `base_model.model.${weight.replace(/weight$/, `lora_${factor}.weight`)}`,
      third: factor === "B" ? third : undefined,
    };
  }
}

async function readConfig(folder: string): Promise<{ rank: number; alpha: number; scores: boolean }> {
  const file = join(folder, ADAPTER_CONFIG);
  const json = await readObject(file);
  const wrong = (key: string, wanted: string) =>
    typeError("MODEL", `${file}: ${key} is ${shown(json[key])}, wanted ${wanted}`);
  if (json.peft_type !== "LORA") throw wrong("peft_type", "LORA");
  const { r: rank, lora_alpha: alpha, bias = "none", init_lora_weights: init, task_type: task } = json;
  if (typeof rank !== "number" || !Number.isInteger(rank) || rank < 1) throw wrong("r", "a whole number from 1");
  if (typeof alpha !== "number" || !(alpha > 0 && alpha < Infinity)) throw wrong("lora_alpha", "a number above 0");
  if (bias !== "none") throw wrong("bias", "none");
  if (typeof init === "string" && !DRAWN.includes(init))
    throw wrong("init_lora_weights", `true, false, ${DRAWN.join(", ")}: others change the base`);
  for (const key of Object.keys(json).filter((name) => VARIANTS.test(name))) {
    const value = json[key] ?? false;
    if (value !== false && !(typeof value === "object" && Object.keys(value).length === 0))
      throw wrong(key, "none: it is not supported");
  }
  return { rank, alpha, scores: task === "SEQ_CLS" };
}

/** Names of what was saved from a model without a head lack the first part of their path. */
const short = (key: string) => key.replace(/^base_model\.model\./, "").replace(/^(transformer|model)\./, "");

/**
 * Reads an adapter over the weights of `base`, which it shares.
 * @throws TypeError `MODEL` for what is not supported, a tensor that is missing, unknown or of
 *   another shape; `SAFETENSORS`
 */
export async function loadAdapter(folder: string, base: Transformer): Promise<Transformer> {
  const { rank, alpha, scores } = await readConfig(folder);
  const { config, device } = base;
  const file = join(folder, WEIGHTS);
  const wrong = (what: string) => typeError("MODEL", `${file}: ${what}`);
  const { tensors } = await readSafetensorsFile(file);
  const stored = new Map([...tensors].map(([key, tensor]) => [short(key), tensor]));
  const seen = new Set<string>();
  const factor = (key: string, [rows, columns]: number[], third?: number): Tensor => {
    const found = stored.get(short(key));
    if (!found) throw wrong(`${key} is missing`);
    const wanted = [third === undefined ? rows : 3 * rows, columns];
    if (found.shape.join() !== wanted.join()) throw wrong(`${key} has shape [${found.shape}], wanted [${wanted}]`);
    if (!(found.data instanceof Float32Array)) throw wrong(`${key} holds no f32, f16 or bf16 numbers`);
    seen.add(short(key));
    const begin = (third ?? 0) * rows * columns;
    return Tensor.from(found.data.subarray(begin, begin + rows * columns), [rows, columns], device);
  };

  const every = loraOf(config, { rank, alpha });
  const targets = every.targets.filter((target) => {
    const [{ key }] = factors({ ...config, layers: 1 }, { ...every, targets: [target] });
    return stored.has(short(key));
  });
  if (targets.length === 0) throw wrong(`it has nothing for the first block of a ${config.kind}`);
  const model = base.base(scores ? "score" : "logits", loraOf(config, { rank, alpha, targets }));
  try {
    if (!scores && !config.tied && !model.parameters.has("head"))
      throw wrong("it is for a model that ends in logits, its base ends in a score");
    if (scores && (stored.has(short(SCORE)) || !model.parameters.has("score"))) {
      const score = factor(SCORE, [1, config.width]);
      model.parameters.get("score")?.dispose();
      model.set("score", score);
    }
    for (const { name, shape, key, third } of factors(config, model.lora!)) model.set(name, factor(key, shape, third));
    const left = [...tensors.keys()].find((key) => !seen.has(short(key)));
    if (left !== undefined)
      throw wrong(
        `it holds ${left}, which is no part of an adapter of ${targets.join(", ")} in ${config.layers} blocks`,
      );
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/**
 * Writes the adapter of a model, and the score's head if it has one; other files (tokenizer) are
 * the caller's. The folder's SHA256SUMS lists the digests.
 * @param base the folder of the weights that it was trained on
 * @throws TypeError `LORA` for a model without adapter or a folder that holds a whole model,
 *   `WRITE` if the system refuses
 */
export async function saveAdapter(model: Transformer, folder: string, base: string): Promise<void> {
  const { lora, config, headKind } = model;
  if (!lora) throw typeError("LORA", "the model has no adapter, wanted one");
  if (resolve(base) === resolve(folder))
    throw typeError("LORA", `${folder} holds the adapter's base, wanted another folder`);
  if (["model.safetensors", "model.safetensors.index.json"].some((name) => existsSync(join(folder, name))))
    throw typeError(
      "LORA",
      `${folder} holds a whole model, in place of which the adapter would be read: wanted another folder`,
    );
  const tensors = new Map<string, Writable>();
  const modules = new Set<string>();
  for (const { name, key, third } of factors(config, lora)) {
    const { value } = model.parameter(name);
    const [rows, columns] = value.shape;
    const parts = third === undefined ? 1 : 3;
    let whole = tensors.get(key);
    if (!whole)
      tensors.set(key, (whole = { shape: [parts * rows, columns], data: new ARRAYS[value.dtype](parts * value.size) }));
    whole.data.set(await value.read(), (third ?? 0) * value.size);
    const path = key.split(".").slice(0, -2);
    modules.add(path.slice(config.kind === "gpt2" ? -2 : -1).join(".")); // GPT-2 has two c_proj
  }
  if (headKind === "score") {
    const { value } = model.parameter("score");
    tensors.set(SCORE, { shape: value.shape, data: await value.read() });
  }
  const json = {
    peft_type: "LORA",
    task_type: headKind === "score" ? "SEQ_CLS" : "CAUSAL_LM",
    base_model_name_or_path: resolve(base),
    r: lora.rank,
    lora_alpha: lora.alpha,
    lora_dropout: 0,
    target_modules: [...modules],
    modules_to_save: headKind === "score" ? ["score"] : null,
    bias: "none",
    fan_in_fan_out: config.kind === "gpt2",
    inference_mode: true,
  };
  await writeListed(folder, {
    [WEIGHTS]: safetensors(tensors, { format: "pt" }),
    [ADAPTER_CONFIG]: JSON.stringify(json, null, 2) + "\n",
  });
}
