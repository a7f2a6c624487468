import type { CompletionRow } from "../../data/completions.js";
import { generate, requestsFor, type Completion } from "../../model/generate.js";
import type { Tokenizer } from "../../model/tokenizer.js";
import type { Transformer } from "../../model/transformer.js";
import { tokensIn } from "../../rlhf/sft.js";
import { allFinite } from "../../rlhf/update.js";
import type { Context } from "./context.js";

/** Who shows progress, and the run whose folder keeps it. */
export type Sampler = Pick<Context, "progress" | "run">;

export interface Prompt {
  text: string;
  ids: Int32Array;
  /** A chat template made it. */
  rendered?: true;
}

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

/** Samples completions of prompts, prompt by prompt; those that were sampled before the run was killed are taken from its folder. */
export async function sampleAll(
  model: Transformer,
  prompts: readonly Prompt[],
  sampling: Sampling,
  { progress, run }: Sampler,
  title: string,
): Promise<Completion[]> {
  const requests = requestsFor(
    prompts.map(({ ids }) => ids),
    sampling.samples,
  );
  const bar = progress.stage(title, requests.length, "completions");
  using journal = run.journal(title);
  const completions = requests.map((request) => journal.find(request));
  const missing = requests.filter((_, i) => !completions[i]);
  bar.advance(requests.length - missing.length);
  const sampled = await generate(model, missing, { ...sampling, slots: SLOTS }, (completion) => {
    allFinite(`logp of completion ${completion.sample} of prompt ${completion.index}`, completion.logp, undefined, [completion]);
    journal.add(completion);
    bar.advance(1);
  });
  let next = 0;
  const all = completions.map((completion) => completion ?? sampled[next++]);
  bar.done(`${tokensIn(all)} tokens`);
  return all;
}

/** A line of completions.jsonl. */
export function completionRow(prompt: Prompt, { completion, logp, truncatedLogp }: Completion, tokenizer: Tokenizer, sampling: Sampling): CompletionRow {
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
