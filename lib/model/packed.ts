import { rangeError } from "../device/errors.js";
import type { Tensor } from "../tensor/tensor.js";

/** Sequences laid end to end: no padding anywhere. */
export interface Packed {
  /** int32 [N] */
  ids: Int32Array | Tensor;
  /** int32 [B+1] */
  cuSeqlens: Int32Array;
  /** int32 [B]: the earlier sequence that this one continues, -1 for none */
  prefix?: Int32Array;
  /**
   * int32 [N]: the place of each token in its sequence; in one that continues another, they go on
   */
  positions: Int32Array;
}

/**
 * Packs sequences of token ids.
 * @param prefix for each, the earlier sequence that it continues, -1 for none
 * @throws RangeError `EMPTY` for a sequence without a token, `PREFIX` for a prefix that is not
 *   earlier
 */
export function packSequences(
  sequences: readonly ArrayLike<number>[],
  prefix?: readonly number[],
): Packed & {
  /** int32 [N] */
  ids: Int32Array;
} {
  const cuSeqlens = new Int32Array(sequences.length + 1);
  sequences.forEach((sequence, b) => {
    if (sequence.length === 0) throw rangeError("EMPTY", `sequence ${b} has no tokens, wanted at least one`);
    cuSeqlens[b + 1] = cuSeqlens[b] + sequence.length;
  });
  const ids = new Int32Array(cuSeqlens[sequences.length]);
  const positions = new Int32Array(ids.length);
  const ends = new Int32Array(sequences.length); // the position after each sequence
  sequences.forEach((sequence, b) => {
    const before = prefix ? prefix[b] : -1;
    if (!(before >= -1 && before < b))
      throw rangeError("PREFIX", `prefix[${b}] is ${before}, wanted an earlier sequence or -1`);
    const base = before < 0 ? 0 : ends[before];
    ends[b] = base + sequence.length;
    ids.set(sequence, cuSeqlens[b]);
    for (let i = 0; i < sequence.length; i++) positions[cuSeqlens[b] + i] = base + i;
  });
  return { ids, cuSeqlens, prefix: prefix && Int32Array.from(prefix), positions };
}
