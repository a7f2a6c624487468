import { Worker } from "node:worker_threads";
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import type { Answer } from "./parquet.js";

// The process in which lib/data/parquet.ts has a file read: each message asks for the next rows. It
// ends with its parent, however that ends.

const MOST = 2 ** 24; // characters and numbers of a row, and of an answer
const [, , name, parent] = process.argv;
new Worker(new URL("./orphan.js", import.meta.url), { workerData: Number(parent) }).unref();

const answers = batches(name);
const tell = (answer: Answer) => process.send!(answer);

process.on("message", () => {
  answers.next().then(
    ({ value }) => tell(value ?? {}),
    (error: Error) => tell({ error: error.message }),
  );
});
process.on("disconnect", () => process.exit());

/**
 * Rows, so many that an answer stays small: a dictionary may hold one long text for a million of
 * them.
 */
async function* batches(path: string): AsyncGenerator<Answer, undefined> {
  let [rows, size, place]: [Record<string, unknown>[], number, number] = [[], 0, 0];
  for await (const group of rowGroups(path))
    for (const row of group) {
      place++;
      const own = sizeOf(row);
      if (own > MOST) throw new Error(`row ${place} has more than ${MOST} characters and numbers, the limit of a row`);
      if (size + own > MOST) {
        yield { rows, size };
        [rows, size] = [[], 0];
      }
      rows.push(numbers(row) as Record<string, unknown>);
      size += own;
    }
  if (rows.length > 0) yield { rows, size };
}

async function* rowGroups(path: string): AsyncGenerator<Record<string, unknown>[], undefined> {
  const file = await asyncBufferFromFile(path);
  const metadata = await parquetMetadataAsync(file);
  let rowStart = 0;
  for (const { num_rows } of metadata.row_groups) {
    const rowEnd = rowStart + Number(num_rows);
    yield await parquetReadObjects({ file, metadata, rowStart, rowEnd, compressors });
    rowStart = rowEnd;
  }
}

/**
 * Characters and bytes of a value, and one for each part; no more than a little above the limit.
 */
function sizeOf(value: unknown): number {
  if (typeof value === "string") return 1 + value.length;
  if (typeof value !== "object" || value === null) return 1;
  if (ArrayBuffer.isView(value)) return 1 + value.byteLength;
  let size = 1;
  for (const [key, part] of Object.entries(value)) if ((size += key.length + sizeOf(part)) > MOST) break;
  return size;
}

function numbers(value: unknown): unknown {
  if (typeof value === "bigint" && Number.isSafeInteger(Number(value))) return Number(value);
  if (Array.isArray(value)) return value.map(numbers);
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, numbers(part)]));
}
