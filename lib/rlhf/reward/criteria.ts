import { rangeError, shown, typeError } from "../../device/errors.js";
import type { Completion } from "../../model/generate.js";
import { Transformer } from "../../model/transformer.js";
import { scores } from "../measure/logp.js";

/** The score of a completion, by a program: a checker of answers, a judge behind a network. It may fail. */
export type RewardFunction = (completion: Completion) => number | Promise<number>;

export interface ScoredCompletions {
  completions: Completion[];
  rawScores: Float32Array;
  /** Completions that had no score and were left out. */
  masked: number;
}

/**
 * Completions with their scores, by a reward model or a function (all completions at once).
 * @throws TypeError `REWARD` with the function's error, RangeError `NAN` for a score that is not finite; where `rewardFailure` is
 *   mask, only if no completion has a score
 */
export async function scored(
  reward: Transformer | RewardFunction,
  completions: readonly Completion[],
  {
    microBatch,
    sharePrompts,
    rewardFailure = "stop",
  }: { microBatch?: number; sharePrompts?: boolean; rewardFailure?: "stop" | "mask" },
  step: number,
): Promise<ScoredCompletions> {
  const failures = new Map<number, unknown>();
  const raw =
    reward instanceof Transformer
      ? await scores(reward, completions, { microBatch, sharePrompts })
      : Float32Array.from(
          await Promise.all(
            completions.map(async (completion, i) => {
              try {
                return await reward(completion);
              } catch (error) {
                failures.set(i, error);
                return NaN;
              }
            }),
          ),
        );
  const kept = [...raw.keys()].filter((i) => Number.isFinite(raw[i]));
  const lost = raw.findIndex((score) => !Number.isFinite(score));
  if (lost >= 0 && (rewardFailure === "stop" || kept.length === 0)) {
    const [failure, batch] = [failures.get(lost), [{ ...completions[lost], score: raw[lost] }]];
    const message = (failure as Error | undefined)?.message ?? `it threw ${shown(failure)}, which is no Error`;
    const where = `step ${step}: the score of completion ${lost}`;
    const error = failures.has(lost)
      ? typeError("REWARD", `${where} failed: ${message}`)
      : rangeError("NAN", `${where} is ${raw[lost]}`);
    throw Object.assign(error, { batch, cause: failure });
  }
  return {
    completions: kept.map((i) => completions[i]),
    rawScores: Float32Array.from(kept, (i) => raw[i]),
    masked: raw.length - kept.length,
  };
}
