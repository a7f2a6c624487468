import { rangeError, shown } from "./errors.js";

/**
 * Philox 4x32 with ten rounds (Salmon et al. 2011): four random words for a counter of four words
 * under a key of two.
 * @param out uint32 [4], overwritten
 */
export function philox(
  key0: number,
  key1: number,
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  out: Uint32Array,
): void {
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(0xd2511f53, c0);
    const high1 = multiplyHigh(0xcd9e8d57, c2);
    const low0 = Math.imul(0xd2511f53, c0);
    const low1 = Math.imul(0xcd9e8d57, c2);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 = (key0 + 0x9e3779b9) | 0;
    key1 = (key1 + 0xbb67ae85) | 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/** The upper 32 bits of the product of two u32. */
function multiplyHigh(a: number, b: number): number {
  const aHigh = a >>> 16;
  const aLow = a & 0xffff;
  const bHigh = b >>> 16;
  const bLow = b & 0xffff;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16); // below 2^32
  const carry = (middle & 0xffff) + aLow * bHigh; // below 2^32
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(carry / 0x10000)) | 0;
}

/**
 * What a checkpoint keeps of a `Random`: restored, it goes on with the number that would have come
 * next.
 */
export interface RandomState {
  /** The key's first word. */
  seed: number;
  /** The key's second word. */
  stream: number;
  /** Three words: what the numbers are for. */
  counter: number[];
  /** Numbers drawn so far: the place of the next. */
  drawn: number;
}

/**
 * Random numbers from Philox keyed by (seed, stream). Up to three counter words name what the
 * numbers are for (update, prompt, ...); the last word of the counter runs. So a number depends on
 * its name and place alone, not on what else was drawn.
 *
 * @throws RangeError `RANGE` if seed, stream or a counter word is not a whole number from 0 to 2^32
 *   - 1
 */
export class Random {
  private readonly counter: readonly number[];
  private readonly words = new Uint32Array(4);
  private drawn = 0;

  constructor(
    /** The first word of the key. */
    readonly seed: number,
    /** The second word of the key. */
    readonly stream: number,
    ...counter: number[]
  ) {
    word("seed", seed);
    word("stream", stream);
    if (counter.length > 3) throw rangeError("RANGE", `counter has ${counter.length} words, wanted at most 3`);
    counter.forEach((value, i) => word(`counter[${i}]`, value));
    this.counter = [0, 1, 2].map((i) => counter[i] ?? 0);
  }

  /** Random numbers that go on from a state. */
  static from({ seed, stream, counter, drawn }: RandomState): Random {
    const random = new Random(seed, stream, ...counter);
    random.drawn = drawn;
    if (drawn % 2 === 1) random.fill();
    return random;
  }

  /** The state from which `from` goes on. */
  get state(): RandomState {
    return { seed: this.seed, stream: this.stream, counter: [...this.counter], drawn: this.drawn };
  }

  /** The numbers of another counter under the same key. */
  at(...counter: number[]): Random {
    return new Random(this.seed, this.stream, ...counter);
  }

  /** The next number in [0, 1), of 53 bits. */
  uniform(): number {
    const half = this.drawn % 2;
    if (half === 0) this.fill();
    this.drawn++;
    return ((this.words[2 * half] >>> 5) * 0x4000000 + (this.words[2 * half + 1] >>> 6)) / 0x20000000000000;
  }

  /** A whole number in [0, n). @throws RangeError `RANGE` unless n is one from 1 to 2^32 */
  below(n: number): number {
    if (!(Number.isInteger(n) && n >= 1 && n <= 2 ** 32))
      throw rangeError("RANGE", `n is ${shown(n)}, wanted a whole number from 1 to 2^32`);
    return Math.floor(this.uniform() * n);
  }

  /**
   * Shuffles the array in place (Fisher and Yates) and returns it. The order depends on its length
   * alone, not on its kind.
   */
  shuffle<A extends ArrayLike<unknown>>(array: A): A {
    const items = array as { [place: number]: unknown };
    for (let i = array.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const item = items[i];
      items[i] = items[j];
      items[j] = item;
    }
    return array;
  }

  private fill(): void {
    const [c0, c1, c2] = this.counter;
    philox(this.seed, this.stream, c0, c1, c2, Math.floor(this.drawn / 2), this.words);
  }
}

/** @throws RangeError `RANGE` unless it is a word of a key or counter */
export function word(name: string, value: number): void {
  if (!(Number.isInteger(value) && value >= 0 && value < 2 ** 32))
    throw rangeError("RANGE", `${name} is ${shown(value)}, wanted a whole number from 0 to 2^32 - 1`);
}
