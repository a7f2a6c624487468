import { readRows, type Row, isNumber, isString } from "./jsonl.js";

// The rows of TRL's data sets, plain texts: prompts, demonstrations, preferences; and rankings, InstructGPT's K completions in order.

export interface PromptRow {
  prompt: string;
}

export interface DemonstrationRow extends PromptRow {
  completion: string;
}

export interface PreferenceRow extends PromptRow {
  chosen: string;
  rejected: string;
  /** Share of annotators who prefer `chosen`, in [0, 1]: a soft label. */
  agreement?: number;
  /** How much better `chosen` is, in units of the score. */
  margin?: number;
}

export interface RankingRow extends PromptRow {
  /** Two or more completions, best first. */
  ranking: string[];
}

export type ComparisonRow = PreferenceRow | RankingRow;

/** @throws TypeError `COLUMN` naming the column and the line, as all of these */
export function promptRow(row: Row): PromptRow {
  const prompt = row.text("prompt");
  if (prompt === "") throw row.error('the column "prompt" is empty: the first token needs something before it');
  return { prompt };
}

export function demonstrationRow(row: Row): DemonstrationRow {
  return { ...promptRow(row), completion: completion(row, "completion") };
}

export function preferenceRow(row: Row): PreferenceRow {
  const agreement = row.optional("agreement", "a number from 0 to 1", isShare);
  const margin = row.optional("margin", "a finite number", isFiniteNumber);
  return {
    ...promptRow(row),
    chosen: completion(row, "chosen"),
    rejected: completion(row, "rejected"),
    ...(agreement === undefined ? {} : { agreement }),
    ...(margin === undefined ? {} : { margin }),
  };
}

export function rankingRow(row: Row): RankingRow {
  const ranking = row.column("ranking", "two or more completions that are not empty, best first", isRanking);
  return { ...promptRow(row), ranking };
}

/** A file of preferences, rankings or both. @throws TypeError `COLUMN`, `JSON`, `FILE` */
export const readComparisons = (file: string): Promise<ComparisonRow[]> =>
  readRows<ComparisonRow>(file, (row) => (row.has("ranking") ? rankingRow(row) : preferenceRow(row)));

export const readPrompts = (file: string): Promise<PromptRow[]> => readRows(file, promptRow);

export const readDemonstrations = (file: string): Promise<DemonstrationRow[]> => readRows(file, demonstrationRow);

function completion(row: Row, name: string): string {
  const text = row.text(name);
  if (text === "") throw row.error(`the column "${name}" is empty, wanted a completion of at least one token`);
  return text;
}

const isShare = (value: unknown): value is number => isNumber(value) && value >= 0 && value <= 1;
const isFiniteNumber = (value: unknown): value is number => isNumber(value) && Number.isFinite(value);
const isRanking = (value: unknown): value is string[] => Array.isArray(value) && value.length >= 2 && value.every((text) => isString(text) && text !== "");
