import type { Device } from "../device/device.js";
import { rangeError } from "../device/errors.js";
import { run } from "../tensor/op.js";
import * as ops from "../tensor/ops/index.js";
import { activeRecorder } from "../tensor/recorder.js";
import { recomputed } from "../tensor/tape.js";
import { scope, Tensor } from "../tensor/tensor.js";
import { block, type Attend } from "./block.js";
import { inverseFrequencies, longestSequence, type ModelConfig } from "./config.js";
import { loraShapes, type Lora } from "./lora.js";
import type { Packed } from "./packed.js";
import { Weights, weightShapes } from "./weights.js";

/** How a pass is run; `hidden` tells what the options mean. */
export interface HiddenOptions {
  /** What attends in place of causal attention over the batch. */
  attend?: Attend;
  /** Backward runs each layer again instead of keeping what it computed. */
  recompute?: boolean;
}

/** A decoder-only transformer: its weights and its forward pass. */
export class Transformer extends Weights {
  private readonly inverseFrequency: Tensor | undefined;

  /**
   * A model without weights, which are to be set.
   * @param headKind what it ends in: logits over the vocabulary, or one score
   * @param lora     the adapter that it has, if any
   */
  constructor(config: ModelConfig, headKind: "logits" | "score", device: Device, lora?: Lora) {
    super(config, headKind, device, lora);
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

  /**
   * A copy, with its own weights; to another head, the body is copied and a new head drawn from the
   * seed.
   */
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

  /**
   * The model with its adapter switched off: the same memory, frozen. With `lora`, one whose
   * adapter is to be set.
   */
  base(headKind = this.headKind, lora?: Lora): Transformer {
    const other = new Transformer(this.config, headKind, this.device, lora);
    for (const { name } of weightShapes(this.config, headKind)) {
      const own = this.parameters.get(name)?.value;
      if (own) other.set(name, own.reshape(own.shape), false);
    }
    return other;
  }

  /** What attention multiplies q . k by: 1 / sqrt(headSize). */
  get scale(): number {
    return 1 / Math.sqrt(this.config.headSize);
  }
  /**
   * The hidden state before the head, f32 [N, C].
   * @param options `attend`: causal attention within each sequence and what it continues, unless a
   *   cache says otherwise; `recompute`: of each layer, the tape keeps the input alone, and
   *   backward runs the layer again. Memory for speed, no bit changes; `rows`: int32 [K], only
   *   these rows are wanted: f32 [K, C]. What no query is asked of goes no further than the last
   *   layer's keys and values
   * @throws RangeError `CONTEXT` for a sequence longer than the table of positions or the sliding
   *   window
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

  /**
   * The hidden state before the head of tokens whose positions are on the device, int32 [N], as are
   * the wanted rows.
   */
  hiddenAt(
    ids: Int32Array | Tensor,
    at: Tensor,
    { attend, recompute = false, wanted }: HiddenOptions & { attend: Attend; wanted?: Tensor },
  ): Tensor {
    const { config, inverseFrequency } = this;
    let x = ops.embedding(ids, this.parameter("embedding"));
    if (config.positions === "learned") x = ops.add(x, ops.embedding(at, this.parameter("positions")));
    for (let i = 0; i < config.layers; i++) {
      const layer = (x: Tensor) => block(this, i, x, { at, attend, inverseFrequency, wanted });
      const input = x;
      if (activeRecorder()) x = recompute ? recomputed(input, layer) : layer(input);
      else x = scope(() => layer(input)); // the next layer has its memory
    }
    return this.normed(x, "norm");
  }

  /**
   * The hidden state that losses and scores read, computed for their rows alone: no bit differs
   * from `hidden`.
   * @returns f32 [K, C], each of the rows once, ascending, and for each pair the place of its row
   *   in it
   */
  hiddenRows(
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

  /** Logits of hidden states, f32 [N, V]: for sampling and evaluation; losses never store them. */
  logits(hidden: Tensor): Tensor {
    return ops.linear(hidden, this.weight(this.config.tied ? "embedding" : "head"));
  }

  /** The score at chosen rows of the hidden state, f32 [M]. */
  score(hidden: Tensor, rows: Int32Array): Tensor {
    return ops.score(hidden, this.parameter("score"), rows);
  }

  /** Frees the weights. */
  override dispose(): void {
    super.dispose();
    this.inverseFrequency?.dispose();
  }
}
