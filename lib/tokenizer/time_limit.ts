import { readFileSync } from "node:fs";
import { createContext, Script } from "node:vm";

// V8 looks for an interrupt at every step back of a regular expression, so what ends a script ends
// one of those that takes for ever, too.

const context = createContext({ work: undefined as unknown });
const script = new Script("work()");

/**
 * Time for what others wrote, where it cannot be counted: regular expressions. One limit serves all
 * of a file's work: each piece brings what honest work of its size takes at most, and a reserve is
 * for all of them together. What counts is the time of this thread, where the system tells it, so
 * that a busy machine stops nothing that an idle one does.
 */
export class TimeLimit {
  private left: number;

  /** @param reserve seconds */
  constructor(private readonly reserve: number) {
    this.left = reserve;
  }

  /**
   * What `work` returns. It may run several times, and should do nothing else.
   * @param share seconds that this piece of work brings
   * @throws Error if it takes longer than its share and what is left of the reserve
   */
  within<T>(share: number, work: () => T): T {
    const limit = this.left + share;
    const begun = performance.now();
    // no less than this thread's own time, which takes long to ask for
    let passed = () => (performance.now() - begun) / 1000;
    for (let patience = limit; ;) {
      const started = performance.now();
      try {
        return interrupted(Math.ceil(1000 * patience), work);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw error;
        const before = threadTime();
        if (before === undefined || (patience > limit && passed() >= limit))
          throw new Error(`it takes more than ${Math.ceil(limit)} s`, { cause: error });
        const waits = (performance.now() - started) / 1000 / Math.max(0.01, passed()); // for a second of its own
        patience = 1.25 * Math.max(limit * waits, patience);
        passed = () => threadTime()! - before;
      } finally {
        this.left = Math.min(this.reserve, Math.max(0, limit - passed()));
      }
    }
  }
}

/** Seconds that this thread has run, where the system tells. */
function threadTime(): number | undefined {
  try {
    return Number(readFileSync("/proc/thread-self/schedstat", "latin1").split(" ")[0]) / 1e9;
  } catch {
    return undefined;
  }
}

function interrupted<T>(milliseconds: number, work: () => T): T {
  context.work = work;
  try {
    return script.runInContext(context, { timeout: milliseconds }) as T;
  } finally {
    context.work = undefined;
  }
}
