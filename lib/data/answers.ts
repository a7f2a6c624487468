import { shown, typeError } from "../device/errors.js";

// What annotators say, from a page or a terminal. Each field has its bounds; what is out of them is
// refused by the field's name.

/** UTF-16 units, as the page's own bound counts them. */
export const LONGEST_REASON = 2000;
/** Eleven days. */
export const MOST_SECONDS = 1e6;

/** How much better: of the one that was preferred in a pair. */
export type Strength = "slightly" | "clearly";

export interface Answer {
  kind: "label" | "skip" | "flag";
  /**
   * For each criterion the rank of each completion, in the order shown: 1 is best, equal ranks are
   * a tie.
   */
  ranks?: Record<string, number[]>;
  /** For each criterion of a pair that is no tie. */
  strength?: Record<string, Strength>;
  reason?: string;
  /** From showing to answer, 0 to 1,000,000. */
  seconds: number;
}

const KINDS = ["label", "skip", "flag"];
export const ANSWER_FIELDS = ["kind", "ranks", "strength", "reason", "seconds"];

const refusal = (name: string, value: unknown, wanted: string) =>
  typeError("ANSWER", `${name} is ${shown(value)}, wanted ${wanted}`);

/** @throws TypeError `ANSWER` unless the value is an object with none but the known fields */
export function fieldsOf(name: string, value: unknown, known: readonly string[]): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw refusal(name, value, "an object");
  const unknown = Object.keys(value).find((key) => !known.includes(key));
  if (unknown !== undefined)
    throw typeError("ANSWER", `${name} has a field ${shown(unknown)}, wanted only ${known.join(", ")}`);
  return value as Record<string, unknown>;
}

/** @throws TypeError `ANSWER` */
export function wholeNumber(name: string, value: unknown, low: number, high = Number.MAX_SAFE_INTEGER): number {
  if (Number.isInteger(value) && (value as number) >= low && (value as number) <= high) return value as number;
  throw refusal(name, value, `a whole number from ${low} to ${high}`);
}

/** @throws TypeError `ANSWER` */
export function taskName(value: unknown): string {
  if (typeof value === "string" && /^[0-9a-f]{16}$/.test(value)) return value;
  throw refusal("task", value, "16 hexadecimal digits");
}

/**
 * A name that looks like no other: nothing in it is invisible but spaces and the joiners that some
 * scripts need.
 * @throws TypeError `ANSWER`
 */
export function annotatorName(value: unknown): string {
  const isName =
    typeof value === "string" &&
    /^\S(.{0,38}\S)?$/u.test(value) &&
    !/[^\P{Cf}\u200c\u200d]|[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]/u.test(value);
  if (isName) return value.normalize("NFC");
  throw refusal("annotator", value, "a name of 1 to 40 characters, all of them visible");
}

const own = <T>(record: Record<string, T> | undefined, key: string): T | undefined =>
  record && Object.hasOwn(record, key) ? record[key] : undefined;

/**
 * What an annotator said of a task, with every field in its bounds.
 * @param size completions of the task
 * @throws TypeError `ANSWER` that names the field, what was given and what was wanted
 */
export function answerFrom(given: unknown, criteria: readonly string[], size: number): Answer {
  const { kind, seconds, reason, ranks, strength } = fieldsOf("the answer", given, ANSWER_FIELDS);
  if (!KINDS.includes(kind as string)) throw refusal("kind", kind, KINDS.join(", "));
  if (!(typeof seconds === "number" && seconds >= 0 && seconds <= MOST_SECONDS))
    throw refusal("seconds", seconds, `a number from 0 to ${MOST_SECONDS}`);
  if (reason !== undefined && !isReason(reason))
    throw refusal("reason", reason, `a text of at most ${LONGEST_REASON} characters without control characters`);
  const answer: Answer = { kind: kind as Answer["kind"], seconds, ...(reason ? { reason } : {}) };
  if (kind === "label") return { ...answer, ...judged(ranks, strength, criteria, size) };
  for (const [name, value] of Object.entries({ ranks, strength }))
    if (value !== undefined) throw refusal(name, value, `none with ${answer.kind}`);
  return answer;
}

const isReason = (value: unknown): value is string =>
  typeof value === "string" && value.length <= LONGEST_REASON && !/[^\P{Cc}\n\t]|\p{Cs}/u.test(value);

function judged(
  ranks: unknown,
  strength: unknown,
  criteria: readonly string[],
  size: number,
): Pick<Answer, "ranks" | "strength"> {
  const ofRanks = fieldsOf("ranks", ranks, criteria);
  const ofStrength = strength === undefined ? {} : fieldsOf("strength", strength, criteria);
  const strengths: Record<string, Strength> = {};
  for (const criterion of criteria) {
    const given = own(ofRanks, criterion);
    if (!isRanks(given, size)) throw refusal(`ranks.${criterion}`, given, `${size} whole numbers from 1 to ${size}`);
    const how = own(ofStrength, criterion);
    if (how === undefined) continue;
    if (how !== "slightly" && how !== "clearly") throw refusal(`strength.${criterion}`, how, "slightly or clearly");
    if (size === 2 && given[0] !== given[1]) strengths[criterion] = how;
  }
  return {
    ranks: ofRanks as Record<string, number[]>,
    ...(Object.keys(strengths).length > 0 ? { strength: strengths } : {}),
  };
}

/** Whether a value is the ranks of so many completions. */
export const isRanks = (value: unknown, size: number): value is number[] =>
  Array.isArray(value) &&
  value.length === size &&
  value.every((rank) => Number.isInteger(rank) && rank >= 1 && rank <= size);
