import type { ChatTemplate } from "../model/chat.js";
import { isNumber, readRows, type Row } from "./jsonl.js";
import { rendered, textsOf } from "./texts.js";

// The rows of TRL's data sets: prompts, demonstrations, preferences; and rankings, InstructGPT's K completions in order. Texts are
// plain here; the readers render conversations by the model's chat template.

/** A row with a prompt. */
export interface PromptRow {
  /** May be empty: a completion then begins its text. */
  prompt: string;
}

/** A prompt with the completion to imitate. */
export interface DemonstrationRow extends PromptRow {
  /** What is to follow the prompt. */
  completion: string;
  /** A chat template has closed the turn: no end of text follows. */
  closed?: true;
}

/** A comparison of two completions. */
export interface PreferenceRow extends PromptRow {
  /** The completion that was preferred. */
  chosen: string;
  /** The other one. */
  rejected: string;
  /** Share of annotators who prefer `chosen`, in [0, 1]: a soft label. */
  agreement?: number;
  /** How much better `chosen` is, in units of the score. */
  margin?: number;
}

/** A prompt's completions in order (Ouyang et al. 2022). */
export interface RankingRow extends PromptRow {
  /** Two or more completions, best first. */
  ranking: string[];
}

/** What a reward model learns from. */
export type ComparisonRow = PreferenceRow | RankingRow;

/** Gives the chat template that renders conversations. */
export type Chat = () => ChatTemplate;

/** @throws TypeError `COLUMN` naming the column and the line, as all of these */
export function promptRow(row: Row, chat?: Chat): PromptRow {
  return { prompt: rendered(row, textsOf(row, []), chat).prompt };
}

export function demonstrationRow(row: Row, chat?: Chat): DemonstrationRow {
  const texts = textsOf(row, ["completion"]);
  const {
    prompt,
    completions: [completion],
  } = rendered(row, texts, chat);
  return { prompt, completion, ...(typeof texts.prompt === "string" ? {} : { closed: true }) };
}

/** @param criterion the column of the soft label */
export function preferenceRow(row: Row, chat?: Chat, criterion = "agreement"): PreferenceRow {
  const wanted = "a number from 0 to 1";
  const agreement = criterion === "agreement" ? row.optional(criterion, wanted, isShare) : row.column(criterion, wanted, isShare);
  const margin = row.optional("margin", "a finite number", isFiniteNumber);
  const {
    prompt,
    completions: [chosen, rejected],
  } = rendered(row, textsOf(row, ["chosen", "rejected"], { implicit: true }), chat);
  return { prompt, chosen, rejected, ...(agreement === undefined ? {} : { agreement }), ...(margin === undefined ? {} : { margin }) };
}

export function rankingRow(row: Row, chat?: Chat): RankingRow {
  const { prompt, completions } = rendered(row, textsOf(row, ["ranking"], { list: true }), chat);
  return { prompt, ranking: completions };
}

/**
 * A file of preferences, rankings or both.
 * @param criterion the column that the soft label of a preference is read from
 * @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`, `CHAT`
 */
export const readComparisons = (file: string, chat?: Chat, criterion?: string): Promise<ComparisonRow[]> =>
  readRows<ComparisonRow>(file, (row) => (row.has("ranking") ? rankingRow(row, chat) : preferenceRow(row, chat, criterion)));

/** A file of prompts; other columns are passed over. @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`, `CHAT` */
export const readPrompts = (file: string, chat?: Chat): Promise<PromptRow[]> => readRows(file, (row) => promptRow(row, chat));

/** A file of prompts with completions. @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`, `CHAT` */
export const readDemonstrations = (file: string, chat?: Chat): Promise<DemonstrationRow[]> => readRows(file, (row) => demonstrationRow(row, chat));

const isShare = (value: unknown): value is number => isNumber(value) && value >= 0 && value <= 1;
const isFiniteNumber = (value: unknown): value is number => isNumber(value) && Number.isFinite(value);
