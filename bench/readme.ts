import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { summaryTable } from "../lib/cli/demo.js";
import { opList } from "../lib/cli/info.js";
import { algorithmPages } from "../lib/cli/list.js";
import { root } from "../lib/device/native.js";
import { writeFileDurably } from "../lib/files/durable.js";
import { demoFigure, demoText, shownOf, withDemo, type DemoRuns } from "./curves.js";
import { figure } from "./figure.js";
import { markdown, overview, type Result } from "./result.js";

// All tables and pictures of README.md, docs/devices.md and bench/results that a command measured,
// and the pages of docs/algorithms. `node dist/bench/readme.js` writes them. `--demo FOLDER` first
// takes the figures of a run of the demo into docs/demo.json.

const RESULTS = "bench/results";
const DEMO = "docs/demo.json";
const ALGORITHMS = "docs/algorithms";

/** Rows that the README shows. */
const SHOWN = [
  "gae | 1024 x 4096",
  "attention | B 1, T 2048, H 12, D 64",
  "attentionGrad | B 1, T 2048, H 12, D 64",
  "linear | N 2048, O 2048, I 2048",
  "linearLogprob | M 1024, C 768, V 50257",
  "linearPolicyLoss | M 1024, C 768, V 50257",
  "SFT step | gpt2 (16 x 128 tokens)",
  "PPO update | gpt2 (16 x 64 + 64 tokens, 4 epochs of 4 minibatches)",
];

/** What a column of the results shows. */
const COLUMNS = `| column | what it shows |
| --- | --- |
| ms | median wall time of a run |
| of limit | the least time that the hardware allows, as a share of ours |
| MiB | most memory held at once |
| outside kernels | share of the time in which no kernel ran |
| peer, peer ms, peer MiB | another implementation, with its time and memory |
| faster | the peer's time over ours |`;

/** The text with new content between the marks of this name. */
function between(text: string, name: string, content: string): string {
  const [begin, end] = [`<!-- ${name} -->`, `<!-- /${name} -->`];
  const [before, rest] = text.split(begin);
  return `${before}${begin}\n${content}\n${end}${rest.split(end)[1]}`;
}

const listed = () => opList().filter(({ name }) => !name.startsWith("limit"));

/** Ops by the devices that have them, and whether a GPU verified them. */
function coverage(): string {
  const groups = new Map<string, string[]>();
  for (const { name, cpu, webgpu, cuda, receipt } of listed()) {
    const row = [cpu, webgpu, cuda].map((dtypes) => dtypes.join(", ")).concat(receipt ?? "");
    const key = row.join(" | ");
    groups.set(key, [...(groups.get(key) ?? []), name]);
  }
  const rows = [...groups]
    .toSorted(([a], [b]) => b.length - a.length)
    .map(([row, names]) => `| ${names.map((name) => `\`${name}\``).join(", ")} | ${row} |`);
  return ["| ops | cpu | webgpu | cuda | CUDA receipt |", "| --- | --- | --- | --- | --- |", ...rows].join("\n");
}

const NEEDS = {
  cpu: "nothing more: AVX-512, AVX2, NEON or plain C++",
  cuda: "an NVIDIA driver, and `npm run build:cuda`",
  webgpu: "the package `webgpu`, and a GPU's driver",
};

/** How many ops each device has, their dtypes, and what the device needs. */
function devices(): string {
  const ops = listed();
  const rows = (["cpu", "cuda", "webgpu"] as const).map((kind) => {
    const here = ops.filter((op) => op[kind].length > 0);
    const dtypes = [...new Set(here.flatMap((op) => op[kind]))];
    return `| \`${kind}\` | ${here.length} of ${ops.length} | ${dtypes.join(", ")} | ${NEEDS[kind]} |`;
  });
  return ["| device | ops | dtypes | needs |", "| --- | ---: | --- | --- |", ...rows].join("\n");
}

const sentence = (cpu: string) => `${cpu}: times faster than its peers, and share of the hardware limit`;

/** The page of all results, and the pictures on it. */
function resultPages(names: readonly string[], results: readonly Result[]): Map<string, string> {
  const pictures = new Map(names.map((name, i) => [name.replace(/json$/, "svg"), results[i]]));
  for (const [name, { rows }] of pictures) if (rows.every(({ peers }) => peers.length === 0)) pictures.delete(name);
  const sections = results.map((result) => {
    const [name] = [...pictures].find(([, one]) => one === result) ?? [];
    const picture = name ? [`![${sentence(result.cpu)}](${name})`] : [];
    return [`## ${result.cpu}, ${result.isa}`, ...picture, markdown(result)].join("\n\n");
  });
  const page = `# All that was measured

\`npm run bench\` measured these tables. [measuring.md](../../docs/measuring.md) defines every number.

${COLUMNS}

## Rows that have a peer

Each cell has two numbers. The first is the time of the machine's fastest peer over ours. The second is the share of
the hardware limit.

${overview(results)}

${sections.join("\n\n")}
`;
  return new Map([
    ...[...pictures].map(([name, result]) => [`${RESULTS}/${name}`, figure(result)] as const),
    [`${RESULTS}/README.md`, page],
  ]);
}

/** The page of each algorithm with its claim, the pictures of the claims, and the page of all. */
function algorithmFiles(runs: DemoRuns): [string, string][] {
  const shown = [...shownOf(runs)];
  const claims = Object.fromEntries(shown.map(([name, { claim }]) => [name, claim]));
  return [
    ...Object.entries(algorithmPages(claims)),
    ...shown.map(([name, { figure: picture }]): [string, string] => [`${name}.svg`, picture]),
  ].map(([name, text]) => [`${ALGORITHMS}/${name}`, text]);
}

const read = (path: string) => readFile(join(root, path), "utf8");
const keptRuns = async () => JSON.parse(await read(DEMO)) as DemoRuns;

/** Every page with its text as the results, both lists and the kept runs of the demo want it. */
export async function pages(): Promise<Map<string, string>> {
  const names = (await readdir(join(root, RESULTS)))
    .filter((name) => name.endsWith(".json") && !name.startsWith("cuda-"))
    .toSorted();
  const results = await Promise.all(names.map(async (name) => JSON.parse(await read(`${RESULTS}/${name}`)) as Result));
  const runs = await keptRuns();
  const shown: [string, string][] = [
    ["demo", `\`\`\`\n${summaryTable(runs.ppo.summary, "runs/demo")}\n\`\`\``],
    ["bench", overview(results, SHOWN)],
    ["devices", devices()],
  ];
  return new Map([
    ...resultPages(names, results),
    ...algorithmFiles(runs),
    ["docs/demo.svg", demoFigure(runs.ppo)],
    ["docs/devices.md", between(await read("docs/devices.md"), "ops", coverage())],
    ["README.md", shown.reduce((text, [name, content]) => between(text, name, content), await read("README.md"))],
  ]);
}

if (process.argv[1]?.endsWith("readme.js")) {
  const at = process.argv.indexOf("--demo");
  if (at > 0) {
    const runs = await withDemo(await keptRuns(), process.argv[at + 1]);
    await writeFileDurably(join(root, DEMO), demoText(runs));
  }
  for (const [path, text] of await pages()) await writeFileDurably(join(root, path), text);
}
