import { spawnSync } from "node:child_process";
import { Command } from "@commander-js/extra-typings";
import { cpuName } from "../lib/cli/info.js";
import { table } from "../lib/cli/table.js";
import { root } from "../lib/device/native.js";
import { device, type Device, type DeviceKind } from "../lib/index.js";
import { writeFileDurably } from "../lib/files/durable.js";
import { growthRows, measureGrowth } from "./growth.js";
import { kernelRows, type Prepared } from "./kernels.js";
import { bound, Limits } from "./limit.js";
import { interleaved, type Timer } from "./measure.js";
import { stepRows } from "./models.js";
import { orderRows } from "./order.js";
import { Peers, type Question } from "./peer.js";
import { growthCells, growthHead, head, lines, orderCells, orderHead, sharingCells, sharingHead } from "./result.js";
import type { Growth, Order, Result, Row, Sharing } from "./result.js";
import { sharingRows } from "./sharing.js";

// `npm run bench`: every kernel and every training step beside the machine's limit and the peers
// that are installed.

const {
  filter,
  threads: asked,
  json,
  devices,
} = new Command("bench")
  .option("--filter <regex>", "only rows whose name and shape match", "")
  .option(
    "--threads <counts>",
    "compute threads: one number, or several with commas; steps of whole models and growth run at the first",
    (text) => text.split(",").map(Number),
  )
  .option("--devices <kinds>", "cpu,cuda,webgpu; by default those that are here, a GPU in software only if it is named")
  .option("--json <file>", "write the rows")
  .parse()
  .opts();

const inSoftware = /llvmpipe|swiftshader/i;

/** Opens a device. Undefined where it is not here and was not asked for by name. */
async function opened(kind: DeviceKind, threads: number | undefined): Promise<Device | undefined> {
  try {
    const one = await device(kind, { threads });
    if (devices || !inSoftware.test(one.isa)) return one;
    await one.close();
  } catch (error) {
    if (devices) throw error;
    console.error((error as Error).message);
  }
  return undefined;
}

interface Work extends Prepared {
  tokens?: number;
}
interface Planned extends Question {
  prepare(): Work;
}
const wanted = new RegExp(filter, "i");
const matches = ({ name, shape }: { name: string; shape: string }) => wanted.test(`${name} ${shape}`);

async function plan(on: Device, whole: boolean): Promise<Planned[]> {
  const kernels = (await kernelRows())
    .filter(({ ops }) => ops.every((op) => on.has(op)))
    .map(({ name, shape, prepare }) => ({ name, shape, prepare: () => prepare(on) }));
  const steps = whole
    ? stepRows.map(({ name, shape, sizes, cost, tokens, prepare }) => ({
        name,
        shape,
        sizes,
        prepare: () => ({ ...prepare(on), cost, tokens }),
      }))
    : [];
  return [...kernels, ...steps].filter(matches);
}

/** Wraps a timer and keeps, for each call, the share of the time in which no kernel ran. */
function watched(on: Device, timer: Timer): { timer: Timer; outside: number[] } {
  const outside: number[] = [];
  return {
    outside,
    async timer(runs) {
      const before = on.memory().busySeconds;
      const ms = await timer(runs);
      outside.push(1 - (1000 * (on.memory().busySeconds - before)) / ms);
      return ms;
    },
  };
}

async function measure(
  on: Device,
  { name, shape, sizes, prepare }: Planned,
  limits: Limits | undefined,
  peers: Peers | undefined,
): Promise<Row> {
  const before = on.memory().current;
  const { timer, cost, tokens, dispose } = prepare();
  await on.read(0, 0); // what it queued is not what is timed
  const held = on.memory().current;
  const bars = (await limits?.bars(cost)) ?? [];
  const probes = on.memory().current - held; // less those of the row before
  on.resetPeak();
  const others = (await peers?.prepare({ name, shape, sizes })) ?? [];
  const { timer: own, outside } = watched(on, timer);
  const [ours, ...rest] = await interleaved([own, ...others.map((one) => one.timer), ...bars.map((bar) => bar.timer)]);
  const theirs = rest.slice(0, others.length);
  const bytes = on.memory().peak - before - probes;
  const measured = await Promise.all(
    others.map(async (one, i) => ({
      name: one.name,
      ms: theirs[i].ms,
      ratio: theirs[i].ms / ours.ms,
      bytes: await one.bytes(),
    })),
  );
  dispose();
  await peers?.release();
  const limit =
    limits &&
    bound(
      bars,
      rest.slice(others.length).map(({ ms }) => ms),
      cost.apart,
    );
  return {
    name,
    shape,
    device: on.kind,
    isa: on.isa,
    threads: on.threads,
    ms: ours.ms,
    spread: ours.spread,
    peers: measured.toSorted((a, b) => a.ms - b.ms),
    limit: limit?.ms ?? null,
    limitRatio: limit ? limit.ms / ours.ms : null,
    peak: limit?.peak ?? null,
    bandwidth: limit?.bandwidth ?? null,
    bytes,
    outside: on.kind === "cpu" ? outside.toSorted((a, b) => a - b)[outside.length >> 1] : undefined, // others do not tell
    ...(tokens ? { tokensPerSecond: (1000 * tokens) / ours.ms } : {}),
  };
}

const rows: Row[] = [];
const growth: Growth[] = [];
const order: Order[] = [];
const sharing: Sharing[] = [];
const limitsOf: Result["limits"] = [];
let isa = "";
const { stdout: commit } = spawnSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root, encoding: "utf8" });

/** Writes the rows that were measured so far, so that a run which is cut off keeps them. */
async function save(): Promise<void> {
  if (!json) return;
  const result: Result = {
    commit: commit?.trim() || undefined,
    cpu: cpuName(),
    isa,
    limits: limitsOf,
    rows,
    growth,
    order,
    sharing,
  };
  await writeFileDurably(json, `${JSON.stringify(result, null, 2)}\n`);
}

async function measureAll(on: Device, whole: boolean): Promise<void> {
  const cpu = on.kind === "cpu";
  const limits = cpu ? await Limits.measure(on) : undefined;
  const peers = cpu ? new Peers(on.threads) : undefined;
  if (limits) {
    isa = on.isa;
    limitsOf.push({ threads: on.threads, peak: limits.peak, bandwidth: limits.read });
    console.error(
      `${cpuName()}, ${on.isa}, ${on.threads} threads: ${(limits.peak / 1e9).toFixed(0)} GFLOP/s, ${(limits.read / 1e9).toFixed(1)} GB/s read`,
    );
  }
  const planned = await plan(on, cpu && whole);
  for (const [i, one] of planned.entries()) {
    const row = await measure(on, one, limits, peers);
    rows.push(row);
    for (const line of lines(row)) console.error(`${i + 1}/${planned.length}  ${line.join("  ")}`);
    await save();
  }
  await peers?.close();
  if (!cpu) return;
  for (const one of orderRows.filter(({ name, shape }) => matches({ name: `order ${name}`, shape }))) {
    order.push(await one.measure(on));
    console.error(orderCells(order.at(-1)!).join("  "));
    await save();
  }
  for (const one of whole ? sharingRows.filter(({ name, shape }) => matches({ name: `sharing ${name}`, shape })) : []) {
    sharing.push(await one.measure(on));
    console.error(sharingCells(sharing.at(-1)!).join("  "));
    await save();
  }
  for (const one of whole ? growthRows.filter(({ name, shape }) => matches({ name: `growth ${name}`, shape })) : []) {
    growth.push(await measureGrowth(on, one));
    console.error(growthCells(growth.at(-1)!).join("  "));
    await save();
  }
}

const kinds = (devices?.split(",") as DeviceKind[] | undefined) ?? ["cpu", "cuda", "webgpu"];
for (const kind of kinds)
  for (const [i, threads] of (kind === "cpu" && asked ? asked : [undefined]).entries()) {
    const on = await opened(kind, threads);
    if (!on) continue;
    await measureAll(on, i === 0);
    await on.close();
  }

if (rows.length > 0) console.log(table(head, rows.flatMap(lines)));
if (order.length > 0) console.log(`\n${table(orderHead, order.map(orderCells))}`);
if (sharing.length > 0) console.log(`\n${table(sharingHead, sharing.map(sharingCells))}`);
if (growth.length > 0) console.log(`\n${table(growthHead, growth.map(growthCells))}`);
if ([rows, order, sharing, growth].every(({ length }) => length === 0)) {
  console.error(`no row matches --filter ${filter}`);
  process.exitCode = 1;
}
await save();
