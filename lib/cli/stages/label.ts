import { Annotator } from "../../data/annotator.js";
import { byPrompt, type CompletionRow } from "../../data/completions.js";
import { label } from "../../data/labels.js";
import type { PreferenceRow } from "../../data/preferences.js";
import type { Comparison } from "../../rlhf/reward.js";
import type { Tokenizer } from "../../model/tokenizer.js";
import { Random } from "../../device/philox.js";
import type { Config } from "../schema.js";

const LABEL_STREAM = 40;

/** The scripted annotators compare the completions of each prompt two by two. */
export function labelAll(rows: readonly CompletionRow[], { label: { annotators, noise }, seed }: Pick<Config, "label" | "seed">): PreferenceRow[] {
  const groups = byPrompt(rows).map((group) => ({ prompt: group[0].prompt, completions: group.map(({ completion }) => completion) }));
  return label(groups, new Annotator(noise, annotators), new Random(seed, LABEL_STREAM));
}

/** Preferences, or rankings, as the reward model learns from them: prompt and completion tokenised apart. */
export function comparison(row: { prompt: string } & (PreferenceRow | { ranking: string[] }), tokenizer: Tokenizer, softLabels: boolean): Comparison {
  const prompt = tokenizer.encode(row.prompt);
  const episode = (text: string) => ({ prompt, completion: tokenizer.encode(text) });
  if ("ranking" in row) {
    const episodes = row.ranking.map(episode);
    return { episodes, pairs: episodes.flatMap((_, chosen) => episodes.slice(chosen + 1).map((_, i) => ({ chosen, rejected: chosen + 1 + i }))) };
  }
  const { chosen, rejected, agreement, margin } = row;
  return { episodes: [episode(chosen), episode(rejected)], pairs: [{ chosen: 0, rejected: 1, margin, ...(softLabels ? { label: agreement } : {}) }] };
}
