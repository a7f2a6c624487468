import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { opList } from "../lib/cli/info.js";
import { root } from "../lib/device/native.js";
import { writeFileDurably } from "../lib/files/durable.js";
import { figure } from "./figure.js";
import { markdown, overview, type Result } from "./result.js";

// What the README shows of the results in bench/results and of the ops that each device has, and a page of all results. `node dist/bench/readme.js` writes them.

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
  const rows = [...groups]
    .toSorted(([a], [b]) => b.length - a.length)
    .map(([row, names]) => `| ${names.map((name) => `\`${name}\``).join(", ")} | ${row} |`);
  return ["| ops | cpu | webgpu | cuda | CUDA receipt |", "| --- | --- | --- | --- | --- |", ...rows].join("\n");
}

/** The pages that show the results in bench/results, by their paths, as those want them. */
export async function pages(): Promise<Map<string, string>> {
  const folder = "bench/results";
  const names = (await readdir(join(root, folder)))
    .filter((name) => name.endsWith(".json") && !name.startsWith("cuda-"))
    .toSorted();
  const results = await Promise.all(
    names.map(async (name) => JSON.parse(await readFile(join(root, folder, name), "utf8")) as Result),
  );
  const compared = names
    .map((name, i) => ({ name: name.replace(/json$/, "svg"), result: results[i] }))
    .filter(({ result }) => result.rows.some(({ peers }) => peers.length > 0));
  const picture = (cpu: string, path: string) =>
    `![${cpu}: times as fast as its peers, and share of the limit](${path})`;
  const peak = ({ limits }: Result) => limits[0].peak;
  const fastest = compared.reduce((a, b) => (peak(b.result) > peak(a.result) ? b : a));
  const shown = [
    picture(fastest.result.cpu, `${folder}/${fastest.name}`),
    overview(compared.map(({ result }) => result)),
  ];
  const sections = results.map((result) => {
    const own = compared.find((one) => one.result === result);
    return [`## ${result.cpu}, ${result.isa}`, ...(own ? [picture(result.cpu, own.name)] : []), markdown(result)].join(
      "\n\n",
    );
  });
  const readme = await readFile(join(root, "README.md"), "utf8");
  return new Map([
    ...compared.map(({ name, result }) => [`${folder}/${name}`, figure(result)] as const),
    [`${folder}/README.md`, `# All that was measured\n\n${sections.join("\n\n")}\n`],
    ["README.md", between(between(readme, "bench", shown.join("\n\n")), "ops", coverage())],
  ]);
}

if (process.argv[1]?.endsWith("readme.js"))
  for (const [path, text] of await pages()) await writeFileDurably(join(root, path), text);
