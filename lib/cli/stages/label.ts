import { Annotator } from "../../data/annotator.js";
import { byPrompt, type CompletionRow } from "../../data/completions.js";
import { label, type Candidates } from "../../data/labels.js";
import type { ComparisonRow, PreferenceRow, PromptRow } from "../../data/preferences.js";
import { ranking, type Comparison } from "../../rlhf/reward.js";
import type { Tokenizer } from "../../model/tokenizer.js";
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

/**
 * Preferences and rankings as the reward model learns from them: prompt and completion tokenised apart, the completion with the token
 * that ends a text, and all preferences of a prompt one unit, wherever in the file they stand, so that each of its completions is
 * computed once. Rankings, and preferences without a prompt, are units of their own.
 * @param softLabels learn from the share of annotators who agree; else from their majority, and nothing where there is none
 */
export function comparisons(rows: readonly ComparisonRow[], tokenizer: Tokenizer, softLabels: boolean): Comparison[] {
  const units: Comparison[] = [];
  const found = new Map<string, Unit>(); // by prompt
  const unitOf = ({ prompt, rendered }: PromptRow): Unit => {
    const key = `${rendered} ${prompt}`;
    const known = prompt === "" ? undefined : found.get(key);
    if (known) return known;
    const unit = { prompt: tokenizer.encodePrompt(prompt, { rendered }), comparison: { episodes: [], pairs: [] }, places: new Map() };
    units.push(unit.comparison);
    found.set(key, unit);
    return unit;
  };
  for (const row of rows) {
    const open = row.rendered || row.sampled; // nothing follows its completions
    const completion = (text: string) => tokenizer.encodeCompletion(text, { open });
    if ("ranking" in row) {
      const prompt = tokenizer.encodePrompt(row.prompt, row);
      units.push(ranking([...new Set(row.ranking)].map((text) => ({ prompt, completion: completion(text) }))));
      continue;
    }
    const pair = softLabels ? { ...row, label: row.agreement } : byMajority(row);
    if (!pair) continue;
    const { prompt, comparison, places } = unitOf(row);
    const [chosen, rejected] = [pair.chosen, pair.rejected].map((text) => {
      const key = `${open} ${text}`;
      if (!places.has(key)) places.set(key, comparison.episodes.push({ prompt, completion: completion(text) }) - 1);
      return places.get(key)!;
    });
    comparison.pairs.push({ chosen, rejected, margin: pair.margin, label: pair.label });
  }
  return units;
}

/** Preferences of one prompt, and where each of its completions stands among the episodes. */
interface Unit {
  prompt: Int32Array;
  comparison: Comparison;
  places: Map<string, number>;
}

/** The pair as most annotators see it, without a label; undefined where they are even. */
function byMajority({
  chosen,
  rejected,
  margin,
  agreement = 1,
}: PreferenceRow): (Pick<PreferenceRow, "chosen" | "rejected" | "margin"> & { label?: undefined }) | undefined {
  if (agreement === 0.5) return undefined;
  return agreement > 0.5 ? { chosen, rejected, margin } : { chosen: rejected, rejected: chosen, margin: margin === undefined ? undefined : -margin };
}
