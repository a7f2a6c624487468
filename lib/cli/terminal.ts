import { visible } from "../device/errors.js";

// All that commands print goes through here: texts of models, files and people command no terminal.

/** Prints lines for people on standard output. */
export const say = (text: string): void => console.log(visible(text, { lines: true }));

/** Prints lines for people on standard error. */
export const warn = (text: string): void => console.error(visible(text, { lines: true }));

/**
 * Prints a value as JSON on standard output. What a terminal would obey is escaped in its strings,
 * so it parses to the same value.
 */
export const sayJson = (value: unknown, indent?: number): void => say(JSON.stringify(value, null, indent));
