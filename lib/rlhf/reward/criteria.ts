import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { rangeError, shown, typeError } from "../../device/errors.js";
import type { Completion } from "../../model/generate.js";
import { Transformer } from "../../model/transformer.js";
import type { Tokenizer } from "../../tokenizer/tokenizer.js";
import { scores } from "../measure/score.js";

/** The score of a completion, by a program: a checker of answers, a judge behind a network. It may fail. */
export type RewardFunction = (completion: Completion) => number | Promise<number>;

/**
 * The scores of completions by their texts, all at once: one number for each. It may be asynchronous.
 * @param prompts     the texts of the prompts, one per completion
 * @param completions the texts of the completions, without the token that ended them
 * @param about       the token ids, and whether a completion ended by itself
 */
export type TextReward = (
  prompts: string[],
  completions: string[],
  about: { promptIds: Int32Array; completionIds: Int32Array; stopped: boolean }[],
) => ArrayLike<number> | Promise<ArrayLike<number>>;

/** Reward functions of texts, by name. A completion's score is the sum of what they say. */
export class TextRewards {
  constructor(
    private readonly functions: Record<string, TextReward>,
    private readonly tokenizer: Tokenizer,
  ) {
    if (Object.keys(functions).length === 0)
      throw rangeError("EMPTY", "there are no reward functions, wanted one or more");
  }

  /**
   * The functions that a JavaScript module exports.
   * @throws TypeError `REWARD` for a file that cannot be imported, or that exports no function
   */
  static async load(file: string, tokenizer: Tokenizer): Promise<TextRewards> {
    const exported = await import(pathToFileURL(resolve(file)).href).catch((error: unknown) => {
      throw typeError("REWARD", `${file}: ${(error as Error | undefined)?.message ?? shown(error)}`);
    });
    const functions = Object.entries(exported as object).filter(([, value]) => typeof value === "function");
    if (functions.length === 0)
      throw typeError("REWARD", `${file} exports no function, wanted one of prompts and completions`);
    return new TextRewards(Object.fromEntries(functions) as Record<string, TextReward>, tokenizer);
  }

  /**
   * The sum of the functions' scores, f32 [completions]: NaN where one of them is no number.
   * @throws TypeError `REWARD` naming the function that threw, or that gave another number of scores
   */
  async score(completions: readonly Completion[]): Promise<Float32Array> {
    const text = (ids: ArrayLike<number>) => this.tokenizer.decode(ids);
    const [prompts, texts] = [
      completions.map(({ prompt }) => text(prompt)),
      completions.map(({ completion, stopped }) => text(stopped ? completion.subarray(0, -1) : completion)),
    ];
    const about = completions.map(({ prompt, completion, stopped }) => ({
      promptIds: Int32Array.from(prompt),
      completionIds: completion,
      stopped,
    }));
    const total = new Float32Array(completions.length);
    for (const [name, score] of Object.entries(this.functions)) {
      const asked = async () => score([...prompts], [...texts], [...about]);
      const scores = await asked().catch((error: unknown) => {
        throw Object.assign(typeError("REWARD", `${name} failed: ${messageOf(error)}`), { cause: error });
      });
      if (scores?.length !== completions.length)
        throw typeError(
          "REWARD",
          `${name} gave ${scores?.length === undefined ? shown(scores) : `${scores.length} scores`} for ` +
            `${completions.length} completions, wanted a score for each`,
        );
      for (let i = 0; i < total.length; i++) total[i] += typeof scores[i] === "number" ? scores[i] : NaN;
    }
    return total;
  }
}

/** What gives a completion its score: a reward model, a function of one completion, or functions of texts. */
export type Reward = Transformer | RewardFunction | TextRewards;

export interface ScoredCompletions {
  completions: Completion[];
  rawScores: Float32Array;
  /** Completions that had no score and were left out. */
  masked: number;
}

/**
 * Completions with their scores. A function of one completion is asked for all of them at once.
 * @throws TypeError `REWARD` with the function's error, RangeError `NAN` for a score that is not finite. With the
 *   `rewardFailure` mask, only if no completion has a score
 */
export async function scored(
  reward: Reward,
  completions: readonly Completion[],
  {
    microBatch,
    sharePrompts,
    rewardFailure = "stop",
  }: { microBatch?: number; sharePrompts?: boolean; rewardFailure?: "stop" | "mask" },
  step: number,
): Promise<ScoredCompletions> {
  const failures = new Map<number, unknown>();
  const raw = await rawScores(reward, completions, { microBatch, sharePrompts }, failures);
  const kept = [...raw.keys()].filter((i) => Number.isFinite(raw[i]));
  const lost = raw.findIndex((score) => !Number.isFinite(score));
  if (lost >= 0 && (rewardFailure === "stop" || kept.length === 0)) {
    const [failure, batch] = [failures.get(lost), [{ ...completions[lost], score: raw[lost] }]];
    const where = `step ${step}: the score of completion ${lost}`;
    const error = failures.has(lost)
      ? typeError("REWARD", `${where} failed: ${messageOf(failure)}`)
      : rangeError("NAN", `${where} is ${raw[lost]}`);
    throw Object.assign(error, { batch, cause: failure });
  }
  return {
    completions: kept.map((i) => completions[i]),
    rawScores: Float32Array.from(kept, (i) => raw[i]),
    masked: raw.length - kept.length,
  };
}

/** What an error says, or what was thrown in the place of one. */
const messageOf = (error: unknown): string =>
  (error as Error | undefined)?.message ?? `it threw ${shown(error)}, which is no Error`;

/** A score for each completion: NaN where it failed, with the error in `failures`. */
async function rawScores(
  reward: Reward,
  completions: readonly Completion[],
  options: { microBatch?: number; sharePrompts?: boolean },
  failures: Map<number, unknown>,
): Promise<Float32Array> {
  if (reward instanceof Transformer) return scores(reward, completions, options);
  if (reward instanceof TextRewards) return reward.score(completions);
  const one = async (completion: Completion, i: number) => {
    try {
      return await reward(completion);
    } catch (error) {
      failures.set(i, error);
      return NaN;
    }
  };
  return Float32Array.from(await Promise.all(completions.map(one)));
}
