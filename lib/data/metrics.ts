import { rangeError } from "../device/errors.js";

// Figures for reports; none of them reaches a weight.

/**
 * Different n-grams over n-grams in all sequences together (Li et al. 2016): 1 where none repeats,
 * NaN where there is none.
 */
export function distinctN(sequences: Iterable<ArrayLike<number | string>>, n: number): number {
  const seen = new Set<string>();
  let total = 0;
  for (const sequence of sequences)
    for (const gram of grams(sequence, n)) {
      seen.add(gram);
      total++;
    }
  return seen.size / total;
}

/**
 * Share of a sequence's n-grams that occurred in it before, mean over the sequences that have any.
 */
export function repetition(sequences: Iterable<ArrayLike<number | string>>, n: number): number {
  let sum = 0;
  let count = 0;
  for (const sequence of sequences) {
    const all = grams(sequence, n);
    if (all.length === 0) continue;
    sum += 1 - new Set(all).size / all.length;
    count++;
  }
  return sum / count;
}

function grams(sequence: ArrayLike<number | string>, n: number): string[] {
  return Array.from({ length: Math.max(0, sequence.length - n + 1) }, (_, i) =>
    JSON.stringify(Array.from({ length: n }, (_, j) => sequence[i + j])),
  );
}

/** How often one side won. */
export interface WinRate {
  /** Ties count half. */
  rate: number;
  /** 95 % interval of the share, by Wilson's score (Wilson 1927). */
  interval: [low: number, high: number];
  /** Comparisons that this side won. */
  wins: number;
  /** Comparisons without a winner. */
  ties: number;
  /** Comparisons that the other side won. */
  losses: number;
}

/**
 * How often `ours` scores above `theirs` on the same prompts.
 * @throws RangeError `SHAPE` if there is not the same number of both, at least one; `NAN`
 */
export function winRate(ours: ArrayLike<number>, theirs: ArrayLike<number>): WinRate {
  if (ours.length !== theirs.length || ours.length === 0)
    throw rangeError(
      "SHAPE",
      `ours has ${ours.length} scores and theirs ${theirs.length}, wanted as many of both, at least one`,
    );
  let wins = 0;
  let ties = 0;
  for (let i = 0; i < ours.length; i++) {
    if (Number.isNaN(ours[i]) || Number.isNaN(theirs[i])) throw rangeError("NAN", `score ${i} is NaN`);
    if (ours[i] > theirs[i]) wins++;
    else if (ours[i] === theirs[i]) ties++;
  }
  const n = ours.length;
  const rate = (wins + ties / 2) / n;
  return { rate, interval: wilson(rate, n), wins, ties, losses: n - wins - ties };
}

const Z95 = 1.959963984540054; // 97.5 % quantile of the normal distribution

/** Wilson's 95 % interval of a share that was observed n times. */
export function wilson(share: number, n: number): [low: number, high: number] {
  const square = Z95 ** 2;
  const centre = (share + square / (2 * n)) / (1 + square / n);
  const half = (Z95 * Math.sqrt((share * (1 - share)) / n + square / (4 * n ** 2))) / (1 + square / n);
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

/** How well probabilities match outcomes. */
export interface Calibration {
  /** Bins of equal width that anything fell into. */
  bins: {
    /** Lower end of the bin. */
    from: number;
    /** Upper end of the bin. */
    to: number;
    /** Predictions in the bin. */
    count: number;
    /** Mean of the predicted probabilities. */
    probability: number;
    /** Mean of the outcomes. */
    outcome: number;
  }[];
  /**
   * Expected calibration error: mean distance of probability and outcome over the bins, by count
   * (Naeini et al. 2015).
   */
  error: number;
  /** Mean squared distance of probability and outcome (Brier 1950). */
  brier: number;
}

/**
 * How well probabilities match what came of them.
 * @param predictions probability in [0, 1]; outcome true, false or a share
 * @param count       bins of equal width
 * @throws RangeError `RANGE` for a probability outside [0, 1]
 */
export function calibration(
  predictions: readonly { probability: number; outcome: boolean | number }[],
  count = 10,
): Calibration {
  const bins = Array.from({ length: count }, (_, i) => ({
    from: i / count,
    to: (i + 1) / count,
    count: 0,
    probability: 0,
    outcome: 0,
  }));
  let brier = 0;
  for (const [i, { probability, outcome }] of predictions.entries()) {
    if (!(probability >= 0 && probability <= 1))
      throw rangeError("RANGE", `probability ${i} is ${probability}, wanted 0 to 1`);
    const bin = bins[Math.min(count - 1, Math.floor(probability * count))];
    bin.count++;
    bin.probability += probability;
    bin.outcome += Number(outcome);
    brier += (probability - Number(outcome)) ** 2;
  }
  const filled = bins
    .filter(({ count: n }) => n > 0)
    .map((bin) => ({ ...bin, probability: bin.probability / bin.count, outcome: bin.outcome / bin.count }));
  const n = predictions.length;
  return {
    bins: filled,
    error: filled.reduce((sum, bin) => sum + (bin.count / n) * Math.abs(bin.probability - bin.outcome), 0),
    brier: brier / n,
  };
}
