import type { ChatTemplate, Message } from "../tokenizer/chat.js";
import { isString, type Row } from "./row.js";

// The text columns of TRL's data sets, in the four ways that they come: plain or conversational,
// the prompt in a column of its own or at the beginning of the completions.

const MOST_RANKED = 1024; // each two of them are a pair

/** Plain, or the messages of a conversation. */
export type Text = string | readonly Message[];

/** A prompt and completions of it. */
export interface Texts<T = string> {
  prompt: T;
  completions: T[];
}

/**
 * The prompt of a row and its completions in the named columns (with `list`, in one column that
 * holds them all). Without a prompt column, completions are split at their common prefix.
 * @throws TypeError `COLUMN` naming the column and the line
 */
export function textsOf(row: Row, names: readonly string[], { list = false, implicit = false } = {}): Texts<Text> {
  const completions = list
    ? [...row.column(names[0], `2 to ${MOST_RANKED} completions that are not empty, best first`, isTexts)]
    : names.map((name) => row.column(name, "a text or messages, not empty", isText));
  const plain = completions.filter(isString).length;
  if (plain !== 0 && plain !== completions.length)
    throw row.error(`the columns ${names.join(", ")} mix texts and conversations`);
  if (implicit && !row.has("prompt"))
    return plain ? splitTexts(completions as string[]) : splitMessages(completions as Message[][], row);
  const prompt = row.column("prompt", "a text or messages", (value): value is Text => value === "" || isText(value));
  if (completions.length > 0 && isString(prompt) !== plain > 0)
    throw row.error(
      `the column "prompt" is a ${isString(prompt) ? "text" : "conversation"}, unlike ${names.join(", ")}`,
    );
  return { prompt, completions };
}

/**
 * Conversations as the model's chat template renders them. The prompt is what all completions begin
 * with (as in TRL).
 * @throws TypeError `COLUMN` where there is a conversation and no template
 */
export function rendered(row: Row, { prompt, completions }: Texts<Text>, chat?: () => ChatTemplate): Texts {
  if (isString(prompt)) return { prompt, completions: completions as string[] };
  if (!chat)
    throw row.error(
      'the column "prompt" is a conversation, and there is no model here whose chat template could render it',
    );
  const template = chat();
  const head = prompt.length === 0 ? "" : template.render(prompt, { open: true });
  const wholes = (completions as Message[][]).map((completion) => template.render([...prompt, ...completion]));
  const length = commonLength([head, ...wholes]);
  const rest = wholes.map((text) => text.slice(length));
  if (rest.includes("")) throw row.error("the chat template leaves nothing of a completion");
  return { prompt: head.slice(0, length), completions: rest };
}

/** For people: a conversation turn by turn. */
export const transcript = (text: Text): string =>
  isString(text) ? text : text.map(({ role, content }) => `${role}: ${content}`).join("\n\n");

const ASSISTANT = "\n\nAssistant:";

/**
 * Texts split at their common prefix. That of transcripts (HH-RLHF's, Bai et al. 2022) ends where
 * the assistant's last common turn opens, others before the word in which they part: a completion
 * begins with a whole word, and is never empty.
 */
function splitTexts(texts: readonly string[]): Texts {
  let length = commonLength(texts);
  const turn = texts[0].lastIndexOf(ASSISTANT, length - ASSISTANT.length);
  if (turn >= 0 && texts.every((text) => text.length > turn + ASSISTANT.length)) length = turn + ASSISTANT.length;
  else
    while (length > 0 && !texts.every((text) => /\s/.test(text[length] ?? "x") && !/\s/.test(text[length - 1])))
      length--;
  return { prompt: texts[0].slice(0, length), completions: texts.map((text) => text.slice(length)) };
}

function splitMessages(conversations: readonly Message[][], row: Row): Texts<Text> {
  const shortest = leastLength(conversations);
  const key = (conversation: readonly Message[], i: number) =>
    JSON.stringify([conversation[i].role, conversation[i].content]);
  let length = 0;
  while (length < shortest && conversations.every((one) => key(one, length) === key(conversations[0], length)))
    length++;
  if (length === shortest) length--; // a completion has at least one turn
  if (length < 0) throw row.error("a conversation has no messages");
  return { prompt: conversations[0].slice(0, length), completions: conversations.map((one) => one.slice(length)) };
}

function commonLength(texts: readonly string[]): number {
  const shortest = leastLength(texts);
  let length = 0;
  while (length < shortest && texts.every((text) => text[length] === texts[0][length])) length++;
  return length;
}

const leastLength = (all: readonly { length: number }[]) =>
  all.reduce((least, { length }) => Math.min(least, length), Infinity);

const isMessage = (value: unknown): value is Message =>
  typeof value === "object" &&
  value !== null &&
  isString((value as Partial<Message>).role) &&
  isString((value as Partial<Message>).content);
const isText = (value: unknown): value is Text =>
  isString(value) ? value !== "" : Array.isArray(value) && value.length > 0 && value.every(isMessage);
const isTexts = (value: unknown): value is Text[] =>
  Array.isArray(value) && value.length >= 2 && value.length <= MOST_RANKED && value.every(isText);
