import { resolve } from "node:path";
import { typeError } from "../device/errors.js";
import type { Device } from "../device/device.js";
import { loadModel, loadModels, saveModel } from "../model/checkpoint.js";
import { families, type ModelConfig } from "../model/config.js";
import { baseFolder, saveAdapter } from "../model/peft.js";
import type { Transformer } from "../model/transformer.js";
import type { Config } from "./schema.js";

/** The model that a run's configuration describes. */
export function modelConfig({ model }: Config, eosId: number | undefined): ModelConfig {
  const { kind, layers, width, heads, mlp, vocabulary, context, tied } = model;
  const kvHeads = kind === "gpt2" ? heads : model.kvHeads;
  const ids = { eosId, bosId: eosId, padId: eosId };
  return { ...families[kind], layers, width, heads, kvHeads, headSize: width / heads, mlp, vocabulary, context, ropeTheta: 10000, normEps: 1e-5, tied, ...ids };
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
export function toTrain(model: Transformer, { lora, seed }: Pick<Config, "lora" | "seed">, head = model.headKind): Transformer {
  if (lora.rank > 0) return model.adapted(lora, seed, head);
  if (model.lora) throw typeError("LORA", `the model is an adapter: lora.rank=${model.lora.rank} goes on with it, rlhf merge makes a whole model of it`);
  return head === model.headKind ? model : model.copy(head, seed);
}

/** Writes what was trained of the model in `from`: the adapter alone, where there is one. */
export const saveTrained = async (model: Transformer, out: string, from?: string) =>
  model.lora && from !== undefined ? saveAdapter(model, out, await baseFolder(from)) : saveModel(model, out);

/** An adapter and its base lie apart. @throws TypeError `LORA`, before the work */
export async function apart({ lora }: Config, out: string, from: string): Promise<void> {
  if (lora.rank > 0 && resolve(out) === resolve(await baseFolder(from)))
    throw typeError("LORA", `--out: ${out} holds the weights that the adapter is for, wanted another folder`);
}

/** The four models of PPO. With adapters, policy and reference are one copy of their weights, as are reward model and critic, or all four if they have one base. */
export async function ppoModels(device: Device, config: Config, { model, reward }: { model: string; reward: string }) {
  const { weights } = config.ppo;
  if (config.lora.rank > 0) {
    const [reference, scores] = await loadModels([model, reward], device, weights);
    return { policy: toTrain(reference, config), reference, reward: scores, critic: toTrain(scores, config) };
  }
  const loaded = [[model], [model, weights], [reward, weights], [reward]] as const;
  const [policy, reference, scores, critic] = await Promise.all(loaded.map(([folder, dtype]) => loadModel(folder, device, dtype)));
  return { policy: toTrain(policy, config), reference, reward: scores, critic: toTrain(critic, config) };
}
