import { mkdir, writeFile } from "node:fs/promises";
import { algorithmPages } from "../dist/lib/cli/list.js";

// Writes docs/algorithms from the list of algorithms.

const folder = new URL("algorithms/", import.meta.url);
await mkdir(folder, { recursive: true });
for (const [name, text] of Object.entries(algorithmPages())) await writeFile(new URL(name, folder), text);
