import { Annotator } from "../../data/annotator.js";
import { byPrompt, type CompletionRow } from "../../data/completions.js";
import { label, type Candidates } from "../../data/labels.js";
import type { PreferenceRow } from "../../data/preferences.js";
import { Random } from "../../device/philox.js";
import type { Config } from "../schema.js";

const LABEL_STREAM = 40;

/** The scripted annotators compare the completions of each prompt. */
export function labelAll(rows: readonly CompletionRow[], { label: { annotators, noise, pairs }, seed }: Pick<Config, "label" | "seed">): PreferenceRow[] {
  const groups = byPrompt(rows).map((group): Candidates => {
    const [{ prompt, rendered }] = group;
    return { prompt, ...(rendered ? { rendered } : {}), sampled: true, completions: group.map(({ completion }) => completion) };
  });
  return label(groups, new Annotator(noise, annotators), new Random(seed, LABEL_STREAM), { pairs });
}
