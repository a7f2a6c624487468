import { fork, type ChildProcess } from "node:child_process";
import { stat } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { typeError } from "../device/errors.js";
import { Row } from "./jsonl.js";

// A few bytes of a hostile file can ask the reader for any number of rows, and some for ever. So it is a process of its own, which is
// ended where it takes more memory or time than a file of this size may; a thread would take this one with it.
const MIB = 2 ** 20;
const megabytes = (bytes: number) => 256 + Math.ceil((64 * bytes) / MIB);
const seconds = (bytes: number) => 10 + Math.ceil((4 * bytes) / MIB); // for each row group; a usual one takes a twentieth

/** What the reader answers: the rows of the next row group, none after the last, or what is wrong. */
export interface Answer {
  rows?: Record<string, unknown>[];
  error?: string;
}

/**
 * Reads the rows of a Parquet file, a row group at a time. 64-bit integers that are exact as numbers become numbers.
 * @throws TypeError `PARQUET` naming the file
 */
export async function* readParquet(file: string): AsyncGenerator<Row> {
  const fail = (what: string) => typeError("PARQUET", `${file} cannot be read as Parquet: ${what}`);
  const { size } = await stat(file).catch((error: Error) => {
    throw fail(error.message);
  });
  const reader = fork(fileURLToPath(new URL("./parquet_reader.js", import.meta.url)), [file, `${process.pid}`], {
    execArgv: [`--max-old-space-size=${megabytes(size)}`],
    serialization: "advanced",
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });
  try {
    let place = 0;
    for (;;) {
      const { rows, error } = await answer(reader, seconds(size));
      if (error !== undefined) throw fail(error);
      if (!rows) return;
      for (const row of rows) yield new Row(row, `${file}, row ${++place}`);
    }
  } finally {
    reader.kill("SIGKILL");
  }
}

function answer(reader: ChildProcess, seconds: number): Promise<Answer> {
  return new Promise((resolve) => {
    const end = (answer: Answer) => {
      clearTimeout(timer);
      reader.off("message", end).off("exit", ended).off("error", failed);
      resolve(answer);
    };
    const ended = (code: number | null, signal: string | null) => end({ error: `it takes more memory than it may, or its reader failed (${signal ?? code})` });
    const failed = (error: Error) => end({ error: error.message });
    const timer = setTimeout(() => end({ error: `a row group takes longer than ${seconds} s` }), 1000 * seconds);
    reader.once("message", end).once("exit", ended).once("error", failed);
    reader.send("next", (error) => error && failed(error));
  });
}
