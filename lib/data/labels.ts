import type { Random } from "../device/philox.js";
import type { Annotator } from "./annotator.js";
import type { CompletedRow, PreferenceRow, RankingRow } from "./preferences.js";

/** Completions of one prompt. */
export interface Candidates extends CompletedRow {
  /** Texts, in the order that their pairs refer to. */
  completions: readonly string[];
}

/**
 * Compares the completions of each prompt: all pairs (Ouyang et al. 2022), or disjoint ones in
 * their order, (0, 1), (2, 3), ... A pair of equal or empty texts is left out: it tells nothing.
 *
 * @param random the numbers of prompt i: its own counter, so that a label depends on nothing but
 *   its prompt's place
 * @param options `margins`: also write `margin`, the difference of the scores
 */
export function label(
  groups: readonly Candidates[],
  annotator: Annotator,
  random: Random,
  { pairs = "all", margins = false }: { pairs?: "all" | "disjoint"; margins?: boolean } = {},
): PreferenceRow[] {
  return groups.flatMap(({ prompt, completions, ...marks }, index) => {
    const own = random.at(index);
    const rows: PreferenceRow[] = [];
    for (const [i, j] of pairsOf(completions.length, pairs)) {
      const [a, b] = [completions[i], completions[j]];
      if (a === b || a === "" || b === "") continue;
      const { preferred, agreement, margin } = annotator.compare(a, b, own);
      rows.push({
        prompt,
        chosen: preferred === 0 ? a : b,
        rejected: preferred === 0 ? b : a,
        agreement: preferred === 0 ? agreement : 1 - agreement,
        ...(margins ? { margin } : {}),
        ...ends(marks),
      });
    }
    return rows;
  });
}

/**
 * Ranks all completions of each prompt, best first, by the pairs that each wins under the annotator
 * (Ouyang et al. 2022).
 */
export function rank(groups: readonly Candidates[], annotator: Annotator, random: Random): RankingRow[] {
  return groups.flatMap(({ prompt, completions, ...marks }, index) => {
    const texts = [...new Set(completions)].filter((text) => text !== "");
    if (texts.length < 2) return [];
    const own = random.at(index);
    const wins = new Map(texts.map((text) => [text, 0]));
    for (let i = 0; i < texts.length; i++)
      for (let j = i + 1; j < texts.length; j++) {
        const winner = texts[annotator.compare(texts[i], texts[j], own).preferred === 0 ? i : j];
        wins.set(winner, wins.get(winner)! + 1);
      }
    // sort keeps the order of texts that won as often
    return [{ prompt, ranking: texts.sort((a, b) => wins.get(b)! - wins.get(a)!), ...ends(marks) }];
  });
}

/** Which of so many completions are compared. */
export function pairsOf(count: number, pairs: "all" | "disjoint" = "all"): [number, number][] {
  const all = Array.from({ length: count }, (_, i) =>
    Array.from({ length: count - i - 1 }, (_, k): [number, number] => [i, i + 1 + k]),
  ).flat();
  return pairs === "all" ? all : all.filter(([i, j]) => i % 2 === 0 && j === i + 1);
}

const ends = ({ rendered, sampled }: Pick<CompletedRow, "rendered" | "sampled">) => ({
  ...(rendered ? { rendered } : {}),
  ...(sampled ? { sampled } : {}),
});
