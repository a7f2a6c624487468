import { Annotator } from "../../data/annotator.js";
import { byPrompt, type CompletionRow } from "../../data/completions.js";
import { label } from "../../data/labels.js";
import type { ComparisonRow, PreferenceRow } from "../../data/preferences.js";
import { ranking, type Comparison } from "../../rlhf/reward.js";
import type { Tokenizer } from "../../model/tokenizer.js";
import { Random } from "../../device/philox.js";
import type { Config } from "../schema.js";

const LABEL_STREAM = 40;

/** The scripted annotators compare the completions of each prompt. */
export function labelAll(rows: readonly CompletionRow[], { label: { annotators, noise, pairs }, seed }: Pick<Config, "label" | "seed">): PreferenceRow[] {
  const groups = byPrompt(rows).map((group) => ({ prompt: group[0].prompt, completions: group.map(({ completion }) => completion) }));
  return label(groups, new Annotator(noise, annotators), new Random(seed, LABEL_STREAM), { pairs });
}

/**
 * Preferences and rankings as the reward model learns from them: prompt and completion tokenised apart, and comparisons of the
 * same prompt that follow each other one unit, so that each of its completions is computed once.
 */
export function comparisons(rows: readonly ComparisonRow[], tokenizer: Tokenizer, softLabels: boolean): Comparison[] {
  const units: { prompt: string; texts: string[]; pairs: Comparison["pairs"] }[] = [];
  for (const row of rows) {
    let unit = units.at(-1);
    if (!unit || unit.prompt !== row.prompt || "ranking" in row || isApart(row, unit.texts)) units.push((unit = { prompt: row.prompt, texts: [], pairs: [] }));
    const { texts } = unit;
    const place = (text: string) => (texts.includes(text) ? texts.indexOf(text) : texts.push(text) - 1);
    if ("ranking" in row) {
      row.ranking.forEach(place);
      unit.pairs.push(...ranking(texts.map(() => ({ prompt: [], completion: [] }))).pairs);
    } else unit.pairs.push({ chosen: place(row.chosen), rejected: place(row.rejected), margin: row.margin, ...(softLabels ? { label: row.agreement } : {}) });
  }
  return units.map(({ prompt, texts, pairs }) => {
    const ids = tokenizer.encodePrompt(prompt);
    return { episodes: texts.map((text) => ({ prompt: ids, completion: tokenizer.encode(text) })), pairs };
  });
}

/** Without a prompt, comparisons belong together only by a completion that they share. */
const isApart = ({ prompt, chosen, rejected }: PreferenceRow, texts: readonly string[]) =>
  prompt === "" && !texts.includes(chosen) && !texts.includes(rejected);
