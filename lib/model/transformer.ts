import type { Device } from "../device/device.js";
import { rangeError } from "../device/errors.js";
import { math } from "../device/native.js";
import * as ops from "../tensor/ops/index.js";
import { run } from "../tensor/op.js";
import { activeTape, Parameter, recomputed } from "../tensor/tape.js";
import { Tensor } from "../tensor/tensor.js";
import type { ModelConfig } from "./config.js";

/** Sequences laid end to end: no padding anywhere. */
export interface Packed {
  /** int32 [N] */
  ids: Int32Array | Tensor;
  /** int32 [B+1] */
  cuSeqlens: Int32Array;
  /** int32 [B]: the earlier sequence that this one continues, -1 for none */
  prefix?: Int32Array;
  /** int32 [N]: the place of each token in its sequence; in one that continues another, they go on */
  positions: Int32Array;
}

/**
 * Packs sequences of token ids.
 * @param prefix for each, the earlier sequence that it continues, -1 for none
 * @throws RangeError `EMPTY` for a sequence without a token, `PREFIX` for a prefix that is not earlier
 */
export function pack(sequences: readonly ArrayLike<number>[], prefix?: readonly number[]): Packed & { ids: Int32Array } {
  const cuSeqlens = new Int32Array(sequences.length + 1);
  sequences.forEach((sequence, b) => {
    if (sequence.length === 0) throw rangeError("EMPTY", `sequence ${b} has no tokens, wanted at least one`);
    cuSeqlens[b + 1] = cuSeqlens[b] + sequence.length;
  });
  const ids = new Int32Array(cuSeqlens[sequences.length]);
  const positions = new Int32Array(ids.length);
  const ends = new Int32Array(sequences.length); // the position after each sequence
  sequences.forEach((sequence, b) => {
    const before = prefix ? prefix[b] : -1;
    if (!(before >= -1 && before < b)) throw rangeError("PREFIX", `prefix[${b}] is ${before}, wanted an earlier sequence or -1`);
    const base = before < 0 ? 0 : ends[before];
    ends[b] = base + sequence.length;
    ids.set(sequence, cuSeqlens[b]);
    for (let i = 0; i < sequence.length; i++) positions[cuSeqlens[b] + i] = base + i;
  });
  return { ids, cuSeqlens, prefix: prefix && Int32Array.from(prefix), positions };
}

/** How queries meet keys and values in a layer: all at once, or against a cache. */
export type Attend = (layer: number, q: Tensor, k: Tensor, v: Tensor) => Tensor;

/** The weights of a model: name, shape and how each is drawn. Linear layers are [outputs, inputs]. */
export function weightShapes(config: ModelConfig, head: "logits" | "score"): { name: string; shape: number[]; deviation: number; fill: number }[] {
  const { width: C, headSize: D, mlp: F } = config;
  const shapes: { name: string; shape: number[]; deviation: number; fill: number }[] = [];
  const residual = 0.02 / Math.sqrt(2 * config.layers); // GPT-2: what is added to the residual stream is scaled by its depth
  const matrix = (name: string, shape: number[], deviation = 0.02) => shapes.push({ name, shape, deviation, fill: 0 });
  const vector = (name: string, size: number, fill = 0) => shapes.push({ name, shape: [size], deviation: 0, fill });
  const linear = (name: string, outputs: number, inputs: number, bias: boolean, deviation?: number) => {
    matrix(`${name}.weight`, [outputs, inputs], deviation);
    if (bias) vector(`${name}.bias`, outputs);
  };
  const norm = (name: string) => {
    vector(`${name}.gain`, C, 1);
    if (config.norm === "layer") vector(`${name}.bias`, C);
  };
  matrix("embedding", [config.vocabulary, C]);
  if (config.positions === "learned") matrix("positions", [config.context, C], 0.01);
  for (let i = 0; i < config.layers; i++) {
    const layer = `layers.${i}`;
    norm(`${layer}.attentionNorm`);
    linear(`${layer}.q`, config.heads * D, C, config.qkvBias);
    linear(`${layer}.k`, config.kvHeads * D, C, config.qkvBias);
    linear(`${layer}.v`, config.kvHeads * D, C, config.qkvBias);
    linear(`${layer}.o`, C, config.heads * D, config.outBias, residual);
    norm(`${layer}.mlpNorm`);
    if (config.activation === "swiglu") linear(`${layer}.gate`, F, C, config.mlpBias);
    linear(`${layer}.up`, F, C, config.mlpBias);
    linear(`${layer}.down`, C, F, config.mlpBias, residual);
  }
  norm("norm");
  if (head === "score") matrix("score", [1, C], 1 / Math.sqrt(C + 1)); // Stiennon et al. 2020
  else if (!config.tied) matrix("head", [config.vocabulary, C]);
  return shapes;
}

const isMatrix = ({ name, value }: Parameter) => value.shape.length === 2 && name !== "score";

/** A decoder-only transformer whose weights are parameters; `head` says whether it ends in logits or in a score. */
export class Transformer {
  /** The weights by name, in the order of `weightShapes`. */
  readonly parameters = new Map<string, Parameter>();
  private readonly inverseFrequency: Tensor | undefined;
  private panels: Map<string, Tensor> | undefined;

  constructor(
    readonly config: ModelConfig,
    readonly headKind: "logits" | "score",
    readonly device: Device,
  ) {
    if (config.positions !== "rotary") return;
    const half = config.headSize / 2;
    const frequencies = Float32Array.from({ length: half }, (_, d) => 1 / math.pow(config.ropeTheta, d / half));
    this.inverseFrequency = Tensor.from(frequencies, [half], device);
  }

  /** Random weights: a function of the seed alone. */
  static random(config: ModelConfig, headKind: "logits" | "score", device: Device, seed: number): Transformer {
    const model = new Transformer(config, headKind, device);
    weightShapes(config, headKind).forEach(({ name, shape, deviation, fill }, stream) => {
      const value = Tensor.empty(shape, "f32", device);
      if (deviation) run("normal", { seed, stream, mean: fill, deviation, y: value });
      else run("fill", { value: fill, y: value });
      model.set(name, value);
    });
    return model;
  }

  /** Matrices but for the score's one row: they may be bf16. */
  get matrices(): Parameter[] {
    return [...this.parameters.values()].filter(isMatrix);
  }

  /** Keeps the matrices, or the one of this name, in bf16 alone, rounded to nearest: for inference, at half the memory. What is no matrix is f32. */
  narrow(only?: string): void {
    for (const parameter of only === undefined ? [...this.parameters.values()] : [this.parameter(only)]) {
      const { name, value } = parameter;
      const dtype = isMatrix(parameter) ? "bf16" : "f32";
      if (value.dtype === dtype) continue;
      this.set(name, ops.cast(value, dtype));
      value.dispose();
    }
  }

  /** Puts a weight in its place, or in that of another, which is the caller's to free. */
  set(name: string, value: Tensor): void {
    this.parameters.set(name, new Parameter(name, value));
  }

  /** A copy, with its own weights; to another head, the body is copied and a new head drawn from the seed. */
  copy(headKind = this.headKind, seed = 0): Transformer {
    const other = new Transformer(this.config, headKind, this.device);
    weightShapes(this.config, headKind).forEach(({ name, shape, deviation }, stream) => {
      const own = this.parameters.get(name);
      const value = Tensor.empty(shape, own?.value.dtype, this.device);
      if (own) run("cast", { x: own.value, y: value });
      else run("normal", { seed, stream, mean: 0, deviation, y: value });
      other.set(name, value);
    });
    return other;
  }

  /** The weight of this name, one of `weightShapes`. */
  parameter(name: string): Parameter {
    return this.parameters.get(name)!;
  }
  /** The weight that turns a hidden state into logits, [V, C]. */
  get head(): Parameter {
    return this.parameter(this.config.tied ? "embedding" : "head");
  }
  /** How many weights there are. */
  get size(): number {
    let size = 0;
    for (const { value } of this.parameters.values()) size += value.size;
    return size;
  }

  /** Runs `f` with the linear layers packed for the kernels: for many forward passes over unchanged weights. */
  async packed<T>(f: () => Promise<T>): Promise<T> {
    this.panels = new Map();
    for (const { name, working } of this.matrices)
      if (name !== "positions" && (name !== "embedding" || this.config.tied)) this.panels.set(name, ops.pack(working));
    try {
      return await f();
    } finally {
      for (const panel of this.panels.values()) panel.dispose();
      this.panels = undefined;
    }
  }

  private linear(x: Tensor, name: string): Tensor {
    return ops.linear(x, this.weight(`${name}.weight`), this.parameters.get(`${name}.bias`));
  }
  private weight(name: string): Parameter | Tensor {
    return (!activeTape() && this.panels?.get(name)) || this.parameter(name);
  }
  private normed(x: Tensor, name: string): Tensor {
    const gain = this.parameter(`${name}.gain`);
    const { normEps: eps } = this.config;
    return this.config.norm === "rms" ? ops.rmsNorm(x, gain, { eps }) : ops.layerNorm(x, gain, this.parameter(`${name}.bias`), { eps });
  }

  /**
   * The hidden state before the head, f32 [N, C].
   * @param options `attend`: causal attention within each sequence and what it continues, unless a cache says otherwise;
   *   `recompute`: of each layer, the tape keeps the input alone, and backward runs the layer again. Memory for speed, no bit changes.
   */
  hidden({ ids, cuSeqlens, prefix, positions }: Packed, { attend, recompute = false }: { attend?: Attend; recompute?: boolean } = {}): Tensor {
    const { config } = this;
    const N = positions.length;
    const at = Tensor.from(positions, [N], this.device);
    const offsets = Tensor.from(cuSeqlens, [cuSeqlens.length], this.device);
    const scale = 1 / Math.sqrt(config.headSize);
    const before = prefix && Tensor.from(prefix, [prefix.length], this.device);
    attend ??= (_, q, k, v) => ops.attention(q, k, v, offsets, { prefix: before, scale });
    const heads = (x: Tensor, count: number) => ops.reshape(x, [N, count, config.headSize]);
    const rotated = (x: Tensor) => (this.inverseFrequency ? ops.rope(x, at, this.inverseFrequency) : x);

    let x = ops.embedding(ids, this.parameter("embedding"));
    if (config.positions === "learned") x = ops.add(x, ops.embedding(at, this.parameter("positions")));
    for (let i = 0; i < config.layers; i++) {
      const layer = `layers.${i}`;
      const block = (x: Tensor) => {
        const a = this.normed(x, `${layer}.attentionNorm`);
        const q = rotated(heads(this.linear(a, `${layer}.q`), config.heads));
        const k = rotated(heads(this.linear(a, `${layer}.k`), config.kvHeads));
        const v = heads(this.linear(a, `${layer}.v`), config.kvHeads);
        const o = ops.reshape(attend(i, q, k, v), [N, config.heads * config.headSize]);
        const y = ops.add(x, this.linear(o, `${layer}.o`));
        return ops.add(y, this.mlp(this.normed(y, `${layer}.mlpNorm`), layer));
      };
      x = recompute ? recomputed(x, block) : block(x);
    }
    return this.normed(x, "norm");
  }

  private mlp(x: Tensor, layer: string): Tensor {
    const up = this.linear(x, `${layer}.up`);
    const { activation } = this.config;
    const inner = activation === "swiglu" ? ops.swiglu(this.linear(x, `${layer}.gate`), up) : ops.gelu(up, activation === "gelu-erf" ? "erf" : "tanh");
    return this.linear(inner, `${layer}.down`);
  }

  /** Logits of hidden states, f32 [N, V]: for sampling and evaluation; losses never store them. */
  logits(hidden: Tensor): Tensor {
    return ops.linear(hidden, this.weight(this.config.tied ? "embedding" : "head"));
  }

  /** The score at chosen rows of the hidden state, f32 [M]. */
  score(hidden: Tensor, rows: Int32Array): Tensor {
    return ops.score(hidden, this.parameter("score"), rows);
  }

  /** Frees the weights. */
  dispose(): void {
    for (const parameter of this.parameters.values()) parameter.dispose();
    this.inverseFrequency?.dispose();
  }
}
