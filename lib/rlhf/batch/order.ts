import { orders } from "../../data/order.js";
import { sliceOf, type Indexed } from "../../data/spool.js";
import { rangeError } from "../../device/errors.js";
import { Random } from "../../device/philox.js";
import type { Episode } from "./episode.js";

/** The random numbers that order data: this Philox stream and the next one. */
const ORDER_STREAM = 16;

/** A long row of token ids: an Int32Array, or what reads its parts when they are asked for. */
export interface Tokens {
  /** Tokens there are. */
  readonly length: number;
  /** The tokens from `begin` to before `end`. */
  slice(begin: number, end: number): Int32Array;
}

/**
 * Batches of next-token prediction over one long text. The text is cut into chunks of `length` tokens.
 * The chunks' order and their offset are drawn anew each epoch, from the seed alone.
 * A step costs as much as its chunks, and the order of an epoch takes 4 bytes a chunk.
 *
 * @param text   int32 [tokens], more than twice `length`
 * @returns the `batch` chunks of a step, counted from 0
 * @throws RangeError `EMPTY` for a text of fewer tokens, `RANGE` for a length or batch that is no whole number from 1
 */
export function textBatches(
  text: Tokens,
  { length, batch, seed }: { length: number; batch: number; seed: number },
): (step: number) => Episode[] {
  count("length", length);
  count("batch", batch);
  const perEpoch = Math.floor((text.length - 1 - length) / length);
  if (perEpoch < 1)
    throw rangeError(
      "EMPTY",
      `the text has ${text.length} tokens, wanted at least ${2 * length + 1} for chunks of ${length}`,
    );
  let offset = 0;
  const orderOf = orders(perEpoch, (epoch) => {
    const random = new Random(seed, ORDER_STREAM).at(epoch);
    offset = random.below(length);
    return random;
  });
  const chunk = (i: number): Episode => {
    const place = orderOf(Math.floor(i / perEpoch))[i % perEpoch];
    const tokens = text.slice(offset + place * length, offset + (place + 1) * length + 1);
    return { prompt: tokens.subarray(0, 1), completion: tokens.subarray(1) };
  };
  return (step) => Array.from({ length: batch }, (_, i) => chunk(step * batch + i));
}

/**
 * Batches of `batch` whole items, fewer at an epoch's end. Their order is drawn anew each epoch, from the seed alone.
 * A step costs as much as its items, and the order of an epoch takes 4 bytes an item.
 * @param items an array, or anything with `length` and `at`, which reads the items of a step when they are wanted
 * @throws RangeError `EMPTY` for no items, `RANGE` for a batch that is not a whole number from 1
 */
export function itemBatches<T>(
  items: Indexed<T>,
  { batch, seed }: { batch: number; seed: number },
): (step: number) => T[] {
  count("batch", batch);
  const { length } = items;
  if (length === 0) throw rangeError("EMPTY", "there are no items to make batches of");
  const perEpoch = Math.ceil(length / batch);
  const orderOf = orders(length, (epoch) => new Random(seed, ORDER_STREAM + 1).at(epoch));
  return (step) => {
    const start = (step % perEpoch) * batch;
    return Array.from(orderOf(Math.floor(step / perEpoch)).subarray(start, start + batch), (place) => items.at(place)!);
  };
}

/**
 * A text in windows that each predict `stride` new tokens from up to `length` tokens: every token but the first is
 * predicted once.
 * @param tokens int32 [tokens]
 * @throws RangeError `RANGE` unless length is a whole number from 2, and stride one from 1 that is less
 */
export function windows(tokens: Int32Array, options: { length: number; stride: number }): Episode[] {
  const all = windowsOf({ length: tokens.length, slice: (begin, end) => tokens.subarray(begin, end) }, options);
  return sliceOf(all, 0, all.length);
}

/** The windows of a text, each made when it is asked for. See `windows`. */
export function windowsOf(tokens: Tokens, { length, stride }: { length: number; stride: number }): Indexed<Episode> {
  count("length", length, 2);
  count("stride", stride);
  if (stride >= length) throw rangeError("RANGE", `stride is ${stride}, wanted less than length, ${length}`);
  return {
    length: Math.max(0, Math.ceil((tokens.length - 1) / stride)),
    at(place) {
      const begin = 1 + place * stride;
      const end = Math.min(begin + stride, tokens.length);
      return { prompt: tokens.slice(Math.max(0, end - length), begin), completion: tokens.slice(begin, end) };
    },
  };
}

function count(name: string, value: number, least = 1): void {
  if (!Number.isInteger(value) || value < least)
    throw rangeError("RANGE", `${name} is ${value}, wanted a whole number from ${least}`);
}
