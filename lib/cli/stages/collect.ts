import type { CompletionRow } from "../../data/completions.js";
import { Records, sliceOf, type Indexed } from "../../data/spool.js";
import { checkRequests, generate, requestsFor, type Completion, type Request } from "../../model/generate.js";
import { loadModel } from "../../model/checkpoint.js";
import { Tokenizer } from "../../tokenizer/tokenizer.js";
import type { Transformer } from "../../model/transformer.js";
import type { Prompt } from "../../rlhf/batch/rows.js";
import { allFinite } from "../../rlhf/learn/update.js";
import { checkModel, stopIds, withModels } from "../model.js";
import type { Context } from "./context.js";

/** Who shows progress, and the run whose folder keeps it. */
export type Sampler = Pick<Context, "progress" | "run">;

export interface Sampling {
  samples: number;
  maxTokens: number;
  temperature: number;
  topK?: number;
  topP?: number;
  minP?: number;
  stop?: readonly number[];
  seed: number;
  /** Part of the random counter: keeps the samples of stages apart. */
  update?: number;
}

/** Completions sampled at once, at most. */
export const SLOTS = 128;

/**
 * Requests that are made one after another, at most: what they give is in memory until all of them
 * are done.
 */
const REQUESTS = 128 * SLOTS;

/** Completions in the order of their requests; all but the last ones lie in a temporary file. */
export class Completions implements Indexed<Completion> {
  /** Tokens of all. */
  tokens = 0;
  private readonly records: Records;

  constructor(
    private readonly prompts: Indexed<Pick<Prompt, "ids">>,
    folder: string,
  ) {
    this.records = new Records(folder);
  }

  add({ index, sample, stopped, completion, logp, truncatedLogp }: Completion): void {
    const bits = [logp, truncatedLogp].map((values) => new Int32Array(Float32Array.from(values).buffer));
    this.records.add([Int32Array.of(index, sample, Number(stopped)), completion, ...bits]);
    this.tokens += completion.length;
  }

  get length(): number {
    return this.records.length;
  }

  at(place: number): Completion {
    const [head, values] = [3, this.records.at(place)];
    const tokens = (values.length - head) / 3;
    const [completion, logp, truncatedLogp] = [0, 1, 2].map((i) =>
      values.slice(head + i * tokens, head + (i + 1) * tokens),
    );
    const [index, sample, stopped] = values;
    const floats = (bits: Int32Array) => new Float32Array(bits.buffer);
    const { ids: prompt } = this.prompts.at(index)!;
    return {
      prompt,
      index,
      sample,
      completion,
      logp: floats(logp),
      truncatedLogp: floats(truncatedLogp),
      stopped: stopped === 1,
    };
  }

  [Symbol.dispose](): void {
    this.records[Symbol.dispose]();
  }
}

/**
 * Samples completions of prompts, prompt by prompt; those that were sampled before the run was
 * killed are taken from its folder.
 * @param atOnce requests at most whose completions are in memory; it changes none of them
 */
export async function sampleAll(
  model: Transformer,
  prompts: Indexed<Pick<Prompt, "ids">>,
  sampling: Sampling,
  { progress, run }: Sampler,
  title: string,
  atOnce = REQUESTS,
): Promise<Completions> {
  const bar = progress.stage(title, prompts.length * sampling.samples, "completions");
  using journal = await run.journal(title);
  const all = new Completions(prompts, run.folder);
  const each = Math.max(1, Math.floor(atOnce / sampling.samples)); // prompts
  const requests = (first: number): Request[] => {
    const asked = sliceOf(prompts, first, first + each).map(({ ids }) => ids);
    return requestsFor(asked, sampling.samples).map((request) => ({ ...request, index: first + request.index }));
  };
  for (let first = 0; first < prompts.length; first += each) checkRequests(model, requests(first), sampling);
  for (let first = 0; first < prompts.length; first += each) {
    const found = requests(first).map((request) => journal.find(request) ?? request);
    const missing = found.filter((one) => !isSampled(one));
    bar.advance(found.length - missing.length);
    const sampled = await generate(model, missing, { ...sampling, slots: SLOTS }, (completion) => {
      allFinite(`logp of completion ${completion.sample} of prompt ${completion.index}`, completion.logp, undefined, [
        completion,
      ]);
      journal.add(completion);
      bar.advance(1);
    });
    let next = 0;
    for (const one of found) all.add(isSampled(one) ? one : sampled[next++]);
  }
  bar.done(`${all.tokens} tokens`);
  return all;
}

const isSampled = (one: Request | Completion): one is Completion => "completion" in one;

/** What a stage of sampling is given beside its models. */
export interface SamplingStage<Row> {
  /** Whatever is left out is as it is in `SamplingOptions`; the run's seed is the default. */
  sampling: Omit<Sampling, "samples" | "seed" | "stop"> & { samples?: number; seed?: number };
  prompts: (tokenizer: Tokenizer) => MaybePromise<Indexed<Prompt> & Partial<Disposable>>;
  /** Writes the lines. */
  write: (rows: Iterable<Row>) => Promise<void>;
}
type MaybePromise<T> = T | Promise<T>;

/**
 * Samples completions of prompts by the model in a folder, and writes their lines. It is the work
 * of a stage.
 */
export async function collectRows(
  context: Context,
  folder: string,
  { weights, sampling, prompts, write }: SamplingStage<CompletionRow> & { weights: "f32" | "bf16" },
): Promise<{ prompts: number; completions: number; example: { prompt: string; completions: string[] } }> {
  const { config, device } = context;
  const model = await loadModel(folder, device, weights);
  const tokenizer = await Tokenizer.load(folder);
  return withModels([model], async () => {
    checkModel("--model", folder, model, "logits", tokenizer);
    const options = { samples: 1, seed: config.seed, ...sampling, stop: await stopIds(folder, model, tokenizer) };
    const asked = await prompts(tokenizer);
    try {
      using completions = await sampleAll(model, asked, options, context, "collect");
      await write(completionRows(asked, completions, tokenizer, options));
      const first = Math.min(options.samples, 2, completions.length);
      const text = (i: number) => tokenizer.decode(completions.at(i).completion);
      const example = {
        prompt: asked.at(0)?.text ?? "",
        completions: Array.from({ length: first }, (_, i) => text(i)),
      };
      return { prompts: asked.length, completions: completions.length, example };
    } finally {
      asked[Symbol.dispose]?.();
    }
  });
}

/** The lines of completions.jsonl, made one by one. */
export function* completionRows(
  prompts: Indexed<Prompt>,
  completions: Indexed<Completion>,
  tokenizer: Tokenizer,
  sampling: Sampling,
): Generator<CompletionRow> {
  for (let i = 0; i < completions.length; i++) {
    const completion = completions.at(i)!;
    yield completionRow(prompts.at(completion.index)!, completion, tokenizer, sampling);
  }
}

function completionRow(
  prompt: Prompt,
  { completion, logp, truncatedLogp }: Completion,
  tokenizer: Tokenizer,
  sampling: Sampling,
): CompletionRow {
  const truncated = (sampling.topK ?? 0) > 0 || (sampling.topP ?? 1) < 1 || (sampling.minP ?? 0) > 0;
  return {
    prompt: prompt.text,
    completion: tokenizer.decode(completion),
    prompt_ids: [...prompt.ids],
    completion_ids: [...completion],
    temperature: sampling.temperature,
    logprobs: [...logp],
    ...(truncated ? { truncated_logprobs: [...truncatedLogp] } : {}),
    ...(prompt.rendered ? { rendered: true } : {}),
  };
}
