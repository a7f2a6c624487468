import type { Recorded } from "../device/device.js";
import { rangeError } from "../device/errors.js";
import { word } from "../device/philox.js";
import { run } from "../tensor/op.js";
import * as ops from "../tensor/ops/index.js";
import { scope, Tensor } from "../tensor/tensor.js";
import { longestSequence } from "./config.js";
import { pack, type Transformer } from "./transformer.js";

/** How completions are sampled: temperature, then top-k, top-p, min-p on what is left, in this order. */
export interface SamplingOptions {
  /** Tokens of a completion at most. */
  maxTokens: number;
  /** Divides the logits; 0 takes the likeliest token. 1 by default. */
  temperature?: number;
  /** The k likeliest tokens stay; 0 is off, the default. */
  topK?: number;
  /** The likeliest tokens stay until they have this probability (Holtzman et al. 2020); 1 is off, the default. */
  topP?: number;
  /** Tokens of less than this share of the likeliest one's probability go; 0 is off, the default. */
  minP?: number;
  /** A completion ends with one of these ids. */
  stop?: readonly number[];
  /** Of the random numbers: a whole number from 0 to 2^32 - 1. */
  seed: number;
  /** Part of the random counter: the update that samples. */
  update?: number;
  /** Sequences in flight at once, 64 by default: memory and speed, no bit of a completion. */
  slots?: number;
}

/** One completion that is wanted. */
export interface Request {
  /** Token ids, at least one. */
  prompt: ArrayLike<number>;
  /**
   * Of the prompt, a whole number from 0: together with `sample` it draws the random numbers of this completion, whatever runs beside
   * it. Two requests of the same draw the same.
   */
  index: number;
  /** Which of the prompt's completions. */
  sample: number;
}

/** So many requests for each prompt, prompt by prompt: it is run once for them. */
export const requestsFor = (prompts: readonly ArrayLike<number>[], samples: number): Request[] =>
  prompts.flatMap((prompt, index) => Array.from({ length: samples }, (_, sample) => ({ prompt, index, sample })));

/** What was sampled for a request. */
export interface Completion extends Request {
  /** int32 [tokens], with the stop id that ended it. */
  completion: Int32Array;
  /** f32 [tokens], nats: of each sampled token at the temperature, over the whole vocabulary. */
  logp: Float32Array;
  /** The same over the truncated distribution; equal to logp where nothing was cut. */
  truncatedLogp: Float32Array;
  /** It ended with a stop id. */
  stopped: boolean;
}

interface Running {
  request: Request;
  prompt: ArrayLike<number>; // one object for all requests of the same prompt
  place: number; // in the results
  slot: number;
  tokens: number[];
  logp: number[];
  truncatedLogp: number[];
}

const SAMPLING_STREAM = 1;
const TILE = 64; // keys of a cache tile

/**
 * Samples completions with a KV cache. Finished sequences leave the batch and waiting ones enter; what is sampled for a
 * request does not depend on what runs beside it.
 *
 * @param onDone called as each completion ends
 * @returns in the order of the requests
 * @throws RangeError `EMPTY` for a prompt without tokens, `CONTEXT` if prompt and completion exceed the model's context,
 *   `ID` for a token outside the vocabulary, `RANGE` for an option or a request's number outside its range
 */
export async function generate(
  model: Transformer,
  requests: readonly Request[],
  options: SamplingOptions,
  onDone?: (completion: Completion) => void,
): Promise<Completion[]> {
  checkRequests(model, requests, options);
  const slots = Math.min(options.slots ?? 64, requests.length);
  const results: Completion[] = new Array(requests.length);
  if (requests.length === 0) return results;
  const longest = requests.reduce((most, { prompt }) => Math.max(most, prompt.length), 0) + options.maxTokens;
  const cache = new Cache(model, options, slots, Math.ceil(longest / TILE) * TILE);
  const stop = new Set(options.stop);
  const prompts = new Map<string, ArrayLike<number>>();
  const intern = (prompt: ArrayLike<number>) => {
    const key = Array.from(prompt).join();
    return prompts.get(key) ?? prompts.set(key, prompt).get(key)!;
  };
  const free = Array.from({ length: slots }, (_, slot) => slots - 1 - slot);
  let next = 0;
  let running: Running[] = [];

  const take = async (batch: Running[], drawn: Promise<Numbers>) => {
    const { token, logp, truncatedLogp } = await drawn;
    return batch.filter((one, i) => {
      if (results[one.place]) return false; // it had stopped when this was queued
      one.tokens.push(token[i]);
      one.logp.push(logp[i]);
      one.truncatedLogp.push(truncatedLogp[i]);
      const stopped = stop.has(one.tokens.at(-1)!);
      if (!stopped && one.tokens.length < options.maxTokens) return true;
      free.push(one.slot);
      const { request } = one;
      results[one.place] = {
        ...request,
        completion: Int32Array.from(one.tokens),
        logp: Float32Array.from(one.logp),
        truncatedLogp: Float32Array.from(one.truncatedLogp),
        stopped,
      };
      onDone?.(results[one.place]);
      return false;
    });
  };

  const panels = model.pack();
  try {
    while (next < requests.length || running.length > 0) {
      // Until a sequence is as long as it may be, the next step is queued before this one is read, so that no thread waits for JavaScript.
      for (let drawn = running.length > 0 ? cache.decode(running) : undefined; drawn;) {
        const batch = running;
        const ahead = batch.every(({ tokens }) => tokens.length + 1 < options.maxTokens)
          ? cache.decode(batch, 1)
          : undefined;
        ahead?.catch(() => undefined); // where this step fails, the next one may fail too
        running = await take(batch, drawn);
        const ended = running.length < batch.length;
        if (ended && ahead) running = await take(batch, ahead);
        drawn = ended ? undefined : ahead;
      }
      const entering: Running[] = [];
      for (; free.length > 0 && next < requests.length; next++)
        entering.push({
          request: requests[next],
          prompt: intern(requests[next].prompt),
          place: next,
          slot: free.pop()!,
          tokens: [],
          logp: [],
          truncatedLogp: [],
        });
      const held = new Map(running.map(({ prompt, slot }) => [prompt, slot]));
      const joining = entering.filter(({ prompt }) => held.has(prompt));
      const fresh = entering.filter(({ prompt }) => !held.has(prompt));
      cache.copy(joining.map(({ prompt, slot }) => ({ from: held.get(prompt)!, to: slot }))); // their first step is that of the prompt's last token
      running = [...running, ...joining];
      if (fresh.length > 0) running = [...running, ...(await take(fresh, cache.prefill(fresh)))];
    }
  } finally {
    panels[Symbol.dispose]();
    cache.dispose();
  }
  return results;
}

/** @throws as `generate`, before anything is sampled */
export function checkRequests(model: Transformer, requests: readonly Request[], options: SamplingOptions): void {
  const { vocabulary } = model.config;
  const context = Math.min(model.config.context, longestSequence(model.config));
  const { maxTokens, temperature = 1, topK = 0, topP = 1, minP = 0, seed, update = 0, slots = 64 } = options;
  const within = (name: string, value: number, holds: boolean, wanted: string) => {
    if (!holds) throw rangeError("RANGE", `${name} is ${value}, wanted ${wanted}`);
  };
  within("maxTokens", maxTokens, Number.isInteger(maxTokens) && maxTokens >= 1, "a whole number from 1");
  within("slots", slots, Number.isInteger(slots) && slots >= 1, "a whole number from 1");
  within(
    "temperature",
    temperature,
    temperature === 0 || (temperature >= 2 ** -127 && temperature <= 2 ** 120),
    "0 or a number from 2^-127 to 2^120",
  );
  within("topK", topK, Number.isInteger(topK) && topK >= 0, "a whole number from 0");
  within("topP", topP, topP > 0 && topP <= 1, "a number above 0, 1 at most");
  within("minP", minP, minP >= 0 && minP <= 1, "a number from 0 to 1");
  word("seed", seed);
  word("update", update);
  requests.forEach(({ prompt, index, sample }, i) => {
    word(`index of request ${i}`, index);
    word(`sample of request ${i}`, sample);
    if (prompt.length === 0)
      throw rangeError("EMPTY", `prompt ${i} has no tokens: the first token needs something before it`);
    if (prompt.length + maxTokens > context)
      throw rangeError(
        "CONTEXT",
        `prompt ${i} has ${prompt.length} tokens and maxTokens is ${maxTokens}, the model's context is ${context}`,
      );
    for (let t = 0; t < prompt.length; t++)
      if (!(Number.isInteger(prompt[t]) && prompt[t] >= 0 && prompt[t] < vocabulary))
        throw rangeError("ID", `prompt ${i}: token ${t} is ${prompt[t]}, wanted 0 to ${vocabulary - 1}`);
  });
}

/** What is drawn, [B] each. */
interface Drawn {
  token: Tensor;
  logp: Tensor;
  truncatedLogp: Tensor;
}
type Numbers = Record<keyof Drawn, ArrayLike<number>>;

async function read({ token, logp, truncatedLogp }: Drawn): Promise<Numbers> {
  const [ids, whole, truncated] = await Promise.all([token.read(), logp.read(), truncatedLogp.read()]);
  return { token: ids, logp: whole, truncatedLogp: truncated };
}

/** Keys and values of the sequences in flight, one slot each. */
class Cache {
  private readonly keys: Tensor[];
  private readonly values: Tensor[];
  private step: Step | undefined;

  constructor(
    readonly model: Transformer,
    private readonly options: SamplingOptions,
    slots: number,
    capacity: number,
  ) {
    const { layers, kvHeads, headSize } = model.config;
    const make = () =>
      Array.from({ length: layers }, () => Tensor.empty([slots, kvHeads, capacity, headSize], "f32", model.device));
    this.keys = make();
    this.values = make();
  }

  /** Runs the prompts, each different one once, and draws the first tokens. */
  async prefill(entering: readonly Running[]): Promise<Numbers> {
    const owners = new Map<ArrayLike<number>, Running>(); // the sequence that runs the prompt for all that share it
    for (const one of entering) if (!owners.has(one.prompt)) owners.set(one.prompt, one);
    const distinct = [...owners.values()];
    const batch = pack(distinct.map(({ prompt }) => prompt));
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

  /** One more token of each sequence; with `ahead` 1, the one after that, which the same sequences drew before and nobody has read. */
  decode(running: readonly Running[], ahead: 0 | 1 = 0): Promise<Numbers> {
    if (this.step?.size !== running.length) {
      this.step?.dispose();
      this.step = new Step(this, running.length);
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
 * One more token of so many sequences, from the embedding to the draw: recorded the first time, so that JavaScript does not ask for each op
 * again. What is drawn lies where the next step reads its ids.
 */
class Step {
  private readonly inputs: Inputs;
  private recorded: Recorded<Drawn> | undefined;

  constructor(
    private readonly cache: Cache,
    readonly size: number,
  ) {
    const make = (...shape: number[]) => Tensor.empty([size, ...shape], "i32", cache.model.device);
    this.inputs = { ids: make(), positions: make(), slots: make(), lengths: make(), counter: make(4) };
  }

  run(running: readonly Running[], ahead: 0 | 1, counter: Int32Array): Promise<Numbers> {
    const { ids, positions, slots, lengths } = this.inputs;
    const length = ({ prompt, tokens }: Running) => prompt.length + tokens.length + ahead;
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

/** Of the random numbers of each sequence's next token, [B, 4]. */
function counters(running: readonly Running[], { update = 0 }: SamplingOptions, ahead = 0): Int32Array {
  return Int32Array.from(
    running.flatMap(({ request, tokens }) => [update, request.index, request.sample, tokens.length + ahead]),
  );
}
