import type { Recorded } from "../device/device.js";
import { run } from "../tensor/op.js";
import * as ops from "../tensor/ops/index.js";
import { scope, Tensor } from "../tensor/tensor.js";
import { packSequences } from "./packed.js";
import type { SamplingOptions } from "./sampling.js";
import type { Transformer } from "./transformer.js";

/** A sequence in flight. */
export interface Sequence {
  /**
   * The place of the prompt, and which of its completions this is: they draw the random numbers.
   */
  request: { index: number; sample: number };
  /** Token ids: one object for all sequences of the same prompt. */
  prompt: ArrayLike<number>;
  /** Where the cache keeps its keys and values. */
  slot: number;
  /** What was sampled so far. */
  tokens: number[];
}

/** The number of the stream from which tokens are drawn. */
const SAMPLING_STREAM = 1;
const TILE = 64; // keys of a cache tile

/** What is drawn, [B] each. */
interface Drawn {
  token: Tensor;
  logp: Tensor;
  truncatedLogp: Tensor;
}
export type Numbers = Record<keyof Drawn, ArrayLike<number>>;

async function read({ token, logp, truncatedLogp }: Drawn): Promise<Numbers> {
  const [ids, whole, truncated] = await Promise.all([token.read(), logp.read(), truncatedLogp.read()]);
  return { token: ids, logp: whole, truncatedLogp: truncated };
}

/** Keys and values of the sequences in flight, one slot each of `longest` tokens at most. */
export class Cache {
  private readonly keys: Tensor[];
  private readonly values: Tensor[];
  private step: DecodeStep | undefined;

  constructor(
    readonly model: Transformer,
    private readonly options: SamplingOptions,
    slots: number,
    longest: number,
  ) {
    const capacity = Math.ceil(longest / TILE) * TILE;
    const { layers, kvHeads, headSize } = model.config;
    const make = () =>
      Array.from({ length: layers }, () => Tensor.empty([slots, kvHeads, capacity, headSize], "f32", model.device));
    this.keys = make();
    this.values = make();
  }

  /** Runs the prompts, each different one once, and draws the first tokens. */
  async prefill(entering: readonly Sequence[]): Promise<Numbers> {
    const owners = new Map<ArrayLike<number>, Sequence>(); // the sequence that runs the prompt for all that share it
    for (const one of entering) if (!owners.has(one.prompt)) owners.set(one.prompt, one);
    const distinct = [...owners.values()];
    const batch = packSequences(distinct.map(({ prompt }) => prompt));
    const slots = Int32Array.from(batch.positions, (_, i) => i);
    distinct.forEach(({ slot }, b) => slots.fill(slot, batch.cuSeqlens[b], batch.cuSeqlens[b + 1]));
    const last = new Map(distinct.map(({ prompt }, b) => [prompt, batch.cuSeqlens[b + 1] - 1]));
    const rows = Int32Array.from(entering, ({ prompt }) => last.get(prompt)!);
    const copies = entering.filter((one) => owners.get(one.prompt) !== one);
    const drawn = scope(() => {
      const { scale } = this.model;
      const hidden = this.model.hidden(batch, {
        rows,
        attend: (layer, q, k, v) => {
          this.write(layer, k, v, slots, batch.positions);
          return ops.attention(q, k, v, batch.cuSeqlens, { scale });
        },
      });
      this.copy(copies.map(({ prompt, slot }) => ({ from: owners.get(prompt)!.slot, to: slot })));
      return this.draw(this.model.logits(hidden), counters(entering, this.options));
    });
    const numbers = await read(drawn);
    for (const tensor of Object.values(drawn)) tensor.dispose();
    return numbers;
  }

  /** Slots take over what others hold. */
  copy(pairs: readonly { from: number; to: number }[]): void {
    if (pairs.length === 0) return;
    const from = Int32Array.from(pairs, (pair) => pair.from);
    const to = Int32Array.from(pairs, (pair) => pair.to);
    for (const [layer, kCache] of this.keys.entries()) run("kvCopy", { from, to, kCache, vCache: this.values[layer] });
  }

  /**
   * One more token of each sequence; with `ahead` 1, the one after that, which the same sequences
   * drew before and nobody has read.
   */
  decode(running: readonly Sequence[], ahead: 0 | 1 = 0): Promise<Numbers> {
    if (this.step?.size !== running.length) {
      this.step?.dispose();
      this.step = new DecodeStep(this, running.length);
    }
    return this.step.run(running, ahead, counters(running, this.options, ahead));
  }

  attend(layer: number, q: Tensor, k: Tensor, v: Tensor, { slots, positions, lengths }: Inputs): Tensor {
    this.write(layer, k, v, slots, positions);
    return run("attentionDecode", {
      q,
      kCache: this.keys[layer],
      vCache: this.values[layer],
      slots,
      lengths,
      scale: this.model.scale,
    }).o;
  }

  /**
   * @param counter int32 [B, 4]
   * @param into    int32 [B], where the tokens go, if that matters
   */
  draw(logits: Tensor, counter: Tensor | Int32Array, into?: Tensor): Drawn {
    const { seed, temperature = 1, topK = 0, topP = 1, minP = 0 } = this.options;
    const at = counter instanceof Tensor ? counter : Tensor.from(counter, [counter.length / 4, 4], logits.device);
    const { token, logp, truncatedLogp } = run("sample", {
      logits,
      counter: at,
      seed,
      stream: SAMPLING_STREAM,
      temperature,
      topK,
      topP,
      minP,
      token: into,
    });
    return { token, logp, truncatedLogp };
  }

  private write(layer: number, k: Tensor, v: Tensor, slots: Int32Array | Tensor, positions: Int32Array | Tensor): void {
    run("kvWrite", { k, v, slots, positions, kCache: this.keys[layer], vCache: this.values[layer] });
  }

  dispose(): void {
    this.step?.dispose();
    for (const tensor of [...this.keys, ...this.values]) tensor.dispose();
  }
}

/** What a step reads, int32 [B] each but for the counter of the random numbers, [B, 4]. */
type Inputs = Record<"ids" | "positions" | "slots" | "lengths" | "counter", Tensor>;

/**
 * One more token of so many sequences, from the embedding to the draw: recorded the first time, so
 * that JavaScript does not ask for each op again. What is drawn lies where the next step reads its
 * ids.
 */
class DecodeStep {
  private readonly inputs: Inputs;
  private recorded: Recorded<Drawn> | undefined;

  constructor(
    private readonly cache: Cache,
    readonly size: number,
  ) {
    const make = (...shape: number[]) => Tensor.empty([size, ...shape], "i32", cache.model.device);
    this.inputs = { ids: make(), positions: make(), slots: make(), lengths: make(), counter: make(4) };
  }

  run(running: readonly Sequence[], ahead: 0 | 1, counter: Int32Array): Promise<Numbers> {
    const { ids, positions, slots, lengths } = this.inputs;
    const length = ({ prompt, tokens }: Sequence) => prompt.length + tokens.length + ahead;
    if (!ahead) ids.write(Int32Array.from(running, ({ prompt, tokens }) => tokens.at(-1) ?? prompt[prompt.length - 1]));
    positions.write(Int32Array.from(running, (one) => length(one) - 1));
    slots.write(Int32Array.from(running, ({ slot }) => slot));
    lengths.write(Int32Array.from(running, length));
    this.inputs.counter.write(counter);
    if (this.recorded) this.recorded.run();
    else this.recorded = this.cache.model.device.record(() => scope(() => this.draw()));
    return read(this.recorded.result);
  }

  private draw(): Drawn {
    const { cache, inputs } = this;
    const hidden = cache.model.hiddenAt(inputs.ids, inputs.positions, {
      attend: (layer, q, k, v) => cache.attend(layer, q, k, v, inputs),
    });
    return cache.draw(cache.model.logits(hidden), inputs.counter, inputs.ids);
  }

  dispose(): void {
    for (const tensor of Object.values({ ...this.inputs, ...this.recorded?.result })) tensor.dispose();
    this.recorded?.[Symbol.dispose]();
  }
}

/** The counters of the random numbers of each sequence's next token, [B, 4]. */
function counters(running: readonly Sequence[], { update = 0 }: SamplingOptions, ahead = 0): Int32Array {
  return Int32Array.from(
    running.flatMap(({ request, tokens }) => [update, request.index, request.sample, tokens.length + ahead]),
  );
}
