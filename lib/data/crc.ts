import { crc32 } from "node:zlib";

/** The CRC-32 of a text in UTF-8, as eight hexadecimal digits. */
export const crcOf = (text: string): string => crc32(text).toString(16).padStart(8, "0");

/**
 * A line of JSON with its checksum as the last field, `crc`.
 * @param line an object as `JSON.stringify` writes it, without a field `crc`
 */
export const withCrc = (line: string): string => `${line.slice(0, -1)}${line.length > 2 ? "," : ""}"crc":"${crcOf(line)}"}`;

const TAIL = ',"crc":"12345678"}';

/** The line that `withCrc` was given, if the checksum is right; any other line as it is. */
export function withoutCrc(line: string): string {
  const whole = `${line.slice(0, -TAIL.length)}}`;
  return line.endsWith(`,"crc":"${crcOf(whole)}"}`) ? whole : line;
}

/**
 * The fields of a parsed line without its checksum. `JSON.stringify` gives them the same text again, which the checksum is of.
 * @returns also `damage`, which says how the checksum differs; a line without one has none
 */
export function checkedFields(value: Record<string, unknown>): { fields: Record<string, unknown>; damage?: string } {
  if (!Object.hasOwn(value, "crc")) return { fields: value };
  const { crc, ...fields } = value;
  const right = crcOf(JSON.stringify(fields));
  return crc === right ? { fields } : { fields, damage: `its checksum is ${right}, and "crc" says ${JSON.stringify(crc)}` };
}
