import { rangeError } from "../device/errors.js";
import { pack, type Packed } from "../model/transformer.js";

/** A prompt and what followed it, as token ids. */
export interface Episode {
  prompt: ArrayLike<number>;
  completion: ArrayLike<number>;
}

/** Packed episodes with the rows whose hidden state predicts a completion token (M of them), and those tokens. */
export interface Scored extends Packed {
  /** int32 [M]: rows of the hidden state */
  rows: Int32Array;
  /** int32 [M]: the token that each row predicts */
  y: Int32Array;
  /** int32 [B+1]: the scored tokens of each episode */
  cuRows: Int32Array;
}

const joined = ({ prompt, completion }: Episode) => [...Array.from(prompt), ...Array.from(completion)];

/**
 * Packs episodes for the losses on their completions. The last token predicts nothing and is left out.
 * @throws RangeError `EMPTY` for a prompt with nothing before the first completion token, or a completion without tokens
 */
export function packEpisodes(episodes: readonly Episode[]): Scored {
  episodes.forEach(({ prompt, completion }, i) => {
    if (prompt.length === 0) throw rangeError("EMPTY", `episode ${i}: the prompt has no tokens; the first token of the completion needs something before it`);
    if (completion.length === 0) throw rangeError("EMPTY", `episode ${i}: the completion has no tokens`);
  });
  const packed = pack(episodes.map((episode) => joined(episode).slice(0, -1)));
  const cuRows = new Int32Array(episodes.length + 1);
  episodes.forEach(({ completion }, b) => (cuRows[b + 1] = cuRows[b] + completion.length));
  const rows = new Int32Array(cuRows[episodes.length]);
  const y = new Int32Array(rows.length);
  episodes.forEach(({ prompt, completion }, b) => {
    for (let t = 0; t < completion.length; t++) {
      rows[cuRows[b] + t] = packed.cuSeqlens[b] + prompt.length - 1 + t;
      y[cuRows[b] + t] = completion[t];
    }
  });
  return { ...packed, rows, y, cuRows };
}

/**
 * Packs whole episodes for a score at their last token: `rows` are those.
 * @throws RangeError `EMPTY` for a completion without tokens
 */
export function packWhole(episodes: readonly Episode[]): Packed & { rows: Int32Array } {
  episodes.forEach(({ completion }, i) => {
    if (completion.length === 0) throw rangeError("EMPTY", `episode ${i}: the completion has no tokens`);
  });
  const packed = pack(episodes.map(joined));
  return { ...packed, rows: Int32Array.from(episodes, (_, b) => packed.cuSeqlens[b + 1] - 1) };
}

/** One array of the episodes' arrays, end to end. */
export function concat(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The parts of an array that belong to each episode. */
export function split(all: Float32Array, cuRows: Int32Array): Float32Array[] {
  return Array.from({ length: cuRows.length - 1 }, (_, b) => all.slice(cuRows[b], cuRows[b + 1]));
}
