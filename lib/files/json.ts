import { dirname } from "node:path";
import { shown, typeError } from "../device/errors.js";
import { readListed } from "./sums.js";

/** The most bytes of a configuration in JSON. The largest that are known have a hundredth. */
const MOST = 2 ** 24;

/**
 * The object in a JSON file of a model directory.
 * @throws TypeError `MODEL`, `DAMAGED` if it is not what SHA256SUMS beside it lists
 */
export async function readObject(file: string): Promise<Record<string, unknown>> {
  const content = await readListed(file, MOST).catch((error: NodeJS.ErrnoException) => {
    throw error.code === "DAMAGED"
      ? error
      : typeError("MODEL", `${dirname(file)} is no model directory: ${file}: ${error.message}`);
  });
  let json: unknown;
  try {
    json = JSON.parse(content.toString());
  } catch (error) {
    throw typeError("MODEL", `${file} is not JSON: ${(error as Error).message}`);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw typeError("MODEL", `${file} is ${shown(json)}, wanted an object`);
  return json as Record<string, unknown>;
}

/** The ids of an entry that holds one, several or none. */
export const tokenIds = (value: unknown): number[] =>
  [value].flat().filter((id): id is number => typeof id === "number");
