import { createContext, Script } from "node:vm";

// V8 looks for an interrupt at every step back of a regular expression, so what ends a script ends one of those that takes for ever, too.

const context = createContext({ work: undefined as unknown });
const script = new Script("work()");

/** What `work` returns, unless it takes longer. @throws Error `ERR_SCRIPT_EXECUTION_TIMEOUT` */
export function within<T>(milliseconds: number, work: () => T): T {
  context.work = work;
  try {
    return script.runInContext(context, { timeout: milliseconds }) as T;
  } finally {
    context.work = undefined;
  }
}
