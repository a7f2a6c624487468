import { Heap } from "./heap.js";

// Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019): every byte has a
// printable character, text is first cut into words, and each word's bytes are merged pair by pair,
// the earliest learnt pair first.

/**
 * GPT-2's cut of text into words; \s is Unicode's White_Space, as in the tokenizers of Hugging
 * Face.
 */
export const wordPattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// In JavaScript \s takes U+FEFF and leaves U+0085 out.
const words = new RegExp(wordPattern.replaceAll("\\s", "\\p{White_Space}").replaceAll("\\S", "\\P{White_Space}"), "gu");

/** The words of a text. A lone surrogate counts as the U+FFFD that it becomes in UTF-8. */
export const splitWords = (text: string): string[] => text.match(words) ?? [];

/** The character of each byte: itself where it prints, else the next free one from U+0100. */
export const byteCharacters: readonly string[] = (() => {
  let free = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCharCode(prints ? byte : free++);
  });
})();

const byteOf = new Map(byteCharacters.map((character, byte) => [character, byte]));

/**
 * The bytes that a token of a byte-level vocabulary stands for; a token with other characters
 * stands for its UTF-8.
 */
export function tokenBytes(token: string): Uint8Array {
  const bytes = Array.from(token, (character) => byteOf.get(character));
  return bytes.includes(undefined) ? new TextEncoder().encode(token) : Uint8Array.from(bytes as number[]);
}

/** Ids of a pair as one number; vocabularies stay below 2^20. */
export const PAIR = 2 ** 20;

const CACHED_WORDS = 2 ** 16;
const CACHED_LENGTH = 256;
const PLACE = 2 ** 32;

export class ByteLevelEncoder {
  private readonly byteIds: Int32Array;
  private readonly merges = new Map<number, number>(); // pair -> rank * PAIR + id of the merged token
  private readonly cache = new Map<string, Int32Array>();
  private readonly utf8 = new TextEncoder();

  /** @param ids must have the 256 byte characters and, for each merge, both parts and the whole */
  constructor(ids: ReadonlyMap<string, number>, merges: readonly (readonly [string, string])[]) {
    this.byteIds = Int32Array.from(byteCharacters, (character) => ids.get(character)!);
    merges.forEach(([a, b], rank) => this.merges.set(ids.get(a)! * PAIR + ids.get(b)!, rank * PAIR + ids.get(a + b)!));
  }

  /** Appends the ids of a text. */
  encode(text: string, out: number[]): void {
    for (const word of splitWords(text)) {
      let ids = this.cache.get(word);
      if (!ids) {
        ids = this.encodeWord(word);
        if (word.length <= CACHED_LENGTH) {
          if (this.cache.size >= CACHED_WORDS) this.cache.clear();
          this.cache.set(word, ids);
        }
      }
      for (let i = 0; i < ids.length; i++) out.push(ids[i]);
    }
  }

  private encodeWord(word: string): Int32Array {
    const ids = Int32Array.from(this.utf8.encode(word), (byte) => this.byteIds[byte]);
    const length = ids.length;
    const next = Int32Array.from(ids, (_, i) => i + 1);
    const previous = Int32Array.from(ids, (_, i) => i - 1);
    const queue = new Heap<number>((a, b) => a < b); // rank, then place
    const offer = (at: number) => {
      const merge = at >= 0 && next[at] < length ? this.merges.get(ids[at] * PAIR + ids[next[at]]) : undefined;
      if (merge !== undefined) queue.push(Math.floor(merge / PAIR) * PLACE + at);
    };
    for (let i = 0; i < length; i++) offer(i);
    for (let top = queue.pop(); top !== undefined; top = queue.pop()) {
      const at = top % PLACE;
      if (ids[at] < 0 || next[at] >= length) continue; // swallowed meanwhile
      const merge = this.merges.get(ids[at] * PAIR + ids[next[at]]);
      if (merge === undefined || Math.floor(merge / PAIR) !== Math.floor(top / PLACE)) continue;
      const swallowed = next[at];
      ids[at] = merge % PAIR;
      ids[swallowed] = -1;
      next[at] = next[swallowed];
      if (next[at] < length) previous[next[at]] = at;
      offer(at);
      offer(previous[at]);
    }
    return ids.filter((id) => id >= 0);
  }
}
