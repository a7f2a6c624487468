import { parentPort, workerData } from "node:worker_threads";
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";

// The thread in which lib/data/parquet.ts reads a file: each message asks for a row group, and is answered by its rows.

const groups = rowGroups(workerData as string);

parentPort!.on("message", () => void groups.next().then(({ value }) => parentPort!.postMessage(value)));

async function* rowGroups(name: string): AsyncGenerator<Record<string, unknown>[], undefined> {
  const file = await asyncBufferFromFile(name);
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
