import { krippendorff } from "./agreement.js";
import type { LabelEntry } from "./label_log.js";
import { pairsOf } from "./labels.js";

/**
 * The one question where no criteria are named: which is better? It is `agreement` and has no
 * column of its own.
 */
export const OVERALL = "overall";

/** Krippendorff's alpha of the labels of each task, pair by pair. */
export function alphaOf(tasks: readonly (readonly LabelEntry[])[], criterion: string): number | undefined {
  return krippendorff(
    tasks.flatMap((entries) => {
      const count = entries.map((entry) => ranksOf(entry, criterion)).find((ranks) => ranks)?.length ?? 0;
      return pairsOf(count).map(([i, j]) => votesOn(entries, criterion, i, j));
    }),
  );
}

/** For each label: 1 if i is ranked before j, 0 if after, 1/2 for a tie. */
export function votesOn(entries: readonly LabelEntry[], criterion: string, i: number, j: number): number[] {
  return entries.flatMap((entry) => {
    const of = ranksOf(entry, criterion);
    return of ? [of[i] === of[j] ? 0.5 : Number(of[i] < of[j])] : [];
  });
}

const ranksOf = ({ ranks }: LabelEntry, criterion: string) =>
  ranks && Object.hasOwn(ranks, criterion) ? ranks[criterion] : undefined;
