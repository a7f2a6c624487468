import { once } from "node:events";
import { stat } from "node:fs/promises";
import { Worker } from "node:worker_threads";
import { typeError } from "../device/errors.js";
import { Row } from "./jsonl.js";

// A few bytes of a hostile file can ask the reader for any number of rows, and some for ever. So it runs in a thread of its own, which is
// ended where it takes more memory or time than a file of this size may.
const MIB = 2 ** 20;
const megabytes = (bytes: number) => 256 + Math.ceil((64 * bytes) / MIB);
const seconds = (bytes: number) => 10 + Math.ceil((4 * bytes) / MIB); // for each row group; a usual one takes a twentieth

/**
 * Reads the rows of a Parquet file, a row group at a time. 64-bit integers that are exact as numbers become numbers.
 * @throws TypeError `PARQUET` naming the file
 */
export async function* readParquet(file: string): AsyncGenerator<Row> {
  const fail = (error: Error) => {
    throw typeError("PARQUET", `${file} cannot be read as Parquet: ${error.message}`);
  };
  const { size } = await stat(file).catch(fail);
  const resourceLimits = { maxOldGenerationSizeMb: megabytes(size) };
  const worker = new Worker(new URL("./parquet_worker.js", import.meta.url), { workerData: file, resourceLimits });
  worker.on("error", () => undefined); // told by what waits for an answer
  try {
    let place = 0;
    for (;;) {
      const rows = await answer(worker, seconds(size)).catch(fail);
      if (!rows) return;
      for (const row of rows) yield new Row(row, `${file}, row ${++place}`);
    }
  } finally {
    await worker.terminate();
  }
}

/** The rows of the next row group; none after the last. */
async function answer(worker: Worker, seconds: number): Promise<Record<string, unknown>[] | undefined> {
  const signal = AbortSignal.timeout(1000 * seconds);
  worker.postMessage("next");
  const [rows] = (await once(worker, "message", { signal }).catch((error: Error) => {
    throw signal.aborted ? new Error(`a row group takes longer than ${seconds} s`) : error;
  })) as [Record<string, unknown>[] | undefined];
  return rows;
}
