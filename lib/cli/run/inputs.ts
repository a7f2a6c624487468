import { createHash, type Hash } from "node:crypto";
import { open, readdir, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { baseFolder } from "../../files/adapter.js";
import { digestIn, startOf } from "../../model/safetensors.js";

/**
 * What a run is given beside its configuration: files and folders of models by the option that
 * names them, and words.
 */
export interface Inputs {
  files: Record<string, string | undefined>;
  words?: Record<string, string | undefined>;
}

/** What is read of a model's folder. */
export const MODEL_FILE =
  /^((generation_|adapter_)?config|tokenizer(_config)?|special_tokens_map)\.json$|\.(jinja|safetensors|safetensors\.index\.json)$/;
const CHUNK = 2 ** 20;

/**
 * SHA-256 of the content of each input. A file of weights that holds a digest of itself is named by
 * it: loading holds the file to it. What can be read but once (standard input, a pipe), is not
 * there, or is the run's own folder has none.
 */
export async function fingerprints({ files, words = {} }: Inputs, folder: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const [option, word] of Object.entries(words)) if (word !== undefined) found[option] = word;
  for (const [option, path] of Object.entries(files)) {
    if (path === undefined || resolve(path) === resolve(folder)) continue;
    const there = await stat(path).catch(() => undefined);
    const hash = createHash("sha256");
    if (there?.isDirectory()) await addModel(hash, path);
    else if (there?.isFile()) await addFile(hash, path);
    else continue;
    found[option] = hash.digest("hex");
  }
  return found;
}

async function addModel(hash: Hash, folder: string): Promise<void> {
  const base = await baseFolder(folder).catch(() => folder);
  for (const one of new Set([folder, base].map((path) => resolve(path)))) {
    const names: string[] = await readdir(one).catch(() => []);
    for (const name of names.sort())
      if (MODEL_FILE.test(name))
        await addFile(hash.update(`${name}\n`), join(one, name), name.endsWith(".safetensors"));
  }
}

async function addFile(hash: Hash, path: string, weights = false): Promise<void> {
  const file = await open(path, "r");
  try {
    const { size } = await file.stat();
    const start = weights ? await startOf(file, path, size).catch(() => undefined) : undefined;
    if (start && digestIn(start)) return void hash.update(start);
    hash.update(`${size}\n`);
    const buffer = Buffer.alloc(CHUNK);
    for (let at = 0, read = 1; read > 0; at += read) {
      read = (await file.read(buffer, 0, CHUNK, at)).bytesRead;
      hash.update(buffer.subarray(0, read));
    }
  } finally {
    await file.close();
  }
}
