import { Worker } from "node:worker_threads";
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import type { Answer } from "./parquet.js";

// The process in which lib/data/parquet.ts has a file read: each message asks for a row group. It ends with its parent, however that
// ends.

const [, , name, parent] = process.argv;
new Worker(new URL("./orphan.js", import.meta.url), { workerData: Number(parent) }).unref();

const groups = rowGroups(name);
const tell = (answer: Answer) => process.send!(answer);

process.on("message", () => {
  groups.next().then(
    ({ value }) => tell({ rows: value }),
    (error: Error) => tell({ error: error.message }),
  );
});
process.on("disconnect", () => process.exit());

async function* rowGroups(path: string): AsyncGenerator<Record<string, unknown>[], undefined> {
  const file = await asyncBufferFromFile(path);
  const metadata = await parquetMetadataAsync(file);
  let rowStart = 0;
  for (const { num_rows } of metadata.row_groups) {
    const rowEnd = rowStart + Number(num_rows);
    const rows = await parquetReadObjects({ file, metadata, rowStart, rowEnd, compressors });
    yield rows.map((row) => numbers(row) as Record<string, unknown>);
    rowStart = rowEnd;
  }
}

function numbers(value: unknown): unknown {
  if (typeof value === "bigint" && Number.isSafeInteger(Number(value))) return Number(value);
  if (Array.isArray(value)) return value.map(numbers);
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, numbers(part)]));
}
