import type { ModelConfig } from "../model/config.js";
import type { Config } from "./schema.js";

/** The model that a run's configuration describes. */
export function modelConfig({ model }: Config, eosId: number | undefined): ModelConfig {
  const { layers, width, heads, kvHeads, mlp, vocabulary, context, tied } = model;
  const common = { layers, width, heads, headSize: width / heads, mlp, vocabulary, context, ropeTheta: 10000, tied, eosId, bosId: eosId, padId: eosId };
  if (model.kind === "gpt2")
    return {
      ...common,
      kind: "gpt2",
      kvHeads: heads,
      positions: "learned",
      norm: "layer",
      normEps: 1e-5,
      activation: "gelu-tanh",
      qkvBias: true,
      outBias: true,
      mlpBias: true,
    };
  return {
    ...common,
    kind: "llama",
    kvHeads,
    positions: "rotary",
    norm: "rms",
    normEps: 1e-5,
    activation: "swiglu",
    qkvBias: false,
    outBias: false,
    mlpBias: false,
  };
}
