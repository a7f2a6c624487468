import { readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { crcOf, ZEROS } from "../../files/crc.js";
import { typeError } from "../../device/errors.js";

// JSON with a checksum as its last member: the CRC-32 of the whole text, with the eight digits of
// the checksum as zeros.

const SEAL = /(?<=[,{]\s*"crc":\s?")[0-9a-f]{8}(?="\s*\}\s*$)/;

/**
 * The object as JSON with its checksum: a line without its end or, with `space`, the text of a
 * file.
 */
export function sealed(value: object, space?: number): string {
  const text = JSON.stringify({ ...value, crc: ZEROS }, null, space) + (space ? "\n" : "");
  return text.replace(SEAL, crcOf(text));
}

/**
 * The object of a text that `sealed` made.
 * @throws TypeError `RESUME` that begins with the place
 */
export function unsealed<T extends object>(text: string, place: string): T {
  const [crc] = SEAL.exec(text) ?? [];
  if (crc === undefined)
    throw typeError(
      "RESUME",
      `${place} is damaged, or an earlier version wrote it: it does not end with its checksum, crc`,
    );
  const found = crcOf(text.replace(SEAL, ZEROS));
  if (found !== crc)
    throw typeError("RESUME", `${place} is damaged: its checksum is ${found}, wanted the ${crc} with which it ends`);
  const { crc: _, ...value } = JSON.parse(text) as T & { crc: string };
  return value as unknown as T;
}

/** The object of a JSON file that ends with its checksum. @throws TypeError `RESUME` */
export const readSealed = async <T extends object>(file: string): Promise<T> =>
  unsealed<T>(decoded(await readFile(file), file), file);

/** A line of a file: what it holds, or what is wrong with it. */
export type SealedLine<T> = { line: number; start: number; end: number } & (
  | { value: T; fault?: undefined }
  | { value?: undefined; fault: Error }
);

/**
 * Each line that ends with a line feed. What follows the last one was cut off as it was written.
 */
export function* sealedLines<T extends object>(content: Buffer, file: string): Generator<SealedLine<T>> {
  let [line, start] = [0, 0];
  for (let end = content.indexOf(LINE_FEED); end >= 0; end = content.indexOf(LINE_FEED, start)) {
    line++;
    const place = { line, start, end };
    try {
      const text = decoded(content.subarray(start, end), `${file}:${line}`);
      yield { ...place, value: unsealed<T>(text, `${file}:${line}`) };
    } catch (error) {
      yield { ...place, fault: error as Error };
    }
    start = end + 1;
  }
}

/**
 * What the lines of a file hold, without those that were given up.
 * @throws TypeError `RESUME` naming the file and the first line that is damaged
 */
export function heldLines<T extends object>(content: Buffer, file: string): T[] {
  const values: T[] = [];
  const refuse = (what: string) => {
    throw typeError("RESUME", `${what}; "rlhf check --accept ${dirname(file)}" gives that line up`);
  };
  for (const { value, fault } of sealedLines<T & { damaged?: true }>(content, file))
    if (fault) refuse(fault.message);
    else if (!value.damaged) values.push(value);
  if (content.length > 0 && content.at(-1) !== LINE_FEED) refuse(`${file} is damaged: its last line has no end`);
  return values;
}

/** What the lines of a file hold. @throws as `heldLines`; TypeError `FILE` */
export async function readLines<T extends object>(file: string): Promise<T[]> {
  const content = await readFile(file).catch((error: Error) => {
    throw typeError("FILE", `${file} cannot be read: ${error.message}`);
  });
  return heldLines<T>(content, file);
}

/** Where the last whole line ends. */
export const heldEnd = (content: Buffer) => content.lastIndexOf(LINE_FEED) + 1;

/**
 * A line of so many bytes, with its checksum, which says that what stood there is given up.
 * Undefined where there is no room for it.
 */
export function givenUp(bytes: number): string | undefined {
  const short = sealed({ damaged: true, room: "" });
  return bytes < short.length ? undefined : sealed({ damaged: true, room: " ".repeat(bytes - short.length) });
}

const LINE_FEED = 0x0a;

/** UTF-8 that stands for no other bytes. */
function decoded(bytes: Buffer, place: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw typeError("RESUME", `${place} is damaged: it is not UTF-8`);
  }
}
