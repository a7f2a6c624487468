import type { ModelConfig } from "./config.js";

/**
 * Where a weight of ours lies in a Hugging Face file: one tensor, perhaps transposed (GPT-2 stores
 * its linear layers [inputs, outputs]), perhaps a third of one (GPT-2 keeps query, key and value
 * together).
 */
export interface Place {
  name: string;
  transposed?: boolean;
  third?: 0 | 1 | 2;
}

export function place(ours: string, { kind }: ModelConfig): Place {
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
    qNorm: "self_attn.q_norm",
    kNorm: "self_attn.k_norm",
    o: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
  };
  return { name: `model.layers.${layer}.${modules[part]}.${what === "gain" ? "weight" : what}` };
}
