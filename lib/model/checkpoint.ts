import { existsSync } from "node:fs";
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { defaultDevice, type Device } from "../device/device.js";
import { shown, typeError } from "../device/errors.js";
import { ARRAYS, dtypeOf, Tensor, type Data } from "../tensor/tensor.js";
import { fromHuggingFace, toHuggingFace, type ModelConfig } from "./config.js";
import { readSafetensors, writeFileDurably, writeSafetensors, type Writable } from "./safetensors.js";
import { Transformer, weightShapes } from "./transformer.js";

/**
 * Where a weight of ours lies in a Hugging Face file: one tensor, perhaps transposed (GPT-2 stores its linear layers
 * [inputs, outputs]), perhaps a third of one (GPT-2 keeps query, key and value together).
 */
interface Place {
  name: string;
  transposed?: boolean;
  third?: 0 | 1 | 2;
}

function place(ours: string, { kind }: ModelConfig): Place {
  const [, layer, part, what] = /^layers\.(\d+)\.(\w+)\.(\w+)$/.exec(ours) ?? [];
  if (kind === "gpt2") {
    const top: Record<string, string> = {
      embedding: "transformer.wte.weight",
      positions: "transformer.wpe.weight",
      "norm.gain": "transformer.ln_f.weight",
      "norm.bias": "transformer.ln_f.bias",
      head: "lm_head.weight",
      score: "score.weight",
    };
    if (top[ours]) return { name: top[ours] };
    const modules: Record<string, string> = {
      attentionNorm: "ln_1",
      mlpNorm: "ln_2",
      q: "attn.c_attn",
      k: "attn.c_attn",
      v: "attn.c_attn",
      o: "attn.c_proj",
      up: "mlp.c_fc",
      down: "mlp.c_proj",
    };
    const name = `transformer.h.${layer}.${modules[part]}.${what === "gain" ? "weight" : what}`;
    const third = (["q", "k", "v"] as const).indexOf(part as "q");
    return { name, transposed: what === "weight", ...(third >= 0 ? { third: third as 0 | 1 | 2 } : {}) };
  }
  const top: Record<string, string> = {
    embedding: "model.embed_tokens.weight",
    "norm.gain": "model.norm.weight",
    head: "lm_head.weight",
    score: "score.weight",
  };
  if (top[ours]) return { name: top[ours] };
  const modules: Record<string, string> = {
    attentionNorm: "input_layernorm",
    mlpNorm: "post_attention_layernorm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
  };
  return { name: `model.layers.${layer}.${modules[part]}.${what === "gain" ? "weight" : what}` };
}

/** Reads config.json of a Hugging Face directory. @throws TypeError `MODEL` */
export async function readConfig(folder: string): Promise<{ config: ModelConfig; head: "logits" | "score" }> {
  const file = join(folder, "config.json");
  const text = await readFile(file, "utf8").catch((error: Error) => {
    throw typeError("MODEL", `${folder} is no model directory: ${error.message}`);
  });
  let json: Record<string, unknown> | null;
  try {
    json = JSON.parse(text) as Record<string, unknown> | null;
  } catch (error) {
    throw typeError("MODEL", `${file} is not JSON: ${(error as Error).message}`);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) throw typeError("MODEL", `${file} is ${shown(json)}, wanted an object`);
  const architecture = (json.architectures as unknown[] | null | undefined)?.[0];
  const scores = typeof architecture === "string" && architecture.endsWith("ForSequenceClassification");
  return { config: fromHuggingFace(json, file), head: scores ? "score" : "logits" };
}

/**
 * Loads a model from a Hugging Face directory: `config.json` and `model.safetensors` (also sharded), f32, f16 or bf16.
 * @param weights `bf16` keeps the matrices in it alone, for inference: those of a bf16 file as they are, others rounded
 * @throws TypeError `MODEL` for a config that is not supported, a weight that is missing or has another shape
 */
export async function loadModel(folder: string, on: Device = defaultDevice(), weights: "f32" | "bf16" = "f32"): Promise<Transformer> {
  const { config, head } = await readConfig(folder);
  const stored: Map<string, Writable> = weights === "bf16" ? await readSafetensors(folder, "keep") : await readSafetensors(folder);
  if (config.layers > stored.size) throw typeError("MODEL", `${folder}: config.json tells of ${config.layers} layers, the files hold ${stored.size} tensors`);
  const all = weightShapes(config, head).map(({ name, shape }) => {
    const where = place(name, config);
    const found = stored.get(where.name) ?? stored.get(where.name.replace(/^(transformer|model)\./, ""));
    if (!found) throw typeError("MODEL", `${folder}: the weight ${where.name} is missing`);
    const wanted = storedShape(shape, where);
    if (found.shape.join() !== wanted.join()) throw typeError("MODEL", `${folder}: ${where.name} has shape [${found.shape}], wanted [${wanted}]`);
    if (!(found.data instanceof Float32Array || found.data instanceof Uint16Array))
      throw typeError("MODEL", `${folder}: ${where.name} holds no f32, f16 or bf16 numbers`);
    return { name, shape, found, where };
  });
  const model = new Transformer(config, head, on);
  for (const { name, shape, found, where } of all) {
    model.set(name, Tensor.from(taken(found, shape, where), shape, on));
    if (weights === "bf16") model.narrow(name);
  }
  return model;
}

/**
 * Writes a Hugging Face directory, config.json and model.safetensors, each beside, synced, then renamed; other files of the model (tokenizer)
 * are the caller's.
 * @throws TypeError `WRITE` if the system refuses
 */
export async function saveModel(model: Transformer, folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  const { config, headKind } = model;
  const tensors = new Map<string, Writable>();
  for (const [name, { value }] of model.parameters) {
    const where = place(name, config);
    const shape = storedShape(value.shape, where);
    let target = tensors.get(where.name);
    if (!target) tensors.set(where.name, (target = { shape, data: new ARRAYS[value.dtype](shape.reduce((a, b) => a * b, 1)) }));
    put(target, await value.read(), value.shape, where);
  }
  await writeSafetensors(join(folder, "model.safetensors"), tensors, { format: "pt" });
  await writeFileDurably(join(folder, "config.json"), JSON.stringify(toHuggingFace(config, headKind), null, 2) + "\n");
}

export function isModel(folder: string): boolean {
  return existsSync(join(folder, "config.json")) && existsSync(join(folder, "model.safetensors"));
}

function storedShape(shape: readonly number[], { transposed, third }: Place): number[] {
  const stored = transposed ? [...shape].reverse() : [...shape];
  if (third !== undefined) stored[stored.length - 1] *= 3;
  return stored;
}

// Where element (row, column) of our matrix lies in the stored one.
function* places(shape: readonly number[], { transposed, third }: Place): Generator<[ours: number, stored: number]> {
  const [rows, columns] = shape.length === 1 ? [1, shape[0]] : shape;
  if (!transposed) {
    for (let i = 0; i < rows * columns; i++) yield [i, i + (third ?? 0) * columns];
    return;
  }
  const stride = third === undefined ? rows : 3 * rows;
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) yield [r * columns + c, c * stride + (third ?? 0) * rows + r];
}

function taken({ data }: Writable, shape: readonly number[], where: Place): Data {
  if (!where.transposed && where.third === undefined) return data;
  const ours = new ARRAYS[dtypeOf(data)](shape.reduce((a, b) => a * b, 1));
  for (const [i, j] of places(shape, where)) ours[i] = data[j];
  return ours;
}

function put(target: Writable, data: Data, shape: readonly number[], where: Place): void {
  if (!where.transposed && where.third === undefined) target.data = data;
  else for (const [i, j] of places(shape, where)) target.data[j] = data[i];
}
