import { createHash } from "node:crypto";
import { open, readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { typeError, type CodedError } from "../device/errors.js";

// SHA256SUMS lists digests of the files of a folder. `sha256sum -c SHA256SUMS` checks them too.

export const SUMS = "SHA256SUMS";

export const sha256 = (content: string | Uint8Array) => createHash("sha256").update(content).digest("hex");

/** A line of the list, or undefined for what `sha256sum` would not take as one. */
export function sumLine(line: string): { name: string; digest: string } | undefined {
  const [, digest, name] = /^([0-9a-f]{64}) [ *](?:\.\/)?(.+)$/i.exec(line) ?? [];
  return name === undefined ? undefined : { name, digest: digest.toLowerCase() };
}

/**
 * The lines of a folder's SHA256SUMS, none where there is no such file.
 * @throws TypeError `DAMAGED` if it cannot be read
 */
export async function sumsLines(folder: string): Promise<string[]> {
  const text = await readFile(join(folder, SUMS), "utf8").catch((error: NodeJS.ErrnoException) => {
    if (["ENOENT", "ENOTDIR", "EISDIR"].includes(error.code!)) return "";
    throw typeError("DAMAGED", `${join(folder, SUMS)} cannot be read: ${error.message}`);
  });
  const lines = text.split(/\r?\n/);
  return lines.at(-1) === "" ? lines.slice(0, -1) : lines;
}

/** The digests that a folder lists, by the names of its files. */
export async function sumsOf(folder: string): Promise<Map<string, string>> {
  const found = (await sumsLines(folder)).flatMap((line) => sumLine(line) ?? []);
  return new Map(found.map(({ name, digest }) => [name, digest]));
}

/** The digest that the folder of a file lists for it. */
export const listedSum = async (file: string) => (await sumsOf(dirname(file))).get(basename(file));

/** A file is not what its folder lists. */
export const damaged = (file: string, what = "is damaged, or was changed"): TypeError & CodedError =>
  typeError(
    "DAMAGED",
    `${file} ${what}: ${SUMS} beside it lists another. "rlhf check --accept ${dirname(file)}" takes what is there`,
  );

/**
 * Reads a file, and holds what it read to the digest that the folder lists for it, if there is one.
 * @param most bytes
 * @throws TypeError `DAMAGED` for a file that is another, or is missing though it is listed; Error
 *   for more bytes, or from the system
 */
export async function readListed(file: string, most = Infinity): Promise<Buffer> {
  const listed = await listedSum(file);
  const content = await readWithin(file, most).catch((error: NodeJS.ErrnoException) => {
    throw listed !== undefined && error.code === "ENOENT" ? damaged(file, "is missing") : error;
  });
  if (listed !== undefined && sha256(content) !== listed) throw damaged(file);
  return content;
}

/**
 * Reads a file of at most so many bytes, and no more of a longer one.
 * @throws Error for more bytes, or from the system
 */
export async function readWithin(file: string, most: number): Promise<Buffer> {
  const handle = await open(file, "r");
  try {
    const parts: Buffer[] = [];
    let length = 0;
    for await (const part of handle.createReadStream({ autoClose: false, end: most }) as AsyncIterable<Buffer>) {
      parts.push(part);
      length += part.length;
    }
    if (length > most) throw new Error(`it has more than ${most} bytes`);
    return Buffer.concat(parts);
  } finally {
    await handle.close();
  }
}

/**
 * Passes on the chunks of a file, and after the last one throws as `readListed` does.
 * @param digest what the file is held to, in place of what its folder lists
 */
export async function* heldToSum<T extends Uint8Array>(
  file: string,
  chunks: AsyncIterable<T>,
  digest?: string,
): AsyncGenerator<T> {
  const listed = digest ?? (await listedSum(file));
  const hash = listed === undefined ? undefined : createHash("sha256");
  for await (const chunk of chunks) {
    hash?.update(chunk);
    yield chunk;
  }
  if (hash?.digest("hex") !== listed) throw damaged(file);
}
