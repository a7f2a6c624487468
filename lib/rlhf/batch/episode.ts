import { rangeError } from "../../device/errors.js";
import { pack, type Packed } from "../../model/transformer.js";

/** A prompt and what followed it, as token ids. */
export interface Episode {
  /** At least one id, where the completion's tokens are scored. */
  prompt: ArrayLike<number>;
  /** At least one id. */
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

/** Episodes of one prompt, which is computed once for all of them. */
export type Group = readonly Episode[];

/** The episodes in runs that have one prompt, or, if prompts are not to be shared, each alone. */
export function promptGroups<T extends Episode>(episodes: readonly T[], sharePrompts = true): T[][] {
  const groups: T[][] = [];
  for (const episode of episodes) {
    const group = groups.at(-1);
    if (sharePrompts && group && isSame(group[0].prompt, episode.prompt)) group.push(episode);
    else groups.push([episode]);
  }
  return groups;
}

function isSame(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length || a.length === 0) return false;
  for (let t = 0; t < a.length; t++) if (a[t] !== b[t]) return false;
  return true;
}

/**
 * Packs episodes without the last `left` tokens of their completions. An episode alone is one sequence; the completions of a group
 * continue the sequence of their prompt.
 * @returns also, per episode, the row of the prompt's last token and that of the completion's first
 */
function lay(groups: readonly Group[], left: number): Packed & { last: number[]; first: number[] } {
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
      const own = Array.from(completion).slice(0, completion.length - left);
      last.push(shared >= 0 ? end : rows + prompt.length - 1);
      first.push(shared >= 0 ? rows : rows + prompt.length);
      if (shared < 0) add([...Array.from(prompt), ...own], -1);
      else if (own.length > 0) add(own, shared);
    }
  }
  return { ...pack(sequences, sequences.length > groups.length ? prefix : undefined), last, first };
}

const asGroups = (episodes: readonly (Episode | Group)[]) => episodes.map((one): Group => [one].flat());

/**
 * Packs episodes, alone or in groups of one prompt, for the losses on their completions. The last token predicts nothing and is left out;
 * the row that predicts the first token of a completion is one for a whole group.
 * @throws RangeError `EMPTY` for a prompt with nothing before the first completion token, or a completion without tokens
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
  const { last, first, ...packed } = lay(groups, 1);
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
  const { last: _, first, ...packed } = lay(groups, 0);
  return { ...packed, rows: Int32Array.from(episodes, ({ completion }, b) => first[b] + completion.length - 1) };
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
