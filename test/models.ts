import { native } from "../lib/device/native.js";
import { device, Transformer, type Device, type Episode, type ModelConfig, type PpoOptions } from "../lib/index.js";
import { families } from "../lib/model/config.js";
import type { Random } from "./random.js";

/** Small models of both families for the tests of whole loops. */
export const llama: ModelConfig = {
  ...families.llama,
  layers: 2,
  width: 32,
  heads: 4,
  kvHeads: 2,
  headSize: 8,
  mlp: 48,
  vocabulary: 97,
  context: 96,
  ropeTheta: 10000,
  normEps: 1e-5,
  tied: true,
};
export const gpt2: ModelConfig = { ...llama, ...families.gpt2, kvHeads: 4 };

/** A model whose weights are larger than a fresh one's, so that its distributions are not flat. */
export async function lively(
  config: ModelConfig,
  on: Device,
  head: "logits" | "score" = "logits",
  seed = 1,
): Promise<Transformer> {
  const model = Transformer.random(config, head, on, seed);
  for (const { value } of model.parameters.values())
    if (value.shape.length > 1) value.write(((await value.read()) as Float32Array).map((x) => 6 * x));
  return model;
}

export const episodes = (random: Random, count: number, vocabulary = llama.vocabulary): Episode[] =>
  Array.from({ length: count }, () => ({
    prompt: Array.from({ length: 1 + random.below(9) }, () => random.below(vocabulary)),
    completion: Array.from({ length: 1 + random.below(20) }, () => random.below(vocabulary)),
  }));

/** AdamW as it is without the defaults that the training loops add. */
export const plainAdam = { betas: [0.9, 0.999], weightDecay: 0, clipNorm: Infinity } as const;

/** A short PPO whose adaptive controller and entropy term have something to do. The rest are defaults. */
export const ppoConfig = {
  seed: 3,
  updates: 2,
  epochs: 2,
  learningRate: 1e-3,
  valueLearningRate: 1e-3,
  betas: [0.9, 0.999],
  schedule: "constant",
  maxTokens: 12,
  temperature: 0.9,
  klCoef: 0.1,
  klController: "adaptive",
  klTarget: 3,
  klHorizon: 100,
  entropyCoef: 0.01,
} satisfies PpoOptions;

/** All weights, for comparison of bits. */
export async function weightsOf(model: Transformer): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (const { value } of model.parameters.values()) parts.push(Buffer.from((await value.read()).buffer));
  return Buffer.concat(parts);
}

/** CPU devices of every instruction set here, scalar among them, each with one thread and with more. */
export async function everyCpu(threads = [1, 3]): Promise<Device[]> {
  const devices: Device[] = [];
  for (const isa of native.isaAvailable.split(" "))
    for (const count of threads) devices.push(await device("cpu", { isa, threads: count }));
  return devices;
}
