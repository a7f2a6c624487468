import { rangeError } from "../../device/errors.js";
import { packSequences, type Packed } from "../../model/packed.js";
import type { Episode, Group } from "./episode.js";

/** Packed episodes with the rows whose hidden state predicts a completion token (M of them), and those tokens. */
export interface Scored extends Packed {
  /** int32 [M]: rows of the hidden state */
  rows: Int32Array;
  /** int32 [M]: the token that each row predicts */
  y: Int32Array;
  /** int32 [B+1]: the scored tokens of each episode */
  cuRows: Int32Array;
}

/**
 * Packs episodes without the last `left` tokens of their completions. An episode alone is one sequence.
 * The completions of a group continue the sequence of their prompt.
 * @returns also, per episode, the row of the prompt's last token and that of the completion's first
 */
function layOut(groups: readonly Group[], left: number): Packed & { last: number[]; first: number[] } {
  const sequences: ArrayLike<number>[] = [];
  const [prefix, last, first]: number[][] = [[], [], []];
  let rows = 0;
  const add = (sequence: ArrayLike<number>, before: number) => {
    sequences.push(sequence);
    prefix.push(before);
    rows += sequence.length;
  };
  for (const group of groups) {
    const { prompt } = group[0];
    const shared = group.length > 1 ? sequences.length : -1;
    if (shared >= 0) add(prompt, -1);
    const end = rows - 1;
    for (const { completion } of group) {
      const own = begin(completion, completion.length - left);
      last.push(shared >= 0 ? end : rows + prompt.length - 1);
      first.push(shared >= 0 ? rows : rows + prompt.length);
      if (shared < 0) add(joined(prompt, own), -1);
      else if (own.length > 0) add(own, shared);
    }
  }
  return { ...packSequences(sequences, sequences.length > groups.length ? prefix : undefined), last, first };
}

/** The first ids, in place where they are a typed array. */
const begin = (ids: ArrayLike<number>, count: number): ArrayLike<number> =>
  ids instanceof Int32Array ? ids.subarray(0, count) : Array.prototype.slice.call(ids, 0, count);

function joined(prompt: ArrayLike<number>, completion: ArrayLike<number>): Int32Array {
  const all = new Int32Array(prompt.length + completion.length);
  all.set(prompt);
  all.set(completion, prompt.length);
  return all;
}

const asGroups = (episodes: readonly (Episode | Group)[]) => episodes.map((one): Group => [one].flat());

/**
 * Packs episodes, alone or in groups of one prompt, for the losses on their completions. The last token predicts
 * nothing and is left out. A group has one row that predicts the first token of each of its completions.
 * @throws RangeError `EMPTY` for a prompt or a completion without tokens
 */
export function packEpisodes(units: readonly (Episode | Group)[]): Scored {
  const groups = asGroups(units);
  const episodes = groups.flat();
  episodes.forEach(({ prompt, completion }, i) => {
    if (prompt.length === 0)
      throw rangeError(
        "EMPTY",
        `episode ${i}: the prompt has no tokens; the first token of the completion needs something before it`,
      );
    if (completion.length === 0) throw rangeError("EMPTY", `episode ${i}: the completion has no tokens`);
  });
  const { last, first, ...packed } = layOut(groups, 1);
  const cuRows = new Int32Array(episodes.length + 1);
  episodes.forEach(({ completion }, b) => (cuRows[b + 1] = cuRows[b] + completion.length));
  const rows = new Int32Array(cuRows[episodes.length]);
  const y = new Int32Array(rows.length);
  episodes.forEach(({ completion }, b) => {
    for (let t = 0; t < completion.length; t++) {
      rows[cuRows[b] + t] = t === 0 ? last[b] : first[b] + t - 1;
      y[cuRows[b] + t] = completion[t];
    }
  });
  return { ...packed, rows, y, cuRows };
}

/** Packed episodes one after another, as if they had been packed together. */
export function joinPacked(pieces: readonly Scored[]): Scored {
  const sum = (of: (piece: Scored) => number) => pieces.reduce((total, piece) => total + of(piece), 0);
  const [N, M] = [sum(({ positions }) => positions.length), sum(({ y }) => y.length)];
  const [sequences, episodes] = [sum(({ cuSeqlens }) => cuSeqlens.length - 1), sum(({ cuRows }) => cuRows.length - 1)];
  const all = {
    ids: new Int32Array(N),
    positions: new Int32Array(N),
    cuSeqlens: new Int32Array(sequences + 1),
    prefix: pieces.some(({ prefix }) => prefix) ? new Int32Array(sequences).fill(-1) : undefined,
    rows: new Int32Array(M),
    y: new Int32Array(M),
    cuRows: new Int32Array(episodes + 1),
  };
  let [n, m, s, b] = [0, 0, 0, 0];
  for (const { ids, positions, cuSeqlens, prefix, rows, y, cuRows } of pieces) {
    all.ids.set(ids as Int32Array, n);
    all.positions.set(positions, n);
    cuSeqlens.forEach((begin, i) => (all.cuSeqlens[s + i] = n + begin));
    prefix?.forEach((before, i) => (all.prefix![s + i] = before < 0 ? -1 : s + before));
    rows.forEach((row, i) => (all.rows[m + i] = n + row));
    all.y.set(y, m);
    cuRows.forEach((begin, i) => (all.cuRows[b + i] = m + begin));
    n += positions.length;
    m += y.length;
    s += cuSeqlens.length - 1;
    b += cuRows.length - 1;
  }
  return all;
}

/**
 * Packs whole episodes, alone or in groups of one prompt, for a score at their last token: `rows` are those.
 * @throws RangeError `EMPTY` for a completion without tokens
 */
export function packWhole(units: readonly (Episode | Group)[]): Packed & {
  /** int32 [B] */
  rows: Int32Array;
} {
  const groups = asGroups(units);
  const episodes = groups.flat();
  episodes.forEach(({ completion }, i) => {
    if (completion.length === 0) throw rangeError("EMPTY", `episode ${i}: the completion has no tokens`);
  });
  const { last: _, first, ...packed } = layOut(groups, 0);
  return { ...packed, rows: Int32Array.from(episodes, ({ completion }, b) => first[b] + completion.length - 1) };
}

/** The parts of an array that belong to each episode. */
export function split(all: Float32Array, cuRows: Int32Array): Float32Array[] {
  return Array.from({ length: cuRows.length - 1 }, (_, b) => all.slice(cuRows[b], cuRows[b + 1]));
}
