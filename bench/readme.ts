import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { root } from "../lib/device/native.js";
import { writeFileDurably } from "../lib/model/safetensors.js";
import { markdown, type Result } from "./result.js";

// The README's tables are the results that lie in bench/results, and nothing else. `node dist/bench/readme.js` writes them.

const [begin, end] = ["<!-- bench -->", "<!-- /bench -->"];

/** The README as its results want it. */
export async function readmeWithResults(): Promise<{ now: string; wanted: string }> {
  const folder = join(root, "bench/results");
  const files = (await readdir(folder)).filter((name) => name.endsWith(".json")).toSorted();
  const tables = await Promise.all(files.map(async (file) => markdown(JSON.parse(await readFile(join(folder, file), "utf8")) as Result)));
  const now = await readFile(join(root, "README.md"), "utf8");
  const [before, rest] = now.split(begin);
  return { now, wanted: `${before}${begin}\n\n${tables.join("\n\n")}\n\n${end}${rest.split(end)[1]}` };
}

if (process.argv[1]?.endsWith("readme.js")) await writeFileDurably(join(root, "README.md"), (await readmeWithResults()).wanted);
