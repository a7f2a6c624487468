/**
 * An error of a public call: `code` says which kind, the message names the argument, what was given
 * and what was wanted.
 */
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

/**
 * @throws TypeError `ASYNC` for the promise of an asynchronous function, where what it does must be
 *   done when it returns
 */
export function notPromise(what: string, value: unknown): void {
  if (typeof (value as PromiseLike<unknown> | null | undefined)?.then !== "function") return;
  void Promise.resolve(value).catch(() => undefined); // it goes on without what it made
  throw typeError("ASYNC", `${what}: the function returned a promise, wanted one that is not asynchronous`);
}

// Emoji keep what joins them, and words of scripts that need joiners keep those.
const JOINING = String.raw`(?<=[\p{Extended_Pictographic}\p{Emoji_Modifier}])[\ufe0e\ufe0f\u200d]|(?<=[\p{Script=Arabic}\p{M}])[\u200c\u200d]`;
const HIDDEN = new RegExp(
  String.raw`(?!${JOINING})[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]`,
  "gu",
);

/**
 * A text that a terminal can only show. Control characters, marks of direction, halves of surrogate
 * pairs and characters without a shape are written as JSON escapes them (U+202E becomes \u202e), so
 * JSON stays the same data.
 * @param lines keep line feeds and tabs
 */
export function visible(text: string, { lines = false } = {}): string {
  const escaped = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return text.replace(HIDDEN, (one) =>
    lines && (one === "\n" || one === "\t") ? one : one.split("").map(escaped).join(""),
  );
}

/**
 * What another's program says of itself, as messages show it: it may be long, and hold anything.
 */
export const brief = (text: string): string => visible(text.length > 300 ? `${text.slice(0, 300)}...` : text);

/** @throws TypeError `ARGUMENT` for what is no function */
export function wantFunction(what: string, f: unknown): void {
  if (typeof f !== "function") throw typeError("ARGUMENT", `${what} is ${shown(f)}, wanted a function`);
}

const SHOWN = 60; // characters at most

/** A value as messages show it: JSON, cut short, with nothing that commands a terminal. */
export function shown(value: unknown): string {
  if (typeof value === "number" || typeof value === "symbol") return visible(String(value));
  if (typeof value === "bigint") return `${value}n`;
  let text: string | undefined;
  try {
    const long = Array.isArray(value) && value.length > SHOWN; // of as many members
    text = long ? `${JSON.stringify(value.slice(0, SHOWN)).slice(0, -1)},...` : JSON.stringify(value);
    text ??= value === undefined ? "undefined" : typeof value;
  } catch {
    return `a value of type ${typeof value} that has no JSON`;
  }
  if (text.length <= SHOWN) return visible(text);
  return `${visible(text.slice(0, SHOWN).replace(/[\ud800-\udbff]$/, ""))}...`; // no half of a pair
}
