import type { Episode } from "./episode.js";

/** Completions of one prompt that were compared. A pair prefers its chosen one, unless its label says otherwise. */
export interface Comparison {
  /** Prompt and completion each. */
  episodes: Episode[];
  /** Which were compared. */
  pairs: {
    /** The episode that was preferred. */
    chosen: number;
    /** The other one. */
    rejected: number;
    /** The probability that the chosen is preferred, 1 by default. */
    label?: number;
    /** How much better it is, in units of the score; 0 by default. */
    margin?: number;
  }[];
}

/** All pairs of a ranking, best first (Ouyang et al. 2022): each counts 1 / (K choose 2). */
export function ranking(episodes: Episode[]): Comparison {
  const pairs = episodes.flatMap((_, chosen) =>
    episodes.slice(chosen + 1).map((_, i) => ({ chosen, rejected: chosen + 1 + i })),
  );
  return { episodes, pairs };
}
