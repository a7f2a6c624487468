import { calibration, type Calibration } from "../../data/metrics.js";
import { sliceOf, type Indexed } from "../../data/spool.js";
import type { Transformer } from "../../model/transformer.js";
import type { Comparison } from "../batch/comparison.js";
import { preferences } from "./model.js";

/** What held-out comparisons say of a reward model. */
export interface RewardJudgement {
  /** Pairs that were judged. */
  pairs: number;
  /** Share of the pairs in which it agrees with the majority. */
  accuracy: number;
  /** How far its probabilities are from the shares of annotators. */
  calibration: Calibration;
}

const AT_ONCE = 1024; // comparisons

/**
 * Accuracy and calibration of P(A preferred to B) on comparisons. A is the chosen of every other pair.
 * Accuracy is against the majority; a pair without one counts half. Calibration is against the share of annotators.
 */
export async function judge(model: Transformer, comparisons: Indexed<Comparison>): Promise<RewardJudgement> {
  const outcomes: { probability: number; outcome: number }[] = [];
  let right = 0;
  for (let first = 0; first < comparisons.length; first += AT_ONCE) {
    const pairs = sliceOf(comparisons, first, first + AT_ONCE).flatMap(({ episodes, pairs }) =>
      pairs.map(({ chosen, rejected, label = 1 }) => ({
        chosen: episodes[chosen],
        rejected: episodes[rejected],
        label,
      })),
    );
    const before = outcomes.length;
    const isTurned = (i: number) => (before + i) % 2 === 1;
    const p = await preferences(
      model,
      pairs.map(({ chosen, rejected }, i) => (isTurned(i) ? { a: rejected, b: chosen } : { a: chosen, b: rejected })),
    );
    for (const [i, probability] of p.entries()) {
      const outcome = isTurned(i) ? 1 - pairs[i].label : pairs[i].label;
      right += probability === 0.5 || outcome === 0.5 ? 0.5 : Number(probability > 0.5 === outcome > 0.5);
      outcomes.push({ probability, outcome });
    }
  }
  return { pairs: outcomes.length, accuracy: right / outcomes.length, calibration: calibration(outcomes) };
}
