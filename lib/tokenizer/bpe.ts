import { rangeError, typeError } from "../device/errors.js";
import { byteCharacters, PAIR, splitWords } from "./byte_level.js";
import { Heap } from "./heap.js";
import type { TokenizerFiles } from "./tokenizer.js";

/** What `trainBpe` is asked for. */
export interface BpeOptions {
  /** Tokens in all: the special ones, 256 bytes, merges. */
  vocabulary: number;
  /** Take the first ids; the first of them ends a text. */
  specials?: readonly string[];
}

/** Counts the words of a text, as `trainBpe` cuts it. */
export function countWords(text: string, counts: Map<string, number>): void {
  for (const word of splitWords(text)) counts.set(word, (counts.get(word) ?? 0) + 1);
}

function counted(texts: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const text of texts) countWords(text, counts);
  return counts;
}

/**
 * Trains a byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019). Ids: special
 * tokens, the byte characters by code point, then merges. The most frequent pair is merged; of
 * pairs as frequent, the one with the smaller ids. These are the rules, and the file format, of
 * Hugging Face's trainer.
 *
 * @param texts all texts, or how often each of their words occurs, as `countWords` counts
 * @returns the contents of tokenizer.json and tokenizer_config.json; fewer tokens than asked for
 *   where no pair is left
 * @throws RangeError `RANGE` for a vocabulary too small for the special tokens and 256 bytes;
 *   TypeError `TOKENIZER` for a special token that is empty, given twice or a byte's character
 */
export function trainBpe(
  texts: Iterable<string> | Map<string, number>,
  { vocabulary, specials = ["<|endoftext|>"] }: BpeOptions,
): TokenizerFiles {
  const alphabet = [...byteCharacters].sort();
  if (!(Number.isInteger(vocabulary) && vocabulary >= specials.length + 256 && vocabulary <= PAIR))
    throw rangeError(
      "RANGE",
      `vocabulary is ${vocabulary}, wanted a whole number from ${specials.length + 256} (special tokens and bytes) to ${PAIR}`,
    );
  for (const [i, token] of specials.entries())
    if (token === "" || alphabet.includes(token) || specials.indexOf(token) !== i)
      throw typeError(
        "TOKENIZER",
        `specials[${i}] is ${JSON.stringify(token)}, wanted a token that is neither empty, a byte's character nor given twice`,
      );
  const tokens = [...specials, ...alphabet];
  const corpus = new Corpus(
    texts instanceof Map ? texts : counted(texts),
    Int32Array.from(byteCharacters, (character) => tokens.indexOf(character)),
  );
  return files(tokens, learn(corpus, tokens, vocabulary), specials);
}

interface Candidate {
  pair: number;
  count: number;
}

/** Appends learnt tokens until there are `vocabulary` of them; returns the merges in order. */
function learn(corpus: Corpus, tokens: string[], vocabulary: number): [string, string][] {
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const merges: [string, string][] = [];
  const merged = new Set<number>();
  const queue = new Heap<Candidate>((a, b) => a.count > b.count || (a.count === b.count && a.pair < b.pair));
  for (const [pair, count] of corpus.counts) queue.push({ pair, count });
  while (tokens.length < vocabulary) {
    const top = queue.pop();
    if (!top) break;
    const { pair } = top;
    const count = corpus.counts.get(pair) ?? 0;
    if (count < 1) continue;
    if (count < top.count) {
      queue.push({ pair, count }); // other merges took some of its places
      continue;
    }
    const a = Math.floor(pair / PAIR);
    const b = pair % PAIR;
    const token = tokens[a] + tokens[b];
    let id = ids.get(token);
    if (id === undefined) {
      ids.set(token, (id = tokens.length));
      tokens.push(token);
    }
    // The same token can come from two pairs, so a pair that was merged before can come up again.
    if (!merged.has(pair)) merges.push([tokens[a], tokens[b]]);
    merged.add(pair);
    for (const grown of corpus.merge(a, b, id)) queue.push({ pair: grown, count: corpus.counts.get(grown)! });
  }
  return merges;
}

/**
 * The different words of the texts as token ids, how often each occurs, and the same of every pair
 * of neighbours.
 */
class Corpus {
  readonly counts = new Map<number, number>();
  private readonly words: Int32Array[] = [];
  private readonly frequencies: number[] = [];
  private readonly places = new Map<number, number[]>(); // words that have, or had, the pair

  constructor(frequency: ReadonlyMap<string, number>, byteIds: Int32Array) {
    const utf8 = new TextEncoder();
    for (const [word, n] of frequency) {
      const index = this.words.push(Int32Array.from(utf8.encode(word), (byte) => byteIds[byte])) - 1;
      this.frequencies.push(n);
      this.count(index, n);
      for (const pair of pairs(this.words[index])) this.place(pair, index);
    }
  }

  private count(index: number, change: number): void {
    for (const pair of pairs(this.words[index])) this.counts.set(pair, (this.counts.get(pair) ?? 0) + change);
  }

  private place(pair: number, index: number): void {
    const places = this.places.get(pair);
    if (!places) this.places.set(pair, [index]);
    else if (places.at(-1) !== index) places.push(index);
  }

  /**
   * Replaces a, b by id everywhere, from the left; returns the pairs that this made more frequent.
   */
  merge(a: number, b: number, id: number): Set<number> {
    const pair = a * PAIR + b;
    const places = new Set(this.places.get(pair));
    this.places.delete(pair);
    const grown = new Set<number>();
    for (const index of places) {
      const word = this.words[index];
      const shorter: number[] = [];
      for (let i = 0; i < word.length; i++)
        if (word[i] === a && word[i + 1] === b) {
          shorter.push(id);
          i++;
        } else shorter.push(word[i]);
      if (shorter.length === word.length) continue;
      this.count(index, -this.frequencies[index]);
      this.words[index] = Int32Array.from(shorter);
      this.count(index, this.frequencies[index]);
      for (const one of pairs(this.words[index]))
        if (Math.floor(one / PAIR) === id || one % PAIR === id) {
          grown.add(one);
          this.place(one, index);
        }
    }
    this.counts.delete(pair);
    return grown;
  }
}

const pairs = (word: Int32Array) =>
  Array.from({ length: Math.max(0, word.length - 1) }, (_, i) => word[i] * PAIR + word[i + 1]);

function files(
  tokens: readonly string[],
  merges: readonly [string, string][],
  specials: readonly string[],
): TokenizerFiles {
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    tokenizer: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: specials.map((content, id) => ({
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })),
      normalizer: null,
      pre_tokenizer: byteLevel,
      post_processor: null,
      decoder: byteLevel,
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges: merges.map(([first, second]) => `${first} ${second}`),
      },
    },
    tokenizerConfig: {
      tokenizer_class: "PreTrainedTokenizerFast",
      clean_up_tokenization_spaces: false,
      ...(specials.length > 0 ? { eos_token: specials[0] } : {}),
    },
  };
}
