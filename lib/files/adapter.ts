import { existsSync } from "node:fs";
import { join } from "node:path";
import { shown, typeError } from "../device/errors.js";
import { readObject } from "./json.js";

/** The file that makes a folder one of an adapter, as Hugging Face's PEFT names it. */
export const ADAPTER_CONFIG = "adapter_config.json";

/** Whether a folder holds a LoRA adapter. */
export const isAdapter = (folder: string): boolean => existsSync(join(folder, ADAPTER_CONFIG));

/**
 * Where the weights of a model lie: the folder itself, or an adapter's base, which its config names
 * by a path, from here or from the adapter's folder.
 * @throws TypeError `MODEL` for a base that is not there
 */
export async function baseFolder(folder: string): Promise<string> {
  if (!isAdapter(folder)) return folder;
  const file = join(folder, ADAPTER_CONFIG);
  const { base_model_name_or_path: base } = await readObject(file);
  const found =
    typeof base === "string"
      ? [base, join(folder, base)].find((path) => existsSync(join(path, "config.json")))
      : undefined;
  if (found === undefined)
    throw typeError(
      "MODEL",
      `${file}: base_model_name_or_path is ${shown(base)}, wanted the model directory that the adapter is for`,
    );
  if (isAdapter(found))
    throw typeError(
      "MODEL",
      `${file}: base_model_name_or_path is ${shown(base)}, which is an adapter itself, wanted a whole model`,
    );
  return found;
}
