import { rangeError } from "../device/errors.js";
import { word } from "../device/philox.js";
import { Cache, type Numbers, type Sequence } from "./cache.js";
import { longestSequence } from "./config.js";
import { checkSampling, type SamplingOptions } from "./sampling.js";
import type { Transformer } from "./transformer.js";

/** One completion that is wanted. */
export interface Request {
  /** Token ids, at least one. */
  prompt: ArrayLike<number>;
  /**
   * The number of the prompt, from 0. With `sample` it says which random numbers this completion
   * draws, whatever runs beside it: two requests of the same numbers draw the same.
   */
  index: number;
  /** The number of the completion among those of the prompt, from 0. */
  sample: number;
}

/** Makes so many requests for each prompt. The prompt is computed once for all of them. */
export const requestsFor = (prompts: readonly ArrayLike<number>[], samples: number): Request[] =>
  prompts.flatMap((prompt, index) => Array.from({ length: samples }, (_, sample) => ({ prompt, index, sample })));

/** What was sampled for a request. */
export interface Completion extends Request {
  /** int32 [tokens], with the stop id that ended it. */
  completion: Int32Array;
  /** f32 [tokens], nats: of each sampled token at the temperature, over the whole vocabulary. */
  logp: Float32Array;
  /**
   * f32 [tokens], nats: of each sampled token among those that top-k, top-p and min-p left. Equal
   * to logp where nothing was cut.
   */
  truncatedLogp: Float32Array;
  /** Whether the completion ended with a stop id. */
  stopped: boolean;
}

/**
 * Samples completions with a KV cache. Finished sequences leave the batch and waiting ones enter;
 * what is sampled for a request does not depend on what runs beside it.
 *
 * @param onDone called as each completion ends
 * @returns in the order of the requests
 * @throws RangeError `EMPTY` for a prompt without tokens, `CONTEXT` if prompt and completion exceed
 *   the model's context, `ID` for a token outside the vocabulary, `RANGE` for an option or a
 *   request's number outside its range
 */
export async function generate(
  model: Transformer,
  requests: readonly Request[],
  options: SamplingOptions,
  onDone?: (completion: Completion) => void,
): Promise<Completion[]> {
  checkRequests(model, requests, options);
  if (requests.length === 0) return [];
  using _panels = model.packWeights();
  using sampler = new Sampler(model, requests, options, onDone);
  return await sampler.run();
}

/** Checks what `generate` is given, before anything is sampled. @throws the errors of `generate` */
export function checkRequests(model: Transformer, requests: readonly Request[], options: SamplingOptions): void {
  const { vocabulary } = model.config;
  const context = Math.min(model.config.context, longestSequence(model.config));
  const { maxTokens } = options;
  checkSampling(options);
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

/** A sequence in flight, with what is known of its tokens. */
interface Running extends Sequence {
  request: Request;
  /** The place of its completion in the results. */
  place: number;
  logp: number[];
  truncatedLogp: number[];
}

/** Runs requests through the slots of a cache. */
class Sampler implements Disposable {
  private readonly results: Completion[];
  private readonly cache: Cache;
  private readonly stop: ReadonlySet<number>;
  private readonly prompts = new Map<string, ArrayLike<number>>();
  private readonly free: number[]; // slots
  private next = 0; // request
  private running: Running[] = [];

  constructor(
    model: Transformer,
    private readonly requests: readonly Request[],
    private readonly options: SamplingOptions,
    private readonly onDone?: (completion: Completion) => void,
  ) {
    const slots = Math.min(options.slots ?? 64, requests.length);
    this.results = new Array(requests.length);
    this.stop = new Set(options.stop);
    this.free = Array.from({ length: slots }, (_, slot) => slots - 1 - slot);
    const longest = requests.reduce((most, { prompt }) => Math.max(most, prompt.length), 0) + options.maxTokens;
    this.cache = new Cache(model, options, slots, longest);
  }

  async run(): Promise<Completion[]> {
    while (this.next < this.requests.length || this.running.length > 0) {
      await this.decode();
      await this.enter();
    }
    return this.results;
  }

  /**
   * Samples until a sequence ends. Until one is as long as it may be, the next step is queued
   * before this one is read, so that no thread waits for JavaScript.
   */
  private async decode(): Promise<void> {
    const { cache, options } = this;
    for (let drawn = this.running.length > 0 ? cache.decode(this.running) : undefined; drawn;) {
      const batch = this.running;
      const ahead = batch.every(({ tokens }) => tokens.length + 1 < options.maxTokens)
        ? cache.decode(batch, 1)
        : undefined;
      ahead?.catch(() => undefined); // where this step fails, the next one may fail too
      this.running = await this.receive(batch, drawn);
      const ended = this.running.length < batch.length;
      if (ended && ahead) this.running = await this.receive(batch, ahead);
      drawn = ended ? undefined : ahead;
    }
  }

  /**
   * Gives free slots to waiting requests. Those whose prompt is in flight take over what its slot
   * holds; other prompts are run.
   */
  private async enter(): Promise<void> {
    const entering: Running[] = [];
    for (; this.free.length > 0 && this.next < this.requests.length; this.next++) {
      const request = this.requests[this.next];
      const [place, slot, prompt] = [this.next, this.free.pop()!, this.shared(request.prompt)];
      entering.push({ request, prompt, place, slot, tokens: [], logp: [], truncatedLogp: [] });
    }
    const held = new Map(this.running.map(({ prompt, slot }) => [prompt, slot]));
    const joining = entering.filter(({ prompt }) => held.has(prompt));
    const fresh = entering.filter(({ prompt }) => !held.has(prompt));
    // their first step is that of the prompt's last token
    this.cache.copy(joining.map(({ prompt, slot }) => ({ from: held.get(prompt)!, to: slot })));
    this.running = [...this.running, ...joining];
    if (fresh.length > 0) this.running = [...this.running, ...(await this.receive(fresh, this.cache.prefill(fresh)))];
  }

  /** One object for all prompts of the same tokens. */
  private shared(prompt: ArrayLike<number>): ArrayLike<number> {
    const key = Array.from(prompt).join();
    return this.prompts.get(key) ?? this.prompts.set(key, prompt).get(key)!;
  }

  /** Adds the tokens that were drawn. @returns the sequences that go on */
  private async receive(batch: readonly Running[], drawn: Promise<Numbers>): Promise<Running[]> {
    const { token, logp, truncatedLogp } = await drawn;
    return batch.filter((one, i) => {
      if (this.results[one.place]) return false; // it had stopped when this was queued
      one.tokens.push(token[i]);
      one.logp.push(logp[i]);
      one.truncatedLogp.push(truncatedLogp[i]);
      const stopped = this.stop.has(one.tokens.at(-1)!);
      if (!stopped && one.tokens.length < this.options.maxTokens) return true;
      this.finish(one, stopped);
      return false;
    });
  }

  private finish({ request, place, slot, tokens, logp, truncatedLogp }: Running, stopped: boolean): void {
    this.free.push(slot);
    this.results[place] = {
      ...request,
      completion: Int32Array.from(tokens),
      logp: Float32Array.from(logp),
      truncatedLogp: Float32Array.from(truncatedLogp),
      stopped,
    };
    this.onDone?.(this.results[place]);
  }

  [Symbol.dispose](): void {
    this.cache.dispose();
  }
}
