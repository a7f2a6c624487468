/** A prompt and what followed it, as token ids. */
export interface Episode {
  /** At least one id, where the completion's tokens are scored. */
  prompt: ArrayLike<number>;
  /** At least one id. */
  completion: ArrayLike<number>;
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
