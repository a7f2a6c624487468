import type { CodedError } from "../errors.js";
import type { Allocation } from "./memory.js";

/** What was queued: which memory it read and wrote, for its failure shows later. */
export interface Entry {
  /** The number of a call, by which its faults are known; 0 for what is no call. */
  number: number;
  /** The name of the op, or `write`. */
  name: string;
  reads: readonly Allocation[];
  /** `fresh`: all numbers are written anew. */
  results: readonly { allocation: Allocation; fresh: boolean }[];
  failure?: CodedError;
}

const MOST = 64; // failures that are kept for `close`

/**
 * Whose a failure is: the memory that a failed call wrote is spoilt, and what is computed from it,
 * until it is written anew.
 */
export class Ledger {
  private entries: Entry[] = [];
  private readonly untold = new Set<CodedError>();

  /** Adds an entry, in the order of the queue. */
  add(entry: Entry): Entry {
    this.entries.push(entry);
    return entry;
  }
  /** What was queued since the last time. */
  nextEntries(): Entry[] {
    const { entries } = this;
    this.entries = [];
    return entries;
  }

  /** Follows failures through what is done, each part in its turn. */
  settle(entries: readonly Entry[]): void {
    for (const { reads, results, failure } of entries) {
      const before = reads.find((read) => read.failure)?.failure;
      if (failure && !before) this.fail(failure);
      const cause = before ?? failure;
      for (const { allocation, fresh } of results)
        if (cause) allocation.failure = cause;
        else if (fresh) allocation.failure = undefined;
    }
  }

  /** A failure that somebody is to be told. */
  fail(failure: CodedError): void {
    if (this.untold.size < MOST) this.untold.add(failure);
  }
  /** What spoilt this memory, if anything did. */
  tell(allocation: Allocation | undefined): CodedError | undefined {
    const failure = allocation?.broken ?? allocation?.failure;
    if (failure) this.untold.delete(failure);
    return failure;
  }
  /** Takes memory as good. */
  trust(allocation: Allocation): void {
    this.tell(allocation);
    allocation.failure = undefined;
  }
  /** The first failure that nobody was told. */
  get first(): CodedError | undefined {
    return this.untold.values().next().value;
  }
}
