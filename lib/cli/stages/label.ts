import { Annotator } from "../../data/annotator.js";
import type { CompletionRow } from "../../data/completions.js";
import { label, type Candidates } from "../../data/labels.js";
import type { PreferenceRow } from "../../data/preferences.js";
import type { Source } from "../../data/rows.js";
import { Random } from "../../device/philox.js";
import type { Config } from "../config/schema.js";

const LABEL_STREAM = 40;

/**
 * The scripted annotators compare the completions of each prompt. Of the rows the texts alone are
 * kept.
 */
export async function labelAll(
  rows: Source<CompletionRow>,
  { label: { annotators, noise, pairs }, seed }: Pick<Config, "label" | "seed">,
): Promise<PreferenceRow[]> {
  const groups = new Map<string, Candidates & { completions: string[] }>();
  for await (const { prompt_ids, prompt, completion, rendered } of rows) {
    const key = prompt_ids.join();
    const group = groups.get(key);
    if (group) group.completions.push(completion);
    else groups.set(key, { prompt, ...(rendered ? { rendered } : {}), sampled: true, completions: [completion] });
  }
  return label([...groups.values()], new Annotator(noise, annotators), new Random(seed, LABEL_STREAM), { pairs });
}
