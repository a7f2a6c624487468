import { realpath } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../device/device.js";
import { defaultDevice } from "../device/open.js";
import { typeError } from "../device/errors.js";
import { ARRAYS, dtypeOf, Tensor, type Data } from "../tensor/tensor.js";
import { fromHuggingFace, toHuggingFace, type ModelConfig } from "./config.js";
import { baseFolder, isAdapter } from "../files/adapter.js";
import { readObject } from "../files/json.js";
import { writeListed } from "../files/listed.js";
import { loadAdapter } from "./peft.js";
import { place, type Place } from "./places.js";
import { readSafetensors, safetensors, type Writable } from "./safetensors.js";
import { Transformer } from "./transformer.js";
import { weightShapes } from "./weights.js";

/** The files that `saveModel` writes. */
export const MODEL_FILES = ["model.safetensors", "config.json"];

/** Reads config.json of a Hugging Face directory. @throws TypeError `MODEL` */
export async function readConfig(folder: string): Promise<{ config: ModelConfig; head: "logits" | "score" }> {
  const file = join(folder, "config.json");
  const json = await readObject(file);
  const architecture = (json.architectures as unknown[] | null | undefined)?.[0];
  const scores = typeof architecture === "string" && architecture.endsWith("ForSequenceClassification");
  return { config: fromHuggingFace(json, file), head: scores ? "score" : "logits" };
}

/**
 * Loads a model from a Hugging Face directory: `config.json` and `model.safetensors` (also
 * sharded), f32, f16 or bf16; or an adapter from PEFT's, over its base.
 * @param weights `bf16` keeps the matrices in it alone, for inference: those of a bf16 file as they
 *   are, others rounded
 * @throws TypeError `MODEL` for a config that is not supported, a weight that is missing or has
 *   another shape; `DAMAGED` or `SAFETENSORS` for a file that is not what SHA256SUMS beside it, or
 *   its own digest, says
 */
export async function loadModel(
  folder: string,
  on: Device = defaultDevice(),
  weights: "f32" | "bf16" = "f32",
): Promise<Transformer> {
  return isAdapter(folder) ? (await loadModels([folder], on, weights))[0] : loadWhole(folder, on, weights);
}

/**
 * Loads models that are frozen, but for what `withAdapter` makes trainable. Models that rest on the
 * weights of one folder share them.
 */
export async function loadModels(
  folders: readonly string[],
  on: Device = defaultDevice(),
  weights: "f32" | "bf16" = "f32",
): Promise<Transformer[]> {
  const bases = new Map<string, Transformer>();
  const models: Transformer[] = [];
  try {
    for (const folder of folders) {
      const under = await baseFolder(folder);
      const key = await realpath(under).catch(() => under);
      const base = bases.get(key) ?? (await loadWhole(under, on, weights));
      bases.set(key, base);
      const model = isAdapter(folder) ? await loadAdapter(folder, base) : base.base();
      models.push(model);
      if (weights === "bf16") model.toBf16();
    }
    return models;
  } catch (error) {
    for (const model of models) model.dispose();
    throw error;
  } finally {
    for (const base of bases.values()) base.dispose();
  }
}

async function loadWhole(folder: string, on: Device, weights: "f32" | "bf16"): Promise<Transformer> {
  const { config, head } = await readConfig(folder);
  const stored: Map<string, Writable> =
    weights === "bf16" ? await readSafetensors(folder, "keep") : await readSafetensors(folder);
  if (config.layers > stored.size)
    throw typeError(
      "MODEL",
      `${folder}: config.json tells of ${config.layers} layers, the files hold ${stored.size} tensors`,
    );
  const all = weightShapes(config, head).map(({ name, shape }) => {
    const where = place(name, config);
    const found = stored.get(where.name) ?? stored.get(where.name.replace(/^(transformer|model)\./, ""));
    if (!found) throw typeError("MODEL", `${folder}: the weight ${where.name} is missing`);
    const wanted = storedShape(shape, where);
    if (found.shape.join() !== wanted.join())
      throw typeError("MODEL", `${folder}: ${where.name} has shape [${found.shape}], wanted [${wanted}]`);
    if (!(found.data instanceof Float32Array || found.data instanceof Uint16Array))
      throw typeError("MODEL", `${folder}: ${where.name} holds no f32, f16 or bf16 numbers`);
    return { name, shape, found, where };
  });
  const model = new Transformer(config, head, on);
  for (const { name, shape, found, where } of all) {
    model.set(name, Tensor.from(ours(found, shape, where), shape, on));
    if (weights === "bf16") model.toBf16(name);
  }
  return model;
}

/**
 * Writes a Hugging Face directory, config.json and model.safetensors, each beside, synced, then
 * renamed, and lists their digests in its SHA256SUMS. Other files of the model (tokenizer) are the
 * caller's.
 * @throws TypeError `LORA` for a model with an adapter or a folder that holds one, `WRITE` if the
 *   system refuses
 */
export async function saveModel(model: Transformer, folder: string): Promise<void> {
  if (model.lora)
    throw typeError("LORA", "the model has an adapter: saveAdapter writes it, merged() makes a model without");
  if (isAdapter(folder))
    throw typeError(
      "LORA",
      `${folder} holds an adapter, which would be read in place of the model: wanted another folder`,
    );
  const { config, headKind } = model;
  const tensors = new Map<string, Writable>();
  for (const [name, { value }] of model.parameters) {
    const where = place(name, config);
    const shape = storedShape(value.shape, where);
    let target = tensors.get(where.name);
    if (!target)
      tensors.set(where.name, (target = { shape, data: new ARRAYS[value.dtype](shape.reduce((a, b) => a * b, 1)) }));
    put(target, await value.read(), value.shape, where);
  }
  await writeListed(folder, {
    "model.safetensors": safetensors(tensors, { format: "pt" }),
    "config.json": JSON.stringify(toHuggingFace(config, headKind), null, 2) + "\n",
  });
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
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) yield [r * columns + c, c * stride + (third ?? 0) * rows + r];
}

function ours({ data }: Writable, shape: readonly number[], where: Place): Data {
  if (!where.transposed && where.third === undefined) return data;
  const numbers = new ARRAYS[dtypeOf(data)](shape.reduce((a, b) => a * b, 1));
  for (const [i, j] of places(shape, where)) numbers[i] = data[j];
  return numbers;
}

function put(target: Writable, data: Data, shape: readonly number[], where: Place): void {
  if (!where.transposed && where.third === undefined) target.data = data;
  else for (const [i, j] of places(shape, where)) target.data[j] = data[i];
}
