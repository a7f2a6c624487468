import { readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { shown, typeError } from "../device/errors.js";

/** The object in a JSON file of a model directory. @throws TypeError `MODEL` */
export async function readObject(file: string): Promise<Record<string, unknown>> {
  const text = await readFile(file, "utf8").catch((error: Error) => {
    throw typeError("MODEL", `${dirname(file)} is no model directory: ${error.message}`);
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
