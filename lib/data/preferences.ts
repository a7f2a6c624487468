import type { ChatTemplate } from "../tokenizer/chat.js";
import { readRows } from "./jsonl.js";
import { isNumber, type Row } from "./row.js";
import { rendered, textsOf, type Text, type Texts } from "./texts.js";

// The rows of TRL's data sets: prompts, demonstrations, preferences; and rankings, InstructGPT's K
// completions in order. Texts are plain here; the readers render conversations by the model's chat
// template.

/** A row with a prompt. */
export interface PromptRow {
  /** May be empty: a completion then begins its text. */
  prompt: string;
  /** A chat template made the texts of the row: it began the prompt and closed the turns itself. */
  rendered?: true;
}

/** A row with completions. */
export interface CompletedRow extends PromptRow {
  /**
   * The completions are as they were sampled, and spell their end where they have one: none is put
   * after those that were cut.
   */
  sampled?: true;
}

/** A prompt with the completion to imitate. */
export interface DemonstrationRow extends CompletedRow {
  /** What is to follow the prompt. */
  completion: string;
}

/** A comparison of two completions. */
export interface PreferenceRow extends CompletedRow {
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
export interface RankingRow extends CompletedRow {
  /** Two or more completions, best first. */
  ranking: string[];
}

/** What a reward model learns from. */
export type ComparisonRow = PreferenceRow | RankingRow;

/** Gives the chat template that renders conversations. */
export type Chat = () => ChatTemplate;

const renderedOf = (row: Row, { prompt }: Texts<Text>): { rendered?: true } =>
  typeof prompt !== "string" || isSaid(row, "rendered") ? { rendered: true } : {};

/**
 * How the texts of a row begin and end: what `rlhf collect` and `rlhf label` wrote says so. Of
 * other rows those are as sampled that have the ids that were, or that were cut by their length
 * (`finish_reason`).
 */
export const endsOf = (row: Row, texts: Texts<Text>): { rendered?: true; sampled?: true } => ({
  ...renderedOf(row, texts),
  ...(isSaid(row, "sampled") || row.has("completion_ids") || row.value.finish_reason === "length"
    ? { sampled: true }
    : {}),
});

const isSaid = (row: Row, name: string): boolean =>
  row.optional(name, "true or false", (value) => typeof value === "boolean") ?? false;

/** @throws TypeError `COLUMN` naming the column and the line, as all of these */
export function promptRow(row: Row, chat?: Chat): PromptRow {
  const texts = textsOf(row, []);
  return { prompt: rendered(row, texts, chat).prompt, ...renderedOf(row, texts) };
}

export function demonstrationRow(row: Row, chat?: Chat): DemonstrationRow {
  const texts = textsOf(row, ["completion"]);
  const {
    prompt,
    completions: [completion],
  } = rendered(row, texts, chat);
  return { prompt, completion, ...endsOf(row, texts) };
}

/** @param criterion the column of the soft label */
export function preferenceRow(row: Row, chat?: Chat, criterion = "agreement"): PreferenceRow {
  const wanted = "a number from 0 to 1";
  const agreement =
    criterion === "agreement" ? row.optional(criterion, wanted, isShare) : row.column(criterion, wanted, isShare);
  const margin = row.optional("margin", "a finite number", isFiniteNumber);
  const texts = textsOf(row, ["chosen", "rejected"], { implicit: true });
  const {
    prompt,
    completions: [chosen, rejected],
  } = rendered(row, texts, chat);
  return {
    prompt,
    chosen,
    rejected,
    ...(agreement === undefined ? {} : { agreement }),
    ...(margin === undefined ? {} : { margin }),
    ...endsOf(row, texts),
  };
}

export function rankingRow(row: Row, chat?: Chat): RankingRow {
  const texts = textsOf(row, ["ranking"], { list: true });
  const { prompt, completions } = rendered(row, texts, chat);
  return { prompt, ranking: completions, ...endsOf(row, texts) };
}

/**
 * A preference or a ranking.
 * @param criterion the column that the soft label of a preference is read from
 */
export const comparisonRow = (row: Row, chat?: Chat, criterion?: string): ComparisonRow =>
  row.has("ranking") ? rankingRow(row, chat) : preferenceRow(row, chat, criterion);

/**
 * A file of preferences, rankings or both.
 * @param criterion the column that the soft label of a preference is read from
 * @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`, `CHAT`
 */
export const readComparisons = (file: string, chat?: Chat, criterion?: string): Promise<ComparisonRow[]> =>
  readRows(file, (row) => comparisonRow(row, chat, criterion));

/**
 * A file of prompts; other columns are passed over.
 * @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`, `CHAT`
 */
export const readPrompts = (file: string, chat?: Chat): Promise<PromptRow[]> =>
  readRows(file, (row) => promptRow(row, chat));

/**
 * A file of prompts with completions.
 * @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`, `CHAT`
 */
export const readDemonstrations = (file: string, chat?: Chat): Promise<DemonstrationRow[]> =>
  readRows(file, (row) => demonstrationRow(row, chat));

const isShare = (value: unknown): value is number => isNumber(value) && value >= 0 && value <= 1;
const isFiniteNumber = (value: unknown): value is number => isNumber(value) && Number.isFinite(value);
