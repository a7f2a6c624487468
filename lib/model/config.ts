import { shown, typeError } from "../device/errors.js";
import { math } from "../device/native.js";
import { tokenIds } from "../files/json.js";

/**
 * The shape of a decoder-only transformer: GPT-2, Llama (SmolLM2), Qwen2, Qwen3, Mistral and what
 * else fits these choices.
 */
export interface ModelConfig {
  /** `model_type` of Hugging Face. */
  kind: "gpt2" | "llama" | "qwen2" | "qwen3" | "mistral";
  /** Blocks: each has attention and an MLP. */
  layers: number;
  /** Numbers of the hidden state of a token. */
  width: number;
  /** Query heads of a block. */
  heads: number;
  /** Key and value heads, of which `heads` is a multiple. */
  kvHeads: number;
  /** Size of a head; heads of this size together may be wider or narrower than the model. */
  headSize: number;
  /** Width of the MLP. */
  mlp: number;
  /** How many tokens there are: rows of the embedding. */
  vocabulary: number;
  /** The longest sequence. */
  context: number;
  /** A table of vectors, or rotations of queries and keys (Su et al. 2021). */
  positions: "learned" | "rotary";
  /** Base of the rotations' wavelengths. */
  ropeTheta: number;
  /** Llama 3.1's stretch of the slow frequencies to a longer context. */
  ropeScaling?: RopeScaling;
  /**
   * LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019), before attention, before the
   * MLP and at the end.
   */
  norm: "layer" | "rms";
  /** The norms add this to the variance, or to the mean square. */
  normEps: number;
  /**
   * The activation of the MLP: GELU as tanh approximates it, GELU, or SwiGLU (Shazeer 2020), which
   * has a gate.
   */
  activation: "gelu-tanh" | "gelu-erf" | "swiglu";
  /** Queries and keys are normed head by head before they are rotated (Qwen3). */
  qkNorm?: boolean;
  /** Queries, keys and values have biases. */
  qkvBias: boolean;
  /** The attention's output has a bias. */
  outBias: boolean;
  /** The MLP has biases. */
  mlpBias: boolean;
  /** The head is the embedding. */
  tied: boolean;
  /**
   * A query sees this many keys, its own among them, where that is less than the context (Mistral's
   * sliding window).
   */
  window?: number;
  /** The sequence ends with this token; undefined if there is none. */
  eosId?: number;
  /**
   * All tokens that end a sequence, where there are several (chat models): `eosId` is the first.
   */
  eosIds?: readonly number[];
  /** A text begins with this token; undefined if there is none. */
  bosId?: number;
  /** The token that others pad with; nothing is padded here. */
  padId?: number;
}

/** Llama 3.1's stretch of rotary positions: `rope_parameters` of type `llama3`. */
export interface RopeScaling {
  /** Slow frequencies are divided by this factor. */
  factor: number;
  /** A frequency is slow that turns at most so often over the original context. */
  lowFrequencyFactor: number;
  /** A frequency that turns at least so often stays; between the two it is interpolated. */
  highFrequencyFactor: number;
  /** The context that the model was first trained with. */
  originalContext: number;
}

type Family = Pick<
  ModelConfig,
  "kind" | "positions" | "norm" | "activation" | "qkNorm" | "qkvBias" | "outBias" | "mlpBias"
>;

const llama: Family = {
  kind: "llama",
  positions: "rotary",
  norm: "rms",
  activation: "swiglu",
  qkvBias: false,
  outBias: false,
  mlpBias: false,
};

/**
 * What the families differ in, except sizes; a Llama's and a Qwen3's config.json may add biases.
 */
export const families: Record<ModelConfig["kind"], Family> = {
  gpt2: {
    kind: "gpt2",
    positions: "learned",
    norm: "layer",
    activation: "gelu-tanh",
    qkvBias: true,
    outBias: true,
    mlpBias: true,
  },
  llama,
  qwen2: { ...llama, kind: "qwen2", qkvBias: true },
  qwen3: { ...llama, kind: "qwen3", qkNorm: true },
  mistral: { ...llama, kind: "mistral" },
};

/**
 * The longest sequence that a model computes as its config.json says: no limit but a table of
 * positions, or the window, since all keys are seen.
 */
export const longestSequence = ({ positions, context, window = Infinity }: ModelConfig): number =>
  positions === "learned" ? context : window;

type Json = Record<string, unknown>;

/**
 * Reads `config.json` of a Hugging Face directory.
 * @throws TypeError `MODEL` for what is not supported, by name
 */
export function fromHuggingFace(json: Json, where: string): ModelConfig {
  const read = new Entries(json, where);
  const eosIds = tokenIds(json.eos_token_id);
  const [[eosId], [bosId], [padId]] = [eosIds, tokenIds(json.bos_token_id), tokenIds(json.pad_token_id)];
  const ids = { eosId, ...(eosIds.length > 1 ? { eosIds } : {}), bosId, padId };
  const kind = json.model_type;
  if (typeof kind !== "string" || !Object.hasOwn(families, kind))
    throw read.wrong(`model_type is ${shown(kind)}, wanted one of ${Object.keys(families).join(", ")}`);
  const family = families[kind as ModelConfig["kind"]];
  return { ...family, ...(family.kind === "gpt2" ? gpt2(json, read) : llamaLike(json, read, family)), ...ids };
}

/** The entries of a config.json, with their errors. */
class Entries {
  constructor(
    private readonly json: Json,
    private readonly where: string,
  ) {}

  wrong(what: string) {
    return typeError("MODEL", `${this.where}: ${what}`);
  }
  number(key: string, otherwise?: number): number {
    const value = this.json[key] ?? otherwise;
    if (typeof value !== "number" || !(value > 0))
      throw this.wrong(`${key} is ${shown(this.json[key])}, wanted a positive number`);
    return value;
  }
  whole(key: string, otherwise?: number): number {
    const value = this.number(key, otherwise);
    if (!Number.isInteger(value) || value >= 2 ** 31)
      throw this.wrong(`${key} is ${value}, wanted a whole number below 2^31`);
    return value;
  }
  divided(width: number, heads: number): number {
    if (width % heads !== 0) throw this.wrong(`there are ${heads} heads, wanted a divisor of the width ${width}`);
    return width / heads;
  }
}

type Sizes = Omit<ModelConfig, keyof Family> & Partial<Family>;

function gpt2(json: Json, read: Entries): Sizes {
  const activation = { gelu_new: "gelu-tanh", gelu_pytorch_tanh: "gelu-tanh", gelu: "gelu-erf" }[
    String(json.activation_function ?? "gelu_new")
  ];
  if (!activation)
    throw read.wrong(`activation_function is ${shown(json.activation_function)}, wanted gelu_new or gelu`);
  if (json.scale_attn_by_inverse_layer_idx) throw read.wrong("scale_attn_by_inverse_layer_idx is not supported");
  if (json.add_cross_attention) throw read.wrong("add_cross_attention is not supported");
  if (json.scale_attn_weights === false) throw read.wrong("scale_attn_weights is false, wanted true");
  const width = read.whole("n_embd");
  const heads = read.whole("n_head");
  return {
    layers: read.whole("n_layer"),
    width,
    heads,
    kvHeads: heads,
    headSize: read.divided(width, heads),
    mlp: read.whole("n_inner", 4 * width),
    vocabulary: read.whole("vocab_size"),
    context: read.whole("n_positions", 1024),
    ropeTheta: 10000,
    normEps: read.number("layer_norm_epsilon", 1e-5),
    activation: activation as ModelConfig["activation"],
    tied: json.tie_word_embeddings !== false,
  };
}

function llamaLike(json: Json, read: Entries, { kind, qkvBias }: Family): Sizes {
  if (json.hidden_act !== undefined && json.hidden_act !== "silu")
    throw read.wrong(`hidden_act is ${shown(json.hidden_act)}, wanted silu`);
  const width = read.whole("hidden_size");
  const heads = read.whole("num_attention_heads");
  const layers = read.whole("num_hidden_layers");
  const context = read.whole("max_position_embeddings");
  const headSize =
    typeof json.head_dim === "number" ? read.whole("head_dim") : kind === "qwen3" ? 128 : read.divided(width, heads);
  if (headSize % 2 !== 0)
    throw read.wrong(`a head has ${headSize} dimensions, wanted an even number, which rotary positions pair`);
  const window = windowOf(json, read, { kind, layers, context });
  const bias = (kind === "llama" || kind === "qwen3") && json.attention_bias === true;
  return {
    layers,
    width,
    heads,
    kvHeads: read.whole("num_key_value_heads", heads),
    headSize,
    mlp: read.whole("intermediate_size"),
    vocabulary: read.whole("vocab_size"),
    context,
    ...ropeOf(json, (what) => read.wrong(what)),
    normEps: read.number("rms_norm_eps", 1e-6),
    qkvBias: qkvBias || bias,
    outBias: bias,
    mlpBias: kind === "llama" && json.mlp_bias === true,
    tied: json.tie_word_embeddings === true,
    ...(window < context ? { window } : {}),
  };
}

/** How many keys a query sees: the context where there is no sliding window. */
function windowOf(
  json: Json,
  read: Entries,
  { kind, layers, context }: Pick<ModelConfig, "kind" | "layers" | "context">,
): number {
  // layers of Qwen before it have no window
  const last = typeof json.max_window_layers === "number" ? json.max_window_layers : 28;
  const slides = Array.isArray(json.layer_types) ? json.layer_types.includes("sliding_attention") : layers > last;
  const windowed = kind === "mistral" || (kind.startsWith("qwen") && json.use_sliding_window && slides);
  const window = windowed && json.sliding_window !== null ? read.whole("sliding_window", 4096) : context;
  if (window < context && kind !== "mistral") {
    const where = json.layer_types ? "that layer_types names" : `from max_window_layers, ${last}, on`;
    throw read.wrong(
      `sliding_window is ${window} in the layers ${where}, wanted max_position_embeddings, ${context}, or more, or use_sliding_window false`,
    );
  }
  return window;
}

/**
 * Rotary positions; `rope_theta` and `rope_scaling` are how files before transformers 5 spell
 * `rope_parameters`.
 */
function ropeOf(json: Json, wrong: (what: string) => Error): Pick<ModelConfig, "ropeTheta" | "ropeScaling"> {
  const rope = (json.rope_parameters ?? json.rope_scaling ?? {}) as Json;
  const number = (key: string, value: unknown = rope[key]) => {
    if (typeof value !== "number" || !(value > 0)) throw wrong(`${key} is ${shown(value)}, wanted a positive number`);
    return value;
  };
  if ((rope.partial_rotary_factor ?? json.partial_rotary_factor ?? 1) !== 1)
    throw wrong("partial_rotary_factor is not supported");
  const ropeTheta = number("rope_theta", json.rope_theta ?? rope.rope_theta ?? 10000);
  const type = rope.rope_type ?? rope.type ?? "default";
  if (type === "default") return { ropeTheta };
  if (type !== "llama3") throw wrong(`rope_type is ${shown(type)}, wanted default or llama3`);
  const ropeScaling = {
    factor: number("factor"),
    lowFrequencyFactor: number("low_freq_factor"),
    highFrequencyFactor: number("high_freq_factor"),
    originalContext: number("original_max_position_embeddings"),
  };
  if (!(ropeScaling.lowFrequencyFactor < ropeScaling.highFrequencyFactor))
    throw wrong("low_freq_factor is not less than high_freq_factor");
  return { ropeTheta, ropeScaling };
}

/**
 * Radians per position of each pair of a head's dimensions, f32 [D / 2] (Su et al. 2021; stretched
 * as in Llama 3.1).
 */
export function inverseFrequencies({ headSize, ropeTheta, ropeScaling }: ModelConfig): Float32Array {
  const half = headSize / 2;
  return Float32Array.from({ length: half }, (_, d) => {
    const frequency = 1 / math.pow(ropeTheta, d / half);
    if (!ropeScaling) return frequency;
    const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalContext } = ropeScaling;
    const turns = (originalContext * frequency) / (2 * Math.PI); // over the first context
    const kept = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    return ((1 - kept) * frequency) / factor + kept * frequency;
  });
}

/** Writes `config.json`. `head` says whether the model ends in logits or in a score. */
export function toHuggingFace(config: ModelConfig, head: "logits" | "score"): Json {
  const names = { gpt2: "GPT2", llama: "Llama", qwen2: "Qwen2", qwen3: "Qwen3", mistral: "Mistral" };
  const suffix =
    head === "score" ? "ForSequenceClassification" : config.kind === "gpt2" ? "LMHeadModel" : "ForCausalLM";
  const { eosId = null, bosId = null, padId = null, ropeScaling: stretch } = config;
  const common = {
    architectures: [names[config.kind] + suffix],
    model_type: config.kind,
    vocab_size: config.vocabulary,
    torch_dtype: "float32",
    tie_word_embeddings: config.tied,
    eos_token_id: config.eosIds ?? eosId,
    bos_token_id: bosId,
    // transformers scores a sequence at its last token that is no padding: an end that is padding
    // too would not be seen
    pad_token_id: head === "score" && [...(config.eosIds ?? []), eosId].includes(padId) ? null : padId,
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
    ...(stretch
      ? {
          rope_scaling: {
            rope_type: "llama3",
            factor: stretch.factor,
            low_freq_factor: stretch.lowFrequencyFactor,
            high_freq_factor: stretch.highFrequencyFactor,
            original_max_position_embeddings: stretch.originalContext,
          },
        }
      : {}),
    rms_norm_eps: config.normEps,
    hidden_act: "silu",
    attention_dropout: 0,
    ...(config.kind === "llama" ? { attention_bias: config.qkvBias, mlp_bias: config.mlpBias } : {}),
    ...(config.kind === "qwen3" ? { attention_bias: config.qkvBias } : {}),
    ...(config.kind === "mistral" ? { sliding_window: config.window ?? null } : {}),
  };
}
