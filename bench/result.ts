/** A row of the benchmarks; times in ms, sizes in bytes. */
export interface Row {
  name: string;
  shape: string;
  device: string;
  isa: string;
  threads: number;
  ms: number;
  /** (90th - 10th percentile) / median */
  spread: number;
  peer: string | null;
  peerMs: number | null;
  /** The peer's time over ours. */
  peerRatio: number | null;
  /** The least time that the machine's arithmetic and memory allow; null where they were not measured. */
  limit: number | null;
  /** The limit's time over ours. */
  limitRatio: number | null;
  bytes: number;
  peerBytes: number | null;
  tokensPerSecond?: number;
}

/** What `--json` writes. */
export interface Result {
  cpu: string;
  isa: string;
  threads: number;
  /** FLOP/s, of the CPU */
  peak: number | null;
  /** bytes/s */
  bandwidth: number | null;
  rows: Row[];
}

export const head = ["row", "shape", "ms", "spread", "of limit", "peer", "peer ms", "faster", "MiB", "peer MiB", "tokens/s"];

const digits = (x: number) => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x >= 0.1 ? x.toFixed(2) : x.toPrecision(2));
const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0);

export const cells = (row: Row): string[] => [
  row.device === "cpu" ? row.name : `${row.name}, ${row.device} (${row.isa})`,
  row.shape,
  digits(row.ms),
  `${(100 * row.spread).toFixed(0)} %`,
  row.limitRatio === null ? "" : `${(100 * row.limitRatio).toFixed(0)} %`,
  row.peer ?? "",
  row.peerMs === null ? "" : digits(row.peerMs),
  row.peerRatio === null ? "" : `${row.peerRatio.toFixed(2)}x`,
  mib(row.bytes),
  row.peerBytes === null ? "" : mib(row.peerBytes),
  row.tokensPerSecond ? row.tokensPerSecond.toFixed(0) : "",
];

/** The results of a machine as the README shows them. */
export function markdown({ cpu, isa, threads, peak, bandwidth, rows }: Result): string {
  const shown = [0, 1, 2, 4, 5, 7, 10];
  const line = (row: readonly string[]) => `| ${shown.map((i) => row[i]).join(" | ")} |`;
  return [
    `${cpu} (${isa}, ${threads} threads${peak && bandwidth ? `; measured in the same run: ${(peak / 1e9).toFixed(0)} GFLOP/s, ${(bandwidth / 1e9).toFixed(1)} GB/s` : ""})`,
    "",
    line(head),
    `|${shown.map((i) => (i < 2 || i === 5 ? " --- |" : " ---: |")).join("")}`,
    ...rows.map((row) => line(cells(row))),
  ].join("\n");
}
