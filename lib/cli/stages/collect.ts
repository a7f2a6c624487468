import type { CompletionRow } from "../../data/completions.js";
import { generate, type Completion, type Request } from "../../model/generate.js";
import type { Tokenizer } from "../../model/tokenizer.js";
import type { Transformer } from "../../model/transformer.js";
import type { Context } from "./context.js";

export interface Prompt {
  text: string;
  ids: Int32Array;
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

/** Samples completions of prompts, prompt by prompt. */
export async function sampleAll(
  model: Transformer,
  prompts: readonly Prompt[],
  sampling: Sampling,
  progress: Context["progress"],
  title: string,
): Promise<Completion[]> {
  const requests: Request[] = prompts.flatMap(({ ids }, index) => Array.from({ length: sampling.samples }, (_, sample) => ({ prompt: ids, index, sample })));
  const bar = progress.stage(title, requests.length, "completions");
  const completions = await generate(model, requests, { ...sampling, slots: 128 }, () => bar.advance(1));
  const tokens = completions.reduce((n, { completion }) => n + completion.length, 0);
  bar.done(`${tokens} tokens`);
  return completions;
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
  };
}
