import { families, type ModelConfig } from "../model/config.js";
import type { Config } from "./schema.js";

/** The model that a run's configuration describes. */
export function modelConfig({ model }: Config, eosId: number | undefined): ModelConfig {
  const { kind, layers, width, heads, mlp, vocabulary, context, tied } = model;
  const kvHeads = kind === "gpt2" ? heads : model.kvHeads;
  const ids = { eosId, bosId: eosId, padId: eosId };
  return { ...families[kind], layers, width, heads, kvHeads, headSize: width / heads, mlp, vocabulary, context, ropeTheta: 10000, normEps: 1e-5, tied, ...ids };
}
