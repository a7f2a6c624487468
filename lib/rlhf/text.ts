import { rangeError } from "../device/errors.js";
import { Random } from "../device/philox.js";
import type { Episode } from "./episode.js";

/** Streams of random numbers for the order of data. */
const ORDER_STREAM = 16;

/**
 * Batches of next-token prediction over one long stream of tokens: chunks of `length` tokens, each predicted from those
 * before it in its chunk; the chunks' order and their offset are drawn anew each epoch. A function of seed and step alone.
 *
 * @param stream int32 [tokens], more than twice `length`
 * @returns the `batch` chunks of a step, counted from 0
 * @throws RangeError `EMPTY` for a stream of fewer tokens, `RANGE` for a length or batch that is not a whole number from 1
 */
export function textBatches(stream: Int32Array, { length, batch, seed }: { length: number; batch: number; seed: number }): (step: number) => Episode[] {
  count("length", length);
  count("batch", batch);
  const perEpoch = Math.floor((stream.length - 1 - length) / length);
  if (perEpoch < 1) throw rangeError("EMPTY", `the text has ${stream.length} tokens, wanted at least ${2 * length + 1} for chunks of ${length}`);
  let epoch = -1;
  let order: number[] = [];
  let offset = 0;
  const chunk = (i: number): Episode => {
    const wanted = Math.floor(i / perEpoch);
    if (wanted !== epoch) {
      epoch = wanted;
      const random = new Random(seed, ORDER_STREAM).at(epoch);
      offset = random.below(length);
      order = random.shuffle(Array.from({ length: perEpoch }, (_, k) => k));
    }
    const start = offset + order[i % perEpoch] * length;
    return { prompt: stream.subarray(start, start + 1), completion: stream.subarray(start + 1, start + 1 + length) };
  };
  return (step) => Array.from({ length: batch }, (_, i) => chunk(step * batch + i));
}

/**
 * Batches of `batch` whole items, fewer at an epoch's end, in an order drawn anew each epoch. A function of seed and step alone.
 * @throws RangeError `EMPTY` for no items, `RANGE` for a batch that is not a whole number from 1
 */
export function itemBatches<T>(items: readonly T[], { batch, seed }: { batch: number; seed: number }): (step: number) => T[] {
  count("batch", batch);
  if (items.length === 0) throw rangeError("EMPTY", "there are no items to make batches of");
  const perEpoch = Math.ceil(items.length / batch);
  return (step) => {
    const random = new Random(seed, ORDER_STREAM + 1).at(Math.floor(step / perEpoch));
    const order = random.shuffle(items.map((_, i) => i));
    const start = (step % perEpoch) * batch;
    return order.slice(start, start + batch).map((i) => items[i]);
  };
}

/**
 * A text in windows that each predict `stride` new tokens from up to `length` tokens: every token but the first is
 * predicted once.
 * @param tokens int32 [tokens]
 * @throws RangeError `RANGE` unless length is a whole number from 2, and stride one from 1 that is less: something stands before what is predicted
 */
export function windows(tokens: Int32Array, { length, stride }: { length: number; stride: number }): Episode[] {
  count("length", length, 2);
  count("stride", stride);
  if (stride >= length) throw rangeError("RANGE", `stride is ${stride}, wanted less than length, ${length}`);
  const episodes: Episode[] = [];
  for (let at = 1; at < tokens.length; at += stride) {
    const end = Math.min(at + stride, tokens.length);
    episodes.push({ prompt: tokens.subarray(Math.max(0, end - length), at), completion: tokens.subarray(at, end) });
  }
  return episodes;
}

function count(name: string, value: number, least = 1): void {
  if (!Number.isInteger(value) || value < least) throw rangeError("RANGE", `${name} is ${value}, wanted a whole number from ${least}`);
}
