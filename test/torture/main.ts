import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { progressTo } from "../../lib/cli/progress.js";
import { table } from "../../lib/cli/table.js";
import { root } from "../../lib/device/native.js";
import { Random, seed as drawn } from "../random.js";
import { prepare, stages } from "./stages.js";
import { callsFor, Fault, harmed, hunted, modes, reference, type Mode, type Place, type Reference } from "./trial.js";
import { build, rlhf, shim } from "./victim.js";

// npm run torture: every call of every stage is harmed in every way, and runs are killed until so
// many kills are reached.

const HELP = `Harms runs of every stage, call by call, and tells whether all of them end with the bits of an undisturbed run.

  --stage NAME     one of ${stages.map(({ name }) => name).join("; ")} (may be repeated)
  --mode NAME      one of ${Object.keys(modes).join("; ")} (may be repeated)
  --at N           one call, by its number
  --sample N       so many calls of each stage and mode, drawn at random
  --kills N        beyond that, kills runs and what goes on with them until there are N kills in all
  --seed N         of what is drawn at random
  --jobs N         so many at once (1)
  --fresh          forgets earlier results of the same code; without it they count, and their trials are not done again
  --markdown       writes the table into docs/reliability.md`;

const KILLS_OF_A_HUNT = 25;
const MEMORY = "/dev/shm"; // no disk is needed: what it would have kept is computed
/** Each trial of these is a kill. */
const KILLS: (Mode | "hunt")[] = ["kill", "tear", "power loss", "contents lost", "some lost"];

/** Ctrl-C: trials that are under way end, and the table is printed. */
let isStopped = false;
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => (isStopped = true));

/** A line of the results: what came of one trial. */
interface Result {
  stage: string;
  mode: Mode | "hunt";
  /** The call, or which hunt. */
  at: number;
  kills: number;
  fault?: string;
}

/** The code that results are of. */
async function codeHash(): Promise<string> {
  const hash = createHash("sha256");
  for (const folder of ["dist/lib", "dist/test/torture"])
    for (const { name, parentPath } of (
      await readdir(join(root, folder), { recursive: true, withFileTypes: true })
    ).sort((a, b) => join(a.parentPath, a.name).localeCompare(join(b.parentPath, b.name))))
      if (name.endsWith(".js")) hash.update(await readFile(join(parentPath, name)));
  return hash
    .update(await readFile(join(root, "test/torture/shim.c")))
    .digest("hex")
    .slice(0, 16);
}

async function readResults(file: string): Promise<Result[]> {
  const text = await readFile(file, "utf8").catch(() => "");
  return text.split("\n").flatMap((line) => (line ? [JSON.parse(line) as Result] : []));
}

/** A trial that is to be done. */
interface Task {
  known: Reference;
  mode: Mode | "hunt";
  at: number;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      stage: { type: "string", multiple: true },
      mode: { type: "string", multiple: true },
      at: { type: "string" },
      sample: { type: "string" },
      kills: { type: "string" },
      seed: { type: "string" },
      jobs: { type: "string", default: "1" },
      fresh: { type: "boolean", default: false },
      markdown: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return (console.log(HELP), 0);
  const found = await shim();
  if ("missing" in found) return (console.log(found.missing), 1);
  const chosen = stages.filter(({ name }) => values.stage?.includes(name) ?? true);
  const harms = (Object.keys(modes) as Mode[]).filter((mode) => values.mode?.includes(mode) ?? true);
  const seed = Number(values.seed ?? drawn);
  const file = join(build, `results-${await codeHash()}.jsonl`);
  if (values.fresh) await rm(file, { force: true });
  const folder = await mkdtemp(join(existsSync(MEMORY) ? MEMORY : tmpdir(), "rlhf-torture-"));
  try {
    const places = Array.from({ length: Number(values.jobs) }, (_, i): Place => ({
      shim: found.path,
      sandbox: join(folder, `sandbox-${i}`),
    }));
    const known = await references(chosen, folder, places[0]);
    const random = new Random("sample", seed);
    const before = await readResults(file);
    const isDone = (stage: string, mode: string, at: number) =>
      before.some((one) => one.stage === stage && one.mode === mode && one.at === at);
    const tasks = known.flatMap((one) =>
      harms.flatMap((mode) => {
        const calls = callsFor(one, mode).filter((at) => values.at === undefined || at === Number(values.at));
        const taken = sampled(calls, Number(values.sample ?? one.stage.most ?? calls.length), random);
        return taken
          .filter((at) => values.at !== undefined || !isDone(one.stage.name, mode, at))
          .map((at): Task => ({ known: one, mode, at }));
      }),
    );
    await doAll(
      tasks.sort(() => random.uniform() - 0.5),
      places,
      file,
      seed,
    );
    await huntUntil(Number(values.kills ?? 0), known, places, file, seed);
    const results = (await readResults(file)).filter(({ stage }) => chosen.some(({ name }) => name === stage));
    console.log(`${table(...summary(results, known))}\n\n${verdict(results)} (seed ${seed}, ${file})`);
    if (values.markdown) await writeDocs(results, known);
    const faults = results.filter(({ fault }) => fault !== undefined);
    for (const { stage, mode, at, fault } of faults.slice(0, 40))
      console.log(`FAULT --stage "${stage}" --mode "${mode}" --at ${at}: ${fault}`);
    return faults.length > 0 ? 1 : 0;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function references(chosen: typeof stages, folder: string, place: Place): Promise<Reference[]> {
  const bar = progressTo().stage("undisturbed", chosen.length, "runs");
  const inputs = join(folder, "inputs");
  await prepare(inputs, async (args) => {
    const { code, said } = await rlhf(args, place);
    if (code !== 0) throw new Error(said);
  });
  const known: Reference[] = [];
  for (const stage of chosen) {
    known.push(await reference(stage, inputs, place));
    bar.advance(1, stage.name);
  }
  bar.done(`${known.reduce((n, { calls }) => n + calls.length, 0)} calls`);
  return known;
}

/** So many of the numbers, in their order. */
function sampled(all: readonly number[], count: number, random: Random): number[] {
  const left = [...all];
  while (left.length > count) left.splice(random.below(left.length), 1);
  return left;
}

/** Does the tasks, each place one after another. */
async function doAll(tasks: readonly Task[], places: readonly Place[], file: string, seed: number): Promise<void> {
  const waiting = [...tasks];
  const bar = progressTo().stage("each call", tasks.length, "trials");
  let faults = 0;
  const work = async (place: Place) => {
    for (let task = waiting.shift(); task && !isStopped; task = waiting.shift()) {
      const result = await tried(task, place, seed);
      if (result.fault !== undefined) faults++;
      await appendFile(file, `${JSON.stringify(result)}\n`);
      bar.advance(1, `${result.stage}, ${result.mode}, ${faults} faults`);
    }
  };
  await Promise.all(places.map(work));
  bar.done(`${faults} faults`);
}

/** Hunts runs, stage by stage, until there are so many kills. Other processes may do the same with other seeds. */
async function huntUntil(
  kills: number,
  known: readonly Reference[],
  places: readonly Place[],
  file: string,
  seed: number,
): Promise<void> {
  let total = killsOf(await readResults(file));
  if (total >= kills) return;
  const bar = progressTo().stage("hunt", kills, "kills");
  bar.advance(total);
  let next = 0;
  const work = async (place: Place) => {
    while (total < kills && !isStopped) {
      const one = leastKilled(known, await readResults(file));
      const result = await tried({ known: one, mode: "hunt", at: 1000 * seed + next++ }, place, seed);
      await appendFile(file, `${JSON.stringify(result)}\n`);
      const now = killsOf(await readResults(file));
      bar.advance(now - total, result.stage);
      total = now;
    }
  };
  await Promise.all(places.map(work));
  bar.done(`${total} kills`);
}

/** The stage whose turn it is: that with the fewest kills for what it costs. */
function leastKilled(known: readonly Reference[], results: readonly Result[]): Reference {
  const share = ({ stage: { name, most } }: Reference) =>
    killsOf(results.filter(({ stage }) => stage === name)) * (most === undefined ? 1 : 10);
  return known.reduce((least, one) => (share(one) < share(least) ? one : least));
}

async function tried({ known, mode, at }: Task, place: Place, seed: number): Promise<Result> {
  const result: Result = { stage: known.stage.name, mode, at, kills: Number(KILLS.includes(mode)) };
  const random = new Random(`${known.stage.name} ${mode} ${at}`, seed);
  try {
    if (mode === "hunt") result.kills = await hunted(known, KILLS_OF_A_HUNT, place, random);
    else await harmed(known, mode, at, place, random);
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    result.fault = error.message;
  }
  return result;
}

const killsOf = (results: readonly Result[]) => results.reduce((n, { kills }) => n + kills, 0);

function verdict(results: readonly Result[]): string {
  const faults = results.filter(({ fault }) => fault !== undefined).length;
  return `${killsOf(results)} kills, ${results.length} trials, ${faults === 0 ? "nothing lost" : `${faults} faults`}`;
}

/** A row for each stage: its calls, how many were harmed in each way, and kills in all. */
function summary(results: readonly Result[], known: readonly Reference[]): [head: string[], rows: string[][]] {
  const names = Object.keys(modes) as Mode[];
  const row = (name: string, of: readonly Result[], calls: number) => [
    name,
    String(calls),
    ...names.map((mode) => String(of.filter((one) => one.mode === mode).length)),
    String(killsOf(of)),
    String(of.filter(({ fault }) => fault !== undefined).length),
  ];
  const rows = known.map(({ stage: { name }, calls }) =>
    row(
      name,
      results.filter(({ stage }) => stage === name),
      calls.length,
    ),
  );
  const calls = known.reduce((n, one) => n + one.calls.length, 0);
  return [
    ["stage", "calls", ...names, "kills in all", "faults"],
    [...rows, row("all", results, calls)],
  ];
}

async function writeDocs(results: readonly Result[], known: readonly Reference[]): Promise<void> {
  const page = join(root, "docs/reliability.md");
  const [head, rows] = summary(results, known);
  const lines = [head, head.map((_, i) => (i === 0 ? "---" : "---:")), ...rows].map(
    (cells) => `| ${cells.join(" | ")} |`,
  );
  const machine = `Node.js ${process.versions.node} on ${cpus()[0].model}, ${verdict(results)}.`;
  const text = await readFile(page, "utf8");
  const made = `<!-- torture -->\n\n${lines.join("\n")}\n\n${machine}\n\n<!-- /torture -->`;
  await writeFile(
    page,
    text.replace(/<!-- torture -->.*<!-- \/torture -->/s, () => made),
  );
}

await mkdir(build, { recursive: true });
process.exitCode = await main();
