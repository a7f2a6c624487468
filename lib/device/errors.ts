/** An error of a public call: `code` says which kind, the message names the argument, what was given and what was wanted. */
export interface CodedError extends Error {
  /** In capitals, as the docstrings of what throws it tell. */
  code: string;
}

export function typeError(code: string, message: string): TypeError & CodedError {
  return Object.assign(new TypeError(message), { code });
}

export function rangeError(code: string, message: string): RangeError & CodedError {
  return Object.assign(new RangeError(message), { code });
}

/** @throws TypeError `ASYNC` for the promise of an asynchronous function, where what it does must be done when it returns */
export function notPromise(what: string, value: unknown): void {
  if (typeof (value as PromiseLike<unknown> | null | undefined)?.then !== "function") return;
  void Promise.resolve(value).catch(() => undefined); // it goes on without what it made
  throw typeError("ASYNC", `${what}: the function returned a promise, wanted one that is not asynchronous`);
}

/** A value as messages show it: JSON, cut short. */
export function shown(value: unknown): string {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch {
    return typeof value === "bigint" ? `${value}n` : "a value nested too deeply";
  }
  text ??= String(value);
  return text.length > 60 ? `${text.slice(0, 60)}...` : text;
}
