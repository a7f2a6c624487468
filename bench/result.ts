/** Another implementation of a row's work, timed in turns with ours. */
export interface PeerResult {
  name: string;
  ms: number;
  /** The peer's time over ours. */
  ratio: number;
  bytes: number;
}

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
  /** The fastest comes first. */
  peers: PeerResult[];
  /**
   * The least time that the hardware allowed, measured in turns with the row; null where it was not
   * measured.
   */
  limit: number | null;
  /** The limit over our time. */
  limitRatio: number | null;
  /** FLOP/s in turns with the row; null where arithmetic is not the limit. */
  peak?: number | null;
  /** Bytes/s, at the row's own mix of streams and footprint; null where arithmetic is the limit. */
  bandwidth: number | null;
  bytes: number;
  tokensPerSecond?: number;
  /** Share of the time in which no kernel ran: JavaScript, and the way to the threads and back. */
  outside?: number;
}

/** Work at sizes that double. */
export interface Growth {
  name: string;
  /** The size that doubles. */
  varies: string;
  /** All other sizes. */
  shape: string;
  threads: number;
  sizes: number[];
  ms: number[];
  /** FLOPs of the largest size over those of the smallest. */
  work: number;
}

/**
 * What the order of the sums costs: our time over that of a kernel that is free to add in any
 * order.
 */
export interface Order {
  name: string;
  shape: string;
  threads: number;
  ms: number;
  unordered: number;
}

/** A training step that computes a prompt once for all its completions. */
export interface Sharing {
  name: string;
  shape: string;
  threads: number;
  ms: number;
  /** Time in ms of the step that computes the prompt again for each completion. */
  alone: number;
  /** FLOPs of that step over those of ours. */
  work: number;
}

/** What `--json` writes. */
export interface Result {
  /** The commit that was measured. */
  commit?: string;
  cpu: string;
  isa: string;
  /** The best rates for each number of threads: FLOP/s, and bytes/s read from memory. */
  limits: { threads: number; peak: number; bandwidth: number }[];
  rows: Row[];
  growth: Growth[];
  order: Order[];
  sharing?: Sharing[];
}

const digits = (x: number) =>
  x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x >= 0.1 ? x.toFixed(2) : x.toPrecision(2);
const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0);
const percent = (share: number) => `${(100 * share).toFixed(0)} %`;

export const head = [
  "row",
  "shape",
  "ms",
  "spread",
  "of limit",
  "MiB",
  "tokens/s",
  "outside kernels",
  "peer",
  "peer ms",
  "faster",
  "peer MiB",
];
const PEER = head.indexOf("peer");

/** A line for the row and its fastest peer, and one more for each other peer. */
export function lines(row: Row): string[][] {
  const own = [
    row.device === "cpu" ? row.name : `${row.name}, ${row.device} (${row.isa})`,
    row.shape,
    digits(row.ms),
    percent(row.spread),
    row.limitRatio === null ? "" : percent(row.limitRatio),
    mib(row.bytes),
    row.tokensPerSecond ? row.tokensPerSecond.toFixed(0) : "",
    row.outside === undefined ? "" : `${(100 * row.outside).toFixed(1)} %`,
  ];
  const peers = row.peers.map(({ name, ms, ratio, bytes }) => [name, digits(ms), `${ratio.toFixed(2)}x`, mib(bytes)]);
  return (peers.length > 0 ? peers : [["", "", "", ""]]).map((peer, i) => [
    ...(i === 0 ? own : own.map(() => "")),
    ...peer,
  ]);
}

export const growthHead = ["cost of growth", "shape", "sizes", "ms", "times", "work"];
export const growthCells = ({ name, varies, shape, sizes, ms, work }: Growth): string[] => [
  name,
  shape,
  `${varies} ${sizes.join(", ")}`,
  ms.map(digits).join(", "),
  ms
    .slice(1)
    .map((time, i) => `${(time / ms[i]).toFixed(2)}x`)
    .join(", "),
  `${(work ** (1 / (sizes.length - 1))).toFixed(2)}x`,
];

export const orderHead = ["cost of the order of sums", "shape", "threads", "ms", "ms in any order", "ratio"];
export const orderCells = ({ name, shape, threads, ms, unordered }: Order): string[] => [
  name,
  shape,
  String(threads),
  digits(ms),
  digits(unordered),
  `${(ms / unordered).toFixed(2)}x`,
];

export const sharingHead = [
  "prompts computed once",
  "shape",
  "threads",
  "ms",
  "ms, prompt repeated",
  "faster",
  "fewer FLOPs",
  "share of that",
];
export const sharingCells = ({ name, shape, threads, ms, alone, work }: Sharing): string[] => [
  name,
  shape,
  String(threads),
  digits(ms),
  digits(alone),
  `${(alone / ms).toFixed(2)}x`,
  `${work.toFixed(2)}x`,
  percent(alone / ms / work),
];

function grid(top: readonly string[], rows: readonly (readonly string[])[], text: (i: number) => boolean): string {
  const line = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;
  return [line(top), `|${top.map((_, i) => (text(i) ? " --- |" : " ---: |")).join("")}`, ...rows.map(line)].join("\n");
}

/**
 * A table of the rows that have a peer: the fastest peer's time over ours, and our share of the
 * limit. The rows are those of the machine's first number of threads.
 * @param shown rows to show, as "name | shape"; all by default
 */
export function overview(results: readonly Result[], shown?: readonly string[]): string {
  const tops = results.map(
    ({ cpu, isa, limits: [{ threads, peak }] }) =>
      `${cpu}, ${isa}, ${threads} threads, ${(peak / 1e9).toFixed(0)} GFLOP/s`,
  );
  const cells = new Map<string, string[]>();
  for (const [i, { rows, limits }] of results.entries())
    for (const { name, shape, threads, device, peers, limitRatio } of rows) {
      if (device !== "cpu" || threads !== limits[0].threads || peers.length === 0) continue;
      const key = `${name} | ${shape}`;
      if (!cells.has(key)) cells.set(key, Array(results.length).fill(""));
      cells.get(key)![i] = `${peers[0].ratio.toFixed(2)}x${limitRatio === null ? "" : `, ${percent(limitRatio)}`}`;
    }
  const keys = shown?.filter((key) => cells.has(key)) ?? [...cells.keys()];
  return grid(
    ["row", "shape", ...tops],
    keys.map((key) => [...key.split(" | "), ...cells.get(key)!]),
    (i) => i < 2,
  );
}

/** The rows that were measured with this number of threads. */
export function rowsTable(
  { cpu, isa, rows, commit }: Result,
  { threads, peak, bandwidth }: Result["limits"][0],
): string {
  const all = rows.filter((row) => row.threads === threads).flatMap(lines);
  const shown = head.map((_, i) => i).filter((i) => head[i] !== "spread" && all.some((cells) => cells[i] !== ""));
  const machine = `${cpu}, ${isa}, ${threads} thread${threads === 1 ? "" : "s"}`;
  const rates = `${(peak / 1e9).toFixed(0)} GFLOP/s and ${(bandwidth / 1e9).toFixed(1)} GB/s`;
  const title = `${machine}.\nBest rates: ${rates}.${commit ? ` Commit ${commit}.` : ""}`;
  return `${title}\n\n${grid(
    shown.map((i) => head[i]),
    all.map((cells) => shown.map((i) => cells[i])),
    (i) => shown[i] < 2 || shown[i] === PEER,
  )}`;
}

/** All tables of a machine. */
export function markdown(result: Result): string {
  const { limits, growth, order, sharing = [] } = result;
  const tables = limits.map((limit) => rowsTable(result, limit));
  if (order.length > 0) tables.push(grid(orderHead, order.map(orderCells), (i) => i < 2));
  if (sharing.length > 0) tables.push(grid(sharingHead, sharing.map(sharingCells), (i) => i < 2));
  if (growth.length > 0) tables.push(grid(growthHead, growth.map(growthCells), () => true));
  return tables.join("\n\n");
}
