import { readRows, writeJsonl } from "./jsonl.js";
import { isNumber, isNumbers, type Row } from "./row.js";

/** A line of `rlhf collect`: a completion with the ids that were sampled and their log-probs. */
export interface CompletionRow {
  /** The text of prompt_ids. */
  prompt: string;
  /** The text of completion_ids. */
  completion: string;
  /** What the model was given. */
  prompt_ids: number[];
  /** What it sampled, with the stop id that ended it. */
  completion_ids: number[];
  /** What the logits were divided by; 0 took the likeliest token. */
  temperature: number;
  /** Log-prob of each sampled token at the temperature, over the whole vocabulary; nats. */
  logprobs: number[];
  /** Log-prob of each sampled token over the tokens that top-k, top-p and min-p left; nats. */
  truncated_logprobs?: number[];
  /** A chat template made the prompt. */
  rendered?: true;
}

/** @throws TypeError `COLUMN` naming the column and the line */
export function completionRow(row: Row): CompletionRow {
  const prompt_ids = row.column("prompt_ids", "one or more token ids", isIds);
  const completion_ids = row.column("completion_ids", "one or more token ids", isIds);
  const truncated_logprobs = row.optional("truncated_logprobs", "numbers", isNumbers);
  const result: CompletionRow = {
    prompt: row.text("prompt"),
    completion: row.text("completion"),
    prompt_ids,
    completion_ids,
    temperature: row.column("temperature", "a number from 0", isTemperature),
    logprobs: row.column("logprobs", "numbers", isNumbers),
    ...(truncated_logprobs ? { truncated_logprobs } : {}),
    ...(row.value.rendered === true ? { rendered: true } : {}),
  };
  for (const [name, values] of Object.entries({ logprobs: result.logprobs, truncated_logprobs }))
    if (values && values.length !== completion_ids.length)
      throw row.error(
        `the column "${name}" has ${values.length} numbers, wanted ${completion_ids.length}, one for each of completion_ids`,
      );
  return result;
}

/**
 * The rows of a file that `rlhf collect` wrote.
 * @throws TypeError `COLUMN` naming the column and the line, `JSON`, `PARQUET`, `FILE`
 */
export const readCompletions = (file: string): Promise<CompletionRow[]> => readRows(file, completionRow);

/**
 * Writes them as JSONL, beside, then renamed.
 * @throws TypeError `JSON` for a number that JSON cannot hold, `WRITE`
 */
export const writeCompletions = (file: string, rows: Iterable<CompletionRow>): Promise<void> => writeJsonl(file, rows);

/**
 * Completions of the same prompt, in the order of the file; prompts in the order in which they
 * first occur.
 */
export function byPrompt(rows: Iterable<CompletionRow>): CompletionRow[][] {
  const groups = new Map<string, CompletionRow[]>();
  for (const row of rows) {
    const key = row.prompt_ids.join();
    const group = groups.get(key);
    if (group) group.push(row);
    else groups.set(key, [row]);
  }
  return [...groups.values()];
}

const isIds = (value: unknown): value is number[] =>
  isNumbers(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0);
const isTemperature = (value: unknown): value is number => isNumber(value) && value >= 0;
