import { shown, typeError, type CodedError } from "../device/errors.js";

/** A row of a file, and where it stands there. */
export class Row {
  constructor(
    readonly value: Record<string, unknown>,
    /** file:line */
    readonly place: string,
  ) {}

  /**
   * The value of a column.
   * @throws TypeError `COLUMN` naming the column and the line, unless `accepts` the value
   */
  column<T>(name: string, wanted: string, accepts: (value: unknown) => value is T): T {
    const value = Object.hasOwn(this.value, name) ? this.value[name] : undefined;
    if (accepts(value)) return value;
    if (value === undefined) throw this.error(`the column "${name}" is missing, wanted ${wanted}`);
    throw this.error(`the column "${name}" is ${shown(value)}, wanted ${wanted}`);
  }

  /** Reads a column like `column`; the column may be absent or null. */
  optional<T>(name: string, wanted: string, accepts: (value: unknown) => value is T): T | undefined {
    return this.has(name) ? this.column(name, wanted, accepts) : undefined;
  }

  text(name: string): string {
    return this.column(name, "a string", isString);
  }

  has(name: string): boolean {
    return Object.hasOwn(this.value, name) && (this.value[name] ?? null) !== null;
  }

  error(message: string): TypeError & CodedError {
    return typeError("COLUMN", `${this.place}: ${message}`);
  }
}

export const isString = (value: unknown): value is string => typeof value === "string";
export const isNumber = (value: unknown): value is number => typeof value === "number";
export const isNumbers = (value: unknown): value is number[] => Array.isArray(value) && value.every(isNumber);

/** The most bytes of a row. Its values may take twenty times as much memory. */
export const LONGEST_ROW = 2 ** 24;
/**
 * The most bytes that a compressed file may hold. A megabyte can hold a thousand and more. It holds
 * ten of text that people wrote, and a hundred of text that repeats itself much. A small file may
 * hold 256 MiB in any case.
 */
export const mostUnpacked = (bytes: number): number => 2 ** 28 + 200 * bytes;
