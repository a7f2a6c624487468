/** An error of a public call: `code` says which kind, the message names the argument, what was given and what was wanted. */
export interface CodedError extends Error {
  code: string;
}

export function typeError(code: string, message: string): TypeError & CodedError {
  return Object.assign(new TypeError(message), { code });
}

export function rangeError(code: string, message: string): RangeError & CodedError {
  return Object.assign(new RangeError(message), { code });
}
