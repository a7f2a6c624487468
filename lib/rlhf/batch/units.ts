import { promptGroups, type Episode } from "./episode.js";

/** Tokens of the completions. */
export const tokensIn = (episodes: readonly Episode[]): number =>
  episodes.reduce((n, { completion }) => n + completion.length, 0);

/**
 * Splits the units of a minibatch into runs of at most `size`, in their order. Units are sequences, prompt groups,
 * pairs or rankings. A group counts as many as are in it, and stays whole where it is larger.
 * The split bounds memory and changes nothing else.
 */
export function microBatches<T>(units: readonly T[], size = Infinity): T[][] {
  const parts: T[][] = [];
  let room = 0;
  for (const unit of units) {
    const count = Array.isArray(unit) ? unit.length : 1;
    if (parts.length === 0 || count > room) {
      parts.push([]);
      room = size;
    }
    parts.at(-1)!.push(unit);
    room -= count;
  }
  return parts;
}

/**
 * Micro-batches of a forward pass, of at most `microBatch` episodes. Neighbours with the same prompt share its
 * computation, unless `sharePrompts` is false. No bit changes, so a group larger than a micro-batch is split here,
 * where training keeps it whole.
 */
export const forwardParts = <T extends Episode>(episodes: readonly T[], microBatch: number, sharePrompts: boolean) =>
  microBatches(
    promptGroups(episodes, sharePrompts).flatMap((group) => microBatches(group, microBatch)),
    microBatch,
  );
