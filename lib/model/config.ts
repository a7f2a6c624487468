import { shown, typeError } from "../device/errors.js";

/** The shape of a decoder-only transformer: GPT-2, Llama, Qwen2, SmolLM2, Mistral and what else fits these choices. */
export interface ModelConfig {
  /** `model_type` of Hugging Face. */
  kind: "gpt2" | "llama" | "qwen2" | "mistral";
  layers: number;
  width: number;
  heads: number;
  kvHeads: number;
  headSize: number;
  mlp: number;
  vocabulary: number;
  /** The longest sequence. */
  context: number;
  positions: "learned" | "rotary";
  ropeTheta: number;
  norm: "layer" | "rms";
  normEps: number;
  activation: "gelu-tanh" | "gelu-erf" | "swiglu";
  /** Biases of the query, key and value projections; of the attention's output; of the MLP. */
  qkvBias: boolean;
  outBias: boolean;
  mlpBias: boolean;
  /** The head is the embedding. */
  tied: boolean;
  /** The sequence ends with this token; undefined if there is none. */
  eosId?: number;
}

type Json = Record<string, unknown>;

/** Reads `config.json` of a Hugging Face directory. @throws TypeError `MODEL` for what is not supported, by name */
export function fromHuggingFace(json: Json, where: string): ModelConfig {
  const wrong = (what: string) => typeError("MODEL", `${where}: ${what}`);
  const number = (key: string, otherwise?: number): number => {
    const value = json[key] ?? otherwise;
    if (typeof value !== "number" || !(value > 0)) throw wrong(`${key} is ${shown(json[key])}, wanted a positive number`);
    return value;
  };
  const whole = (key: string, otherwise?: number): number => {
    const value = number(key, otherwise);
    if (!Number.isInteger(value) || value >= 2 ** 31) throw wrong(`${key} is ${value}, wanted a whole number below 2^31`);
    return value;
  };
  const divided = (width: number, heads: number): number => {
    if (width % heads !== 0) throw wrong(`there are ${heads} heads, wanted a divisor of the width ${width}`);
    return width / heads;
  };
  const eos = Array.isArray(json.eos_token_id) ? json.eos_token_id[0] : json.eos_token_id;
  const eosId = typeof eos === "number" ? eos : undefined;
  const kind = json.model_type;
  if (kind === "gpt2") {
    const activation = { gelu_new: "gelu-tanh", gelu_pytorch_tanh: "gelu-tanh", gelu: "gelu-erf" }[String(json.activation_function ?? "gelu_new")];
    if (!activation) throw wrong(`activation_function is ${shown(json.activation_function)}, wanted gelu_new or gelu`);
    if (json.scale_attn_by_inverse_layer_idx) throw wrong("scale_attn_by_inverse_layer_idx is not supported");
    const width = whole("n_embd");
    const heads = whole("n_head");
    return {
      kind,
      layers: whole("n_layer"),
      width,
      heads,
      kvHeads: heads,
      headSize: divided(width, heads),
      mlp: whole("n_inner", 4 * width),
      vocabulary: whole("vocab_size"),
      context: whole("n_positions", 1024),
      positions: "learned",
      ropeTheta: 10000,
      norm: "layer",
      normEps: number("layer_norm_epsilon", 1e-5),
      activation: activation as ModelConfig["activation"],
      qkvBias: true,
      outBias: true,
      mlpBias: true,
      tied: json.tie_word_embeddings !== false,
      eosId,
    };
  }
  if (kind === "llama" || kind === "qwen2" || kind === "mistral") {
    const rope = (json.rope_parameters ?? json.rope_scaling ?? {}) as Json;
    const type = rope.rope_type ?? rope.type ?? "default";
    if (type !== "default") throw wrong(`rope_type is ${shown(type)}, wanted default`);
    if (json.hidden_act !== undefined && json.hidden_act !== "silu") throw wrong(`hidden_act is ${shown(json.hidden_act)}, wanted silu`);
    if (kind === "qwen2" && json.use_sliding_window) throw wrong("use_sliding_window is not supported");
    const width = whole("hidden_size");
    const heads = whole("num_attention_heads");
    const context = whole("max_position_embeddings");
    if (kind === "mistral" && typeof json.sliding_window === "number" && json.sliding_window < context)
      throw wrong(`sliding_window is ${json.sliding_window}, less than max_position_embeddings; it is not supported`);
    const bias = kind === "qwen2" || json.attention_bias === true;
    return {
      kind,
      layers: whole("num_hidden_layers"),
      width,
      heads,
      kvHeads: whole("num_key_value_heads", heads),
      headSize: typeof json.head_dim === "number" ? whole("head_dim") : divided(width, heads),
      mlp: whole("intermediate_size"),
      vocabulary: whole("vocab_size"),
      context,
      positions: "rotary",
      ropeTheta: number("rope_theta", typeof rope.rope_theta === "number" ? rope.rope_theta : 10000),
      norm: "rms",
      normEps: number("rms_norm_eps", 1e-6),
      activation: "swiglu",
      qkvBias: bias,
      outBias: kind !== "qwen2" && bias,
      mlpBias: json.mlp_bias === true,
      tied: json.tie_word_embeddings === true,
      eosId,
    };
  }
  throw wrong(`model_type is ${shown(kind)}, wanted gpt2, llama, qwen2 or mistral`);
}

/** Writes `config.json`. `head` says whether the model ends in logits or in a score. */
export function toHuggingFace(config: ModelConfig, head: "logits" | "score"): Json {
  const names = { gpt2: "GPT2", llama: "Llama", qwen2: "Qwen2", mistral: "Mistral" };
  const suffix = head === "score" ? "ForSequenceClassification" : config.kind === "gpt2" ? "LMHeadModel" : "ForCausalLM";
  const common = {
    architectures: [names[config.kind] + suffix],
    model_type: config.kind,
    vocab_size: config.vocabulary,
    torch_dtype: "float32",
    tie_word_embeddings: config.tied,
    ...(config.eosId === undefined ? {} : { eos_token_id: config.eosId, bos_token_id: config.eosId, pad_token_id: config.eosId }),
    ...(head === "score" ? { num_labels: 1, id2label: { 0: "LABEL_0" }, label2id: { LABEL_0: 0 } } : {}),
  };
  if (config.kind === "gpt2")
    return {
      ...common,
      n_layer: config.layers,
      n_embd: config.width,
      n_head: config.heads,
      n_inner: config.mlp,
      n_positions: config.context,
      n_ctx: config.context,
      layer_norm_epsilon: config.normEps,
      activation_function: config.activation === "gelu-erf" ? "gelu" : "gelu_new",
      attn_pdrop: 0,
      embd_pdrop: 0,
      resid_pdrop: 0,
    };
  return {
    ...common,
    num_hidden_layers: config.layers,
    hidden_size: config.width,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headSize,
    intermediate_size: config.mlp,
    max_position_embeddings: config.context,
    rope_theta: config.ropeTheta,
    rms_norm_eps: config.normEps,
    hidden_act: "silu",
    attention_dropout: 0,
    ...(config.kind === "llama" ? { attention_bias: config.qkvBias, mlp_bias: config.mlpBias } : {}),
    ...(config.kind === "mistral" ? { sliding_window: null } : {}),
  };
}
