import { Annotator } from "../../data/annotator.js";
import { byPrompt, type CompletionRow } from "../../data/completions.js";
import { label, type Candidates } from "../../data/labels.js";
import type { ComparisonRow, PreferenceRow, PromptRow } from "../../data/preferences.js";
import type { Comparison } from "../../rlhf/reward.js";
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

/** A completion, one object wherever it occurs. */
interface Text {
  text: string;
  /** Nothing follows it. */
  open: boolean;
}

/** Preferences of one prompt, or a ranking. */
interface Unit extends PromptRow {
  pairs: (Omit<Comparison["pairs"][number], "chosen" | "rejected"> & { chosen: Text; rejected: Text })[];
}

/**
 * Preferences and rankings as the reward model learns from them: prompt and completion tokenised apart, the completion with the token
 * that ends a text, and all preferences of a prompt one unit, wherever in the file they stand, so that each of its completions is
 * computed once. Rankings, and preferences without a prompt, are units of their own.
 * @param softLabels learn from the share of annotators who agree; else from their majority, and nothing where there is none
 */
export function comparisons(rows: readonly ComparisonRow[], tokenizer: Tokenizer, softLabels: boolean): Comparison[] {
  const texts = new Map<string, Text>();
  const textOf = (text: string, { rendered, sampled }: ComparisonRow): Text => {
    const open = (rendered ?? sampled) === true;
    const key = `${open} ${text}`;
    return texts.get(key) ?? texts.set(key, { text, open }).get(key)!;
  };
  const units = new Set<Unit>();
  const found = new Map<string, Unit>();
  const unitOf = ({ prompt, rendered }: ComparisonRow) => {
    const key = `${rendered} ${prompt}`;
    const unit = (prompt !== "" && found.get(key)) || { prompt, rendered, pairs: [] };
    units.add(unit);
    found.set(key, unit);
    return unit;
  };
  for (const row of rows) {
    if ("ranking" in row) {
      const { prompt, rendered } = row;
      const ranked = [...new Set(row.ranking)].map((text) => textOf(text, row));
      units.add({ prompt, rendered, pairs: ranked.flatMap((chosen, i) => ranked.slice(i + 1).map((rejected) => ({ chosen, rejected }))) });
      continue;
    }
    const { margin, agreement } = row;
    const [chosen, rejected] = [textOf(row.chosen, row), textOf(row.rejected, row)];
    const pair = softLabels ? { chosen, rejected, margin, label: agreement } : byMajority({ chosen, rejected, margin }, agreement);
    if (pair) unitOf(row).pairs.push(pair);
  }
  return Array.from(units, ({ prompt, rendered, pairs }) => {
    const ids = tokenizer.encodePrompt(prompt, { rendered });
    const places = new Map<Text, number>();
    const place = (text: Text) => places.get(text) ?? places.set(text, places.size).get(text)!;
    const placed = pairs.map((pair) => ({ ...pair, chosen: place(pair.chosen), rejected: place(pair.rejected) }));
    return {
      episodes: Array.from(places.keys(), ({ text, open }) => ({ prompt: ids, completion: tokenizer.encodeCompletion(text, { open }) })),
      pairs: placed,
    };
  });
}

/** The pair as most annotators see it; undefined where they are even. */
function byMajority(pair: Unit["pairs"][number], agreement = 1): Unit["pairs"][number] | undefined {
  const { chosen, rejected, margin } = pair;
  if (agreement === 0.5) return undefined;
  return agreement > 0.5 ? pair : { chosen: rejected, rejected: chosen, margin: margin === undefined ? undefined : -margin };
}
