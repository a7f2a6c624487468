import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { opList } from "../lib/cli/info.js";
import { root } from "../lib/device/native.js";
import { writeFileDurably } from "../lib/model/safetensors.js";
import { markdown, type Result } from "./result.js";

// The README's tables: the results that lie in bench/results, and the ops that each device has. `node dist/bench/readme.js` writes them.

/** The text with what stands between the marks of this name replaced. */
function between(text: string, name: string, content: string): string {
  const [begin, end] = [`<!-- ${name} -->`, `<!-- /${name} -->`];
  const [before, rest] = text.split(begin);
  return `${before}${begin}\n\n${content}\n\n${end}${rest.split(end)[1]}`;
}

/** Ops by the devices that have them, and what a real GPU has said. */
function coverage(): string {
  const groups = new Map<string, string[]>();
  for (const { name, cpu, webgpu, cuda, receipt } of opList()) {
    if (name.startsWith("limit")) continue;
    const row = [cpu, webgpu, cuda].map((dtypes) => dtypes.join(", ")).concat(receipt ?? "");
    const key = row.join(" | ");
    groups.set(key, [...(groups.get(key) ?? []), name]);
  }
  const rows = [...groups].toSorted(([a], [b]) => b.length - a.length).map(([row, names]) => `| ${names.map((name) => `\`${name}\``).join(", ")} | ${row} |`);
  return ["| ops | cpu | webgpu | cuda | CUDA receipt |", "| --- | --- | --- | --- | --- |", ...rows].join("\n");
}

/** The README as its results want it. */
export async function readmeWithResults(): Promise<{ now: string; wanted: string }> {
  const folder = join(root, "bench/results");
  const files = (await readdir(folder)).filter((name) => name.endsWith(".json") && !name.startsWith("cuda-")).toSorted();
  const tables = await Promise.all(files.map(async (file) => markdown(JSON.parse(await readFile(join(folder, file), "utf8")) as Result)));
  const now = await readFile(join(root, "README.md"), "utf8");
  return { now, wanted: between(between(now, "bench", tables.join("\n\n")), "ops", coverage()) };
}

if (process.argv[1]?.endsWith("readme.js")) await writeFileDurably(join(root, "README.md"), (await readmeWithResults()).wanted);
