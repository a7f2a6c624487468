import type { Device } from "../device/device.js";
import { rangeError, typeError } from "../device/errors.js";
import { Random } from "../device/philox.js";
import * as ops from "../tensor/ops/index.js";
import { run } from "../tensor/op.js";
import { addTo } from "../tensor/ops/elementwise.js";
import { Parameter } from "../tensor/parameter.js";
import { activeRecorder } from "../tensor/recorder.js";
import { forget, recomputed } from "../tensor/tape.js";
import { scope, Tensor } from "../tensor/tensor.js";
import { inverseFrequencies, longestSequence, type ModelConfig } from "./config.js";
import { loraA, loraOf, loraShapes, type Lora, type LoraOptions } from "./lora.js";

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
export function pack(
  sequences: readonly ArrayLike<number>[],
  prefix?: readonly number[],
): Packed & {
  /** int32 [N] */
  ids: Int32Array;
} {
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
    if (!(before >= -1 && before < b))
      throw rangeError("PREFIX", `prefix[${b}] is ${before}, wanted an earlier sequence or -1`);
    const base = before < 0 ? 0 : ends[before];
    ends[b] = base + sequence.length;
    ids.set(sequence, cuSeqlens[b]);
    for (let i = 0; i < sequence.length; i++) positions[cuSeqlens[b] + i] = base + i;
  });
  return { ids, cuSeqlens, prefix: prefix && Int32Array.from(prefix), positions };
}

/** How queries meet keys and values in a layer: all at once, or against a cache. */
export type Attend = (layer: number, q: Tensor, k: Tensor, v: Tensor) => Tensor;

/** How a pass is run; `hidden` tells what the options mean. */
export interface HiddenOptions {
  /** In place of causal attention over the batch. */
  attend?: Attend;
  /** Backward runs each layer again instead of keeping what it computed. */
  recompute?: boolean;
}

/** The weights of a model: name, shape and how each is drawn. Linear layers are [outputs, inputs]. */
export function weightShapes(
  config: ModelConfig,
  head: "logits" | "score",
): { name: string; shape: number[]; deviation: number; fill: number }[] {
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
    if (config.qkNorm) for (const name of ["qNorm", "kNorm"]) vector(`${layer}.${name}.gain`, D, 1);
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

/** Streams of random numbers, apart from those of other stages. */
const LORA_STREAM = 56;

const isMatrix = ({ name, value }: Parameter) => value.shape.length === 2 && name !== "score";

/** A decoder-only transformer whose weights are parameters; `head` says whether it ends in logits or in a score, `lora` that it has an adapter. */
export class Transformer {
  /** The weights by name, in the order of `weightShapes`. */
  readonly parameters = new Map<string, Parameter>();
  private readonly inverseFrequency: Tensor | undefined;
  private readonly panels = new Map<Parameter, { version: number; panel: Tensor }>();
  private packers = 0; // who wants them

  constructor(
    /** Its shape. */
    readonly config: ModelConfig,
    /** What it ends in: logits over the vocabulary, or one score. */
    readonly headKind: "logits" | "score",
    /** Where its weights lie. */
    readonly device: Device,
    /** Its adapter: A and B of each target are weights beside the others. */
    readonly lora?: Lora,
  ) {
    if (config.positions !== "rotary") return;
    this.inverseFrequency = Tensor.from(inverseFrequencies(config), [config.headSize / 2], device);
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
  set(name: string, value: Tensor, trainable = true): void {
    const parameter = new Parameter(name, value);
    parameter.trainable = trainable;
    this.parameters.set(name, parameter);
  }

  /** A copy, with its own weights; to another head, the body is copied and a new head drawn from the seed. */
  copy(headKind = this.headKind, seed = 0): Transformer {
    const other = new Transformer(this.config, headKind, this.device, this.lora);
    weightShapes(this.config, headKind).forEach(({ name, shape, deviation }, stream) => {
      const own = this.parameters.get(name);
      const value = Tensor.empty(shape, own?.value.dtype, this.device);
      if (own) run("cast", { x: own.value, y: value });
      else run("normal", { seed, stream, mean: 0, deviation, y: value });
      other.set(name, value, own?.trainable);
    });
    if (this.lora) for (const { name } of loraShapes(this.config, this.lora)) other.set(name, this.copied(name));
    return other;
  }

  private copied(name: string): Tensor {
    const { value } = this.parameter(name);
    return run("cast", { x: value, y: Tensor.empty(value.shape, "f32", this.device) }).y;
  }

  /** The model with its adapter switched off: the same memory, frozen. With `lora`, one whose adapter is to be set. */
  base(headKind = this.headKind, lora?: Lora): Transformer {
    const other = new Transformer(this.config, headKind, this.device, lora);
    for (const { name } of weightShapes(this.config, headKind)) {
      const own = this.parameters.get(name)?.value;
      if (own) other.set(name, own.reshape(own.shape), false);
    }
    return other;
  }

  /**
   * The model with a LoRA adapter, over the same memory: only the adapter is trained, and the score's head, of which it has its own. A model
   * that has an adapter already gives it a copy, so that it goes on from there beside this one.
   *
   * @param options rank, alpha and targets; those of the adapter that is there by default
   * @param seed    of what is drawn: A, and another head than this model's
   * @throws TypeError `LORA` for a target that the model does not have, or an adapter unlike the one that is there; RangeError `RANGE`
   */
  adapted(options: LoraOptions | undefined = this.lora, seed = 0, headKind = this.headKind): Transformer {
    const lora = options && loraOf(this.config, options);
    if (!lora) throw typeError("LORA", "the model has no adapter, wanted options for one");
    if (this.lora && JSON.stringify(this.lora) !== JSON.stringify(lora))
      throw typeError(
        "LORA",
        `the model has an adapter, ${JSON.stringify(this.lora)}; ${JSON.stringify(lora)} wants it merged first`,
      );
    const other = this.base(headKind, lora);
    weightShapes(this.config, headKind).forEach(({ name, shape, deviation }, stream) => {
      const shared = other.parameters.get(name);
      if (shared && name !== "score") return;
      if (shared) other.set(name, this.copied(name));
      else
        other.set(
          name,
          run("normal", { seed, stream, mean: 0, deviation, y: Tensor.empty(shape, "f32", this.device) }).y,
        );
      shared?.dispose();
    });
    loraShapes(this.config, lora).forEach(({ name, shape: [rows, columns], bound }, i) => {
      const random = new Random(seed, LORA_STREAM).at(i);
      const drawn = () =>
        Float32Array.from({ length: rows * columns }, () => (bound ? bound * (2 * random.uniform() - 1) : 0));
      other.set(name, this.lora ? this.copied(name) : Tensor.from(drawn(), [rows, columns], this.device));
    });
    return other;
  }

  /** The model without adapter, f32, with its own weights: W + alpha / rank B A. Its outputs are the adapter's within rounding. */
  merged(): Transformer {
    const other = new Transformer(this.config, this.headKind, this.device);
    for (const { name } of weightShapes(this.config, this.headKind)) {
      const y = this.copied(name);
      other.set(name, y);
      const layer = name.replace(/\.weight$/, "");
      if (!this.lora || !this.parameters.has(`${layer}.loraB`)) continue;
      const { alpha, rank } = this.lora;
      scope(() => {
        const dy = ops.scale(this.copied(`${layer}.loraB`), alpha / rank);
        run("accumulate", { x: run("linearGradInput", { dy, weight: this.copied(loraA(layer, this.config)) }).dx, y });
      });
    }
    return other;
  }

  /**
   * The mean of models of one shape, weight by weight, in f32; adapters count as the models that they make. Of models that were trained from one
   * base, with other seeds or settings, it is as a rule better than any, and as fast as one (Wortsman et al. 2022; of reward models, Ramé et al. 2024).
   * @throws TypeError `MODEL` for models of other shapes or another head
   */
  static average(models: readonly Transformer[]): Transformer {
    const sizes = ({ config, headKind }: Transformer) =>
      JSON.stringify([config.kind, headKind, weightShapes(config, headKind).map(({ shape }) => shape)]);
    models.forEach((model, i) => {
      if (sizes(model) !== sizes(models[0]))
        throw typeError("MODEL", `models[${i}] has other weights than models[0], wanted models of one shape`);
    });
    const mean = models[0].merged();
    for (const other of models.slice(1)) {
      const model = other.merged();
      for (const [name, { value: x }] of model.parameters) run("accumulate", { x, y: mean.parameter(name).value });
      model.dispose();
    }
    for (const [name, parameter] of mean.parameters) {
      mean.set(name, ops.scale(parameter.value, 1 / models.length));
      parameter.dispose();
    }
    return mean;
  }

  /** What training changes. */
  get trained(): Parameter[] {
    return [...this.parameters.values()].filter(({ trainable }) => trainable);
  }

  /** The weight of this name, one of `weightShapes`. */
  parameter(name: string): Parameter {
    return this.parameters.get(name)!;
  }
  /** The weight that turns a hidden state into logits, [V, C]. */
  get head(): Parameter {
    return this.parameter(this.config.tied ? "embedding" : "head");
  }
  /** Of the scores of attention. */
  get scale(): number {
    return 1 / Math.sqrt(this.config.headSize);
  }
  /** How many weights there are. */
  get size(): number {
    let size = 0;
    for (const { value } of this.parameters.values()) size += value.size;
    return size;
  }

  /**
   * Packs the linear layers for the kernels until what it returns is disposed: for many forward passes over unchanged weights, at the cost of
   * their memory. What is packed already is not packed again unless it changed.
   */
  pack(): Disposable {
    for (const parameter of this.matrices) {
      const { name, working, version } = parameter;
      if (
        name === "positions" ||
        (name === "embedding" && !this.config.tied) ||
        this.panels.get(parameter)?.version === version
      )
        continue;
      this.panels.get(parameter)?.panel.dispose();
      this.panels.set(parameter, { version, panel: ops.pack(working) });
    }
    this.packers++;
    return {
      [Symbol.dispose]: () => {
        if (--this.packers === 0) this.unpack();
      },
    };
  }
  private unpack(): void {
    for (const { panel } of this.panels.values()) panel.dispose();
    this.panels.clear();
  }

  private linear(x: Tensor, name: string): Tensor {
    const [weight, bias] = [this.weight(`${name}.weight`), this.parameters.get(`${name}.bias`)];
    if (!this.lora || !this.parameters.has(`${name}.loraB`)) return ops.linear(x, weight, bias);
    const { alpha, rank } = this.lora;
    return ops.loraLinear(x, weight, bias, {
      a: this.weight(loraA(name, this.config)),
      b: this.weight(`${name}.loraB`),
      scale: alpha / rank,
    });
  }
  private weight(name: string): Parameter | Tensor {
    const parameter = this.parameter(name);
    const packed = activeRecorder() ? undefined : this.panels.get(parameter);
    return packed?.version === parameter.version ? packed.panel : parameter;
  }
  private normed(x: Tensor, name: string): Tensor {
    const gain = this.parameter(`${name}.gain`);
    const { normEps: eps } = this.config;
    return this.config.norm === "rms"
      ? ops.rmsNorm(x, gain, { eps })
      : ops.layerNorm(x, gain, this.parameter(`${name}.bias`), { eps });
  }

  /**
   * The hidden state before the head, f32 [N, C].
   * @param options `attend`: causal attention within each sequence and what it continues, unless a cache says otherwise;
   *   `recompute`: of each layer, the tape keeps the input alone, and backward runs the layer again. Memory for speed, no bit changes;
   *   `rows`: int32 [K], only these rows are wanted: f32 [K, C]. What no query is asked of goes no further than the last layer's keys and values
   * @throws RangeError `CONTEXT` for a sequence longer than the table of positions or the sliding window
   */
  hidden(batch: Packed, { attend, rows, ...options }: HiddenOptions & { rows?: Int32Array } = {}): Tensor {
    const { ids, cuSeqlens, prefix, positions } = batch;
    const longest = longestSequence(this.config);
    const beyond = positions.find((position) => position >= longest);
    if (beyond !== undefined) {
      const limit =
        this.config.window === undefined
          ? "table of positions"
          : "sliding window, which attention computes no further than";
      throw rangeError(
        "CONTEXT",
        `a sequence has ${beyond + 1} tokens, wanted at most ${longest}, the model's ${limit}`,
      );
    }
    const offsets = Tensor.from(cuSeqlens, [cuSeqlens.length], this.device);
    const before = prefix && Tensor.from(prefix, [prefix.length], this.device);
    const causal: Attend = (_, q, k, v) => ops.attention(q, k, v, offsets, { prefix: before, scale: this.scale });
    const wanted = rows && Tensor.from(rows, [rows.length], this.device);
    return this.hiddenAt(ids, Tensor.from(positions, [positions.length], this.device), {
      attend: attend ?? causal,
      wanted,
      ...options,
    });
  }

  /** The same of tokens whose positions are on the device, int32 [N], as are the wanted rows. */
  hiddenAt(
    ids: Int32Array | Tensor,
    at: Tensor,
    { attend, recompute = false, wanted }: HiddenOptions & { attend: Attend; wanted?: Tensor },
  ): Tensor {
    const { config } = this;
    const N = at.size;
    const heads = (x: Tensor, count: number) => ops.reshape(x, [N, count, config.headSize]);
    const perHead = (x: Tensor, name: string) =>
      config.qkNorm
        ? ops.reshape(this.normed(ops.reshape(x, [x.size / config.headSize, config.headSize]), name), x.shape)
        : x;

    let x = ops.embedding(ids, this.parameter("embedding"));
    if (config.positions === "learned") x = ops.add(x, ops.embedding(at, this.parameter("positions")));
    for (let i = 0; i < config.layers; i++) {
      const layer = `layers.${i}`;
      const of = (x: Tensor) => (wanted && i === config.layers - 1 ? ops.embedding(wanted, x) : x);
      const block = (x: Tensor) => {
        const a = this.normed(x, `${layer}.attentionNorm`);
        const rotated = (name: "q" | "k", count: number) => {
          const flat = this.linear(a, `${layer}.${name}`);
          const x = perHead(heads(flat, count), `${layer}.${name}Norm`);
          if (!this.inverseFrequency) return x;
          const y = ops.rope(x, at, this.inverseFrequency);
          if (!config.qkNorm) for (const one of [flat, x]) one.dispose(); // no gradient needs their numbers
          return y;
        };
        const q = rotated("q", config.heads);
        const k = rotated("k", config.kvHeads);
        const v = heads(this.linear(a, `${layer}.v`), config.kvHeads);
        forget(a);
        const o = ops.reshape(attend(i, q, k, v), [N, config.heads * config.headSize]);
        const y = addTo(this.linear(of(o), `${layer}.o`), of(x));
        return addTo(this.mlp(this.normed(y, `${layer}.mlpNorm`), layer), y);
      };
      const input = x;
      if (activeRecorder()) x = recompute ? recomputed(input, block) : block(input);
      else x = scope(() => block(input)); // the next layer has its memory
    }
    return this.normed(x, "norm");
  }

  /**
   * The hidden state that losses and scores read, computed for their rows alone: no bit differs from `hidden`.
   * @returns f32 [K, C], each of the rows once, ascending, and for each pair the place of its row in it
   */
  scored(
    batch: Packed & { rows: Int32Array },
    options?: HiddenOptions,
  ): {
    /** f32 [K, C] */
    hidden: Tensor;
    /** int32 [M] */
    rows: Int32Array;
  } {
    const rows = Int32Array.from(new Set(batch.rows)).sort();
    if (rows.length === batch.positions.length) return { hidden: this.hidden(batch, options), rows: batch.rows };
    const place = new Map(Array.from(rows, (row, i) => [row, i]));
    return { hidden: this.hidden(batch, { ...options, rows }), rows: batch.rows.map((row) => place.get(row)!) };
  }

  private mlp(x: Tensor, layer: string): Tensor {
    const up = this.linear(x, `${layer}.up`);
    const { activation } = this.config;
    const inner =
      activation === "swiglu"
        ? ops.swiglu(this.linear(x, `${layer}.gate`), up)
        : ops.gelu(up, activation === "gelu-erf" ? "erf" : "tanh");
    const y = this.linear(inner, `${layer}.down`);
    forget(x, inner);
    return y;
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
    this.unpack();
    for (const parameter of this.parameters.values()) parameter.dispose();
    this.inverseFrequency?.dispose();
  }
}
