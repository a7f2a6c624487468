import { Command } from "@commander-js/extra-typings";
import { cpuName } from "../lib/cli/info.js";
import { table } from "../lib/cli/table.js";
import { device } from "../lib/index.js";
import { writeFileDurably } from "../lib/model/safetensors.js";
import { kernelRows } from "./kernels.js";
import { limitMs, measureLimits, type Cost } from "./limit.js";
import { interleaved, type Timer } from "./measure.js";
import { stepRows } from "./models.js";
import { Peer } from "./peer.js";
import { cells, head, type Result, type Row } from "./result.js";

// Every kernel and every step against the machine's limit and against what people use today, in one run.

const { filter, threads, json } = new Command("bench")
  .option("--filter <regex>", "only rows whose name and shape match", "")
  .option("--threads <n>", "compute threads", Number)
  .option("--json <file>", "write the rows")
  .parse()
  .opts();

const on = await device("cpu", { threads });
const limits = await measureLimits(on);
const peer = await Peer.open(on.threads);
if (!peer) console.error("RLHF_PEER_PYTHON is not set to a Python with torch: no peers");
console.error(`${cpuName()}, ${on.isa}, ${on.threads} threads: ${(limits.peak / 1e9).toFixed(0)} GFLOP/s, ${(limits.bandwidth / 1e9).toFixed(1)} GB/s read`);

interface Prepared {
  timer: Timer;
  cost: Cost;
  tokens?: number;
  dispose(): void;
}
const wanted = new RegExp(filter, "i");
const all: { name: string; shape: string; prepare(): Prepared }[] = [
  ...(await kernelRows()).map(({ name, shape, prepare }) => ({ name, shape, prepare: () => prepare(on) })),
  ...stepRows.map(({ name, shape, cost, tokens, prepare }) => ({ name, shape, prepare: () => ({ ...prepare(on), cost, tokens }) })),
];

const rows: Row[] = [];
for (const { name, shape, prepare } of all.filter((row) => wanted.test(`${row.name} ${row.shape}`))) {
  const before = on.memory().current;
  on.resetPeak();
  const { timer, cost, tokens, dispose } = prepare();
  const peerName = await peer?.prepare(name, shape);
  const [ours, theirs] = await interleaved(peerName && peer ? [timer, peer.run] : [timer]);
  const limit = limitMs(cost, limits);
  const row: Row = {
    name,
    shape,
    device: on.kind,
    isa: on.isa,
    threads: on.threads,
    ms: ours.ms,
    spread: ours.spread,
    peer: peerName ?? null,
    peerMs: theirs?.ms ?? null,
    peerRatio: theirs ? theirs.ms / ours.ms : null,
    limit,
    limitRatio: limit / ours.ms,
    bytes: on.memory().peak - before,
    peerBytes: peerName && peer ? await peer.bytes() : null,
    ...(tokens ? { tokensPerSecond: (1000 * tokens) / ours.ms } : {}),
  };
  rows.push(row);
  console.error(cells(row).join("  "));
  dispose();
}
console.log(table(head, rows.map(cells)));

if (json) {
  const result: Result = { cpu: cpuName(), isa: on.isa, threads: on.threads, peak: limits.peak, bandwidth: limits.bandwidth, rows };
  await writeFileDurably(json, `${JSON.stringify(result, null, 2)}\n`);
}
peer?.close();
await on.close();
