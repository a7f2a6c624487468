import { Annotator } from "../../data/annotator.js";
import { byPrompt, type CompletionRow } from "../../data/completions.js";
import { label } from "../../data/labels.js";
import type { ComparisonRow, PreferenceRow } from "../../data/preferences.js";
import type { Comparison } from "../../rlhf/reward.js";
import type { Tokenizer } from "../../model/tokenizer.js";
import { Random } from "../../device/philox.js";
import type { Config } from "../schema.js";

const LABEL_STREAM = 40;

/** The scripted annotators compare the completions of each prompt. */
export function labelAll(rows: readonly CompletionRow[], { label: { annotators, noise, pairs }, seed }: Pick<Config, "label" | "seed">): PreferenceRow[] {
  const groups = byPrompt(rows).map((group) => ({ prompt: group[0].prompt, completions: group.map(({ completion }) => completion) }));
  return label(groups, new Annotator(noise, annotators), new Random(seed, LABEL_STREAM), { pairs });
}

/** Preferences of one prompt, or a ranking. */
interface Unit {
  prompt: string;
  pairs: (Omit<Comparison["pairs"][number], "chosen" | "rejected"> & { chosen: string; rejected: string })[];
}

/**
 * Preferences and rankings as the reward model learns from them: prompt and completion tokenised apart, and all preferences of a
 * prompt one unit, wherever in the file they stand, so that each of its completions is computed once. Rankings are units of their own.
 * @param softLabels learn from the share of annotators who agree; else from their majority, and nothing where there is none
 */
export function comparisons(rows: readonly ComparisonRow[], tokenizer: Tokenizer, softLabels: boolean): Comparison[] {
  const units = new Set<Unit>();
  const found = new Map<string, Unit>();
  const unitOf = (prompt: string, keys: readonly string[]) => {
    const before = new Set(keys.flatMap((key) => found.get(key) ?? []));
    const [unit = { prompt, pairs: [] }, ...others] = before;
    units.add(unit);
    for (const other of others) {
      unit.pairs.push(...other.pairs);
      units.delete(other);
    }
    for (const key of [...keys, ...others.flatMap(({ pairs }) => pairs.flatMap(keysOf("")))]) found.set(key, unit);
    return unit;
  };
  for (const row of rows) {
    const { prompt } = row;
    if ("ranking" in row) {
      const texts = [...new Set(row.ranking)];
      units.add({ prompt, pairs: texts.flatMap((chosen, i) => texts.slice(i + 1).map((rejected) => ({ chosen, rejected }))) });
    } else {
      const pair = softLabels ? asGiven(row) : byMajority(row);
      if (pair) unitOf(prompt, keysOf(prompt)(row)).pairs.push(pair);
    }
  }
  return Array.from(units, ({ prompt, pairs }) => {
    const ids = tokenizer.encodePrompt(prompt);
    const places = new Map<string, number>();
    const place = (text: string) => places.get(text) ?? places.set(text, places.size).get(text)!;
    const placed = pairs.map((pair) => ({ ...pair, chosen: place(pair.chosen), rejected: place(pair.rejected) }));
    return { episodes: Array.from(places.keys(), (text) => ({ prompt: ids, completion: tokenizer.encode(text) })), pairs: placed };
  });
}

/** Without a prompt, comparisons belong together only by a completion that they share. */
const keysOf =
  (prompt: string) =>
  ({ chosen, rejected }: { chosen: string; rejected: string }): string[] =>
    prompt === "" ? [chosen, rejected].map((text) => `c ${text}`) : [`p ${prompt}`];

const asGiven = ({ chosen, rejected, margin, agreement }: PreferenceRow): Unit["pairs"][number] => ({ chosen, rejected, margin, label: agreement });

/** The pair as most annotators see it; undefined where they are even. */
function byMajority({ chosen, rejected, margin, agreement = 1 }: PreferenceRow): Unit["pairs"][number] | undefined {
  if (agreement === 0.5) return undefined;
  return agreement > 0.5 ? { chosen, rejected, margin } : { chosen: rejected, rejected: chosen, margin: margin === undefined ? undefined : -margin };
}
