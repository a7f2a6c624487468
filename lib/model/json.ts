import { open } from "node:fs/promises";
import { dirname } from "node:path";
import { shown, typeError } from "../device/errors.js";

/** Bytes of a configuration in JSON at most. The largest that are known have a hundredth. */
const MOST = 2 ** 24;

/** The text of a file. @throws Error for one of more than `most` bytes, of which no more are read, or from the system */
export async function readText(file: string, most: number): Promise<string> {
  const handle = await open(file, "r");
  try {
    const parts: Buffer[] = [];
    let length = 0;
    for await (const part of handle.createReadStream({ autoClose: false, end: most }) as AsyncIterable<Buffer>) {
      parts.push(part);
      length += part.length;
    }
    if (length > most) throw new Error(`it has more than ${most} bytes`);
    return Buffer.concat(parts).toString("utf8");
  } finally {
    await handle.close();
  }
}

/** The object in a JSON file of a model directory. @throws TypeError `MODEL` */
export async function readObject(file: string): Promise<Record<string, unknown>> {
  const text = await readText(file, MOST).catch((error: Error) => {
    throw typeError("MODEL", `${dirname(file)} is no model directory: ${file}: ${error.message}`);
  });
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw typeError("MODEL", `${file} is not JSON: ${(error as Error).message}`);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) throw typeError("MODEL", `${file} is ${shown(json)}, wanted an object`);
  return json as Record<string, unknown>;
}
