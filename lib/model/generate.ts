import { rangeError } from "../device/errors.js";
import { run } from "../tensor/op.js";
import * as ops from "../tensor/ops/index.js";
import { scope, Tensor } from "../tensor/tensor.js";
import { pack, type Packed, type Transformer } from "./transformer.js";

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
  /** Together with `sample`, the random numbers of this completion: whatever runs beside it. */
  index: number;
  sample: number;
}

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
 *   `ID` for a token outside the vocabulary
 */
export async function generate(
  model: Transformer,
  requests: readonly Request[],
  options: SamplingOptions,
  onDone?: (completion: Completion) => void,
): Promise<Completion[]> {
  check(model, requests, options);
  const slots = Math.min(options.slots ?? 64, requests.length);
  const results: Completion[] = new Array(requests.length);
  if (requests.length === 0) return results;
  const longest = Math.max(...requests.map(({ prompt }) => prompt.length)) + options.maxTokens;
  const cache = new Cache(model, slots, Math.ceil(longest / TILE) * TILE);
  const stop = new Set(options.stop);
  const prompts = new Map<string, ArrayLike<number>>();
  const intern = (prompt: ArrayLike<number>) => {
    const key = Array.from(prompt).join();
    return prompts.get(key) ?? prompts.set(key, prompt).get(key)!;
  };
  const free = Array.from({ length: slots }, (_, slot) => slots - 1 - slot);
  let next = 0;
  let running: Running[] = [];

  const take = async (batch: Running[], logits: Tensor) => {
    for (const [i, token] of (await sample(batch, logits, options)).entries()) {
      batch[i].tokens.push(token.id);
      batch[i].logp.push(token.logp);
      batch[i].truncatedLogp.push(token.truncatedLogp);
    }
    return batch.filter((one) => {
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

  try {
    await model.packed(async () => {
      while (next < requests.length || running.length > 0) {
        if (running.length > 0) running = await take(running, cache.decode(running));
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
        running.push(...joining);
        if (fresh.length > 0) running.push(...(await take(fresh, cache.prefill(fresh))));
      }
    });
  } finally {
    cache.dispose();
  }
  return results;
}

function check(model: Transformer, requests: readonly Request[], { maxTokens }: SamplingOptions): void {
  const { context, vocabulary } = model.config;
  if (!Number.isInteger(maxTokens) || maxTokens < 1) throw rangeError("RANGE", `maxTokens is ${maxTokens}, wanted a whole number from 1`);
  requests.forEach(({ prompt }, i) => {
    if (prompt.length === 0) throw rangeError("EMPTY", `prompt ${i} has no tokens: the first token needs something before it`);
    if (prompt.length + maxTokens > context)
      throw rangeError("CONTEXT", `prompt ${i} has ${prompt.length} tokens and maxTokens is ${maxTokens}, the model's context is ${context}`);
    for (let t = 0; t < prompt.length; t++)
      if (!(prompt[t] >= 0 && prompt[t] < vocabulary)) throw rangeError("ID", `prompt ${i}: token ${t} is ${prompt[t]}, wanted 0 to ${vocabulary - 1}`);
  });
}

/** Keys and values of the sequences in flight, one slot each. */
class Cache {
  private readonly keys: Tensor[];
  private readonly values: Tensor[];

  constructor(
    private readonly model: Transformer,
    slots: number,
    capacity: number,
  ) {
    const { layers, kvHeads, headSize } = model.config;
    const make = () => Array.from({ length: layers }, () => Tensor.empty([slots, kvHeads, capacity, headSize], "f32", model.device));
    this.keys = make();
    this.values = make();
  }

  /** Runs the prompts, each different one once, and returns the logits after them. */
  prefill(entering: readonly Running[]): Tensor {
    const owners = new Map<ArrayLike<number>, Running>(); // the sequence that runs the prompt for all that share it
    for (const one of entering) if (!owners.has(one.prompt)) owners.set(one.prompt, one);
    const distinct = [...owners.values()];
    const batch = pack(distinct.map(({ prompt }) => prompt));
    const slots = Int32Array.from(batch.positions, (_, i) => i);
    distinct.forEach(({ slot }, b) => slots.fill(slot, batch.cuSeqlens[b], batch.cuSeqlens[b + 1]));
    const last = new Map(distinct.map(({ prompt }, b) => [prompt, batch.cuSeqlens[b + 1] - 1]));
    const rows = Int32Array.from(entering, ({ prompt }) => last.get(prompt)!);
    const copies = entering.filter((one) => owners.get(one.prompt) !== one);
    return scope(() => {
      const scale = 1 / Math.sqrt(this.model.config.headSize);
      const hidden = this.model.hidden(batch, {
        attend: (layer, q, k, v) => {
          this.write(layer, k, v, slots, batch);
          return ops.attention(q, k, v, batch.cuSeqlens, { scale });
        },
      });
      this.copy(copies.map(({ prompt, slot }) => ({ from: owners.get(prompt)!.slot, to: slot })));
      return this.model.logits(ops.embedding(rows, hidden));
    });
  }

  /** Slots take over what others hold. */
  copy(pairs: readonly { from: number; to: number }[]): void {
    if (pairs.length === 0) return;
    const from = Int32Array.from(pairs, (pair) => pair.from);
    const to = Int32Array.from(pairs, (pair) => pair.to);
    for (const [layer, kCache] of this.keys.entries()) run("kvCopy", { from, to, kCache, vCache: this.values[layer] });
  }

  /** One more token of each sequence: its logits. */
  decode(running: readonly Running[]): Tensor {
    const batch = {
      ids: Int32Array.from(running, ({ prompt, tokens }) => tokens.at(-1) ?? prompt[prompt.length - 1]),
      cuSeqlens: Int32Array.from({ length: running.length + 1 }, (_, i) => i),
      positions: Int32Array.from(running, ({ prompt, tokens }) => prompt.length + tokens.length - 1),
    };
    const slots = Int32Array.from(running, ({ slot }) => slot);
    const lengths = batch.positions.map((position) => position + 1);
    return scope(() => {
      const scale = 1 / Math.sqrt(this.model.config.headSize);
      const hidden = this.model.hidden(batch, {
        attend: (layer, q, k, v) => {
          this.write(layer, k, v, slots, batch);
          return run("attentionDecode", { q, kCache: this.keys[layer], vCache: this.values[layer], slots, lengths, scale }).o;
        },
      });
      return this.model.logits(hidden);
    });
  }

  private write(layer: number, k: Tensor, v: Tensor, slots: Int32Array, { positions }: Packed): void {
    run("kvWrite", { k, v, slots, positions, kCache: this.keys[layer], vCache: this.values[layer] });
  }

  dispose(): void {
    for (const tensor of [...this.keys, ...this.values]) tensor.dispose();
  }
}

async function sample(batch: readonly Running[], logits: Tensor, options: SamplingOptions) {
  const counter = new Int32Array(batch.length * 4);
  batch.forEach(({ request, tokens }, i) => counter.set([options.update ?? 0, request.index, request.sample, tokens.length], i * 4));
  const drawn = scope(() => {
    const { token, logp, truncatedLogp } = run("sample", {
      logits,
      counter: Tensor.from(counter, [batch.length, 4], logits.device),
      seed: options.seed,
      stream: SAMPLING_STREAM,
      temperature: options.temperature ?? 1,
      topK: options.topK ?? 0,
      topP: options.topP ?? 1,
      minP: options.minP ?? 0,
    });
    return { token, logp, truncatedLogp };
  });
  logits.dispose();
  const [ids, logp, truncated] = await Promise.all([drawn.token.read(), drawn.logp.read(), drawn.truncatedLogp.read()]);
  for (const tensor of Object.values(drawn)) tensor.dispose();
  return Array.from(ids, (id, i) => ({ id, logp: logp[i], truncatedLogp: truncated[i] }));
}
