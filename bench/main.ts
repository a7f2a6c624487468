import { Command } from "@commander-js/extra-typings";
import { cpuName } from "../lib/cli/info.js";
import { table } from "../lib/cli/table.js";
import { device, type Device, type DeviceKind } from "../lib/index.js";
import { writeFileDurably } from "../lib/model/safetensors.js";
import { kernelRows } from "./kernels.js";
import { limitMs, measureLimits, type Cost } from "./limit.js";
import { interleaved, type Timer } from "./measure.js";
import { stepRows } from "./models.js";
import { Peer } from "./peer.js";
import { cells, head, type Result, type Row } from "./result.js";

// Every kernel and every step against the machine's limit and against what people use today, in one run.

const {
  filter,
  threads,
  json,
  devices: asked,
} = new Command("bench")
  .option("--filter <regex>", "only rows whose name and shape match", "")
  .option("--threads <n>", "compute threads", Number)
  .option("--devices <kinds>", "cpu,cuda,webgpu; by default those that are here, a GPU in software only if it is named")
  .option("--json <file>", "write the rows")
  .parse()
  .opts();

const kinds: readonly DeviceKind[] = ["cpu", "cuda", "webgpu"];
const inSoftware = /llvmpipe|swiftshader/i;
const devices: Device[] = [];
for (const kind of (asked?.split(",") as DeviceKind[] | undefined) ?? kinds)
  try {
    const one = await device(kind, { threads });
    if (asked || !inSoftware.test(one.isa)) devices.push(one);
    else await one.close();
  } catch (error) {
    if (asked) throw error;
    console.error((error as Error).message);
  }
const on = devices[0];
const limits = on.kind === "cpu" ? await measureLimits(on) : undefined;
const peer = await Peer.open(on.threads);
if (!peer) console.error("RLHF_PEER_PYTHON is not set to a Python with torch: no peers");
if (limits)
  console.error(`${cpuName()}, ${on.isa}, ${on.threads} threads: ${(limits.peak / 1e9).toFixed(0)} GFLOP/s, ${(limits.bandwidth / 1e9).toFixed(1)} GB/s read`);

interface Prepared {
  timer: Timer;
  cost: Cost;
  tokens?: number;
  dispose(): void;
}
const wanted = new RegExp(filter, "i");
const all: { on: Device; name: string; shape: string; prepare(): Prepared }[] = [];
for (const one of devices) {
  for (const { name, shape, prepare } of await kernelRows()) if (one.has(name)) all.push({ on: one, name, shape, prepare: () => prepare(one) });
  if (one.kind === "cpu")
    for (const { name, shape, cost, tokens, prepare } of stepRows) all.push({ on: one, name, shape, prepare: () => ({ ...prepare(one), cost, tokens }) });
}

const rows: Row[] = [];
for (const { on: one, name, shape, prepare } of all.filter((row) => wanted.test(`${row.name} ${row.shape}`))) {
  const before = one.memory().current;
  one.resetPeak();
  const { timer, cost, tokens, dispose } = prepare();
  const peerName = one.kind === "cpu" ? await peer?.prepare(name, shape) : undefined;
  const [ours, theirs] = await interleaved(peerName && peer ? [timer, peer.run] : [timer]);
  const limit = limits && one.kind === "cpu" ? limitMs(cost, limits) : null;
  const row: Row = {
    name,
    shape,
    device: one.kind,
    isa: one.isa,
    threads: one.threads,
    ms: ours.ms,
    spread: ours.spread,
    peer: peerName ?? null,
    peerMs: theirs?.ms ?? null,
    peerRatio: theirs ? theirs.ms / ours.ms : null,
    limit,
    limitRatio: limit === null ? null : limit / ours.ms,
    bytes: one.memory().peak - before,
    peerBytes: peerName && peer ? await peer.bytes() : null,
    ...(tokens ? { tokensPerSecond: (1000 * tokens) / ours.ms } : {}),
  };
  rows.push(row);
  console.error(cells(row).join("  "));
  dispose();
}
console.log(table(head, rows.map(cells)));

if (json) {
  const result: Result = { cpu: cpuName(), isa: on.isa, threads: on.threads, peak: limits?.peak ?? null, bandwidth: limits?.bandwidth ?? null, rows };
  await writeFileDurably(json, `${JSON.stringify(result, null, 2)}\n`);
}
peer?.close();
for (const one of devices) await one.close();
