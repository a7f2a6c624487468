import { crc32 } from "node:zlib";

// Lines of JSON with a checksum as their last field, crc: the CRC-32 of the whole line with the
// eight digits of the checksum as zeros.

/** What stands for the checksum while it is computed. */
export const ZEROS = "00000000";
const START = ',"crc":"';
const END = '"}';

/** The CRC-32 of a text in UTF-8, as eight hexadecimal digits. */
export const crcOf = (text: string): string => crc32(text).toString(16).padStart(ZEROS.length, "0");

/**
 * A line of JSON with its checksum.
 * @param line an object as `JSON.stringify` writes it, not empty and without a field `crc`
 */
export function withCrc(line: string): string {
  const start = line.slice(0, -1) + START;
  return start + crcOf(start + ZEROS + END) + END;
}

/** The line that `withCrc` was given, if the checksum is right; any other line as it is. */
export function withoutCrc(line: string): string {
  const whole = `${line.slice(0, -(START + ZEROS + END).length)}}`;
  return withCrc(whole) === line ? whole : line;
}

/**
 * The fields of a parsed line without its checksum. `JSON.stringify` gives them the same text
 * again, which the checksum is of.
 * @returns also `damage`, which says how the checksum differs; a line without one has none
 */
export function checkedFields(value: Record<string, unknown>): { fields: Record<string, unknown>; damage?: string } {
  if (!Object.hasOwn(value, "crc")) return { fields: value };
  const { crc, ...fields } = value;
  const right = crcOf(JSON.stringify({ ...fields, crc: ZEROS }));
  return crc === right
    ? { fields }
    : { fields, damage: `its checksum is ${right}, and "crc" says ${JSON.stringify(crc)}` };
}
