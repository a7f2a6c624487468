import { fork, type ChildProcess } from "node:child_process";
import { readFile, stat } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { typeError } from "../device/errors.js";
import { mostUnpacked, Row } from "./row.js";

// A few bytes of a hostile file can ask the reader for any number of rows, and some for ever. So it
// is a process of its own, which is ended where it takes more memory or time than a file of this
// size may; a thread would take this one with it.
const MIB = 2 ** 20;
const megabytes = (bytes: number) => 256 + Math.ceil((64 * bytes) / MIB);
// for each answer; a usual row group takes a twentieth
const seconds = (bytes: number) => 10 + Math.ceil((4 * bytes) / MIB);
const WATCH = 100; // milliseconds

/** What the reader answers: the next rows, none after the last, or what is wrong. */
export interface Answer {
  rows?: Record<string, unknown>[];
  /** Characters, bytes and numbers of the rows. */
  size?: number;
  error?: string;
}

/**
 * Reads the rows of a Parquet file; its reader holds a row group at a time. 64-bit integers that
 * are exact as numbers become numbers.
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
    let unpacked = 0;
    for (;;) {
      const { rows, size: own = 0, error } = await answer(reader, size);
      if (error !== undefined) throw fail(error);
      if (!rows) return;
      if ((unpacked += own) > mostUnpacked(size))
        throw fail(`it unpacks to more than ${mostUnpacked(size)} bytes, which no data of its size does`);
      for (const row of rows) yield new Row(row, `${file}, row ${++place}`);
    }
  } finally {
    reader.kill("SIGKILL");
  }
}

function answer(reader: ChildProcess, size: number): Promise<Answer> {
  return new Promise((resolve) => {
    const end = (answer: Answer) => {
      clearInterval(timer);
      reader.off("message", end).off("exit", ended).off("error", failed);
      resolve(answer);
    };
    const ended = (code: number | null, signal: string | null) =>
      end({ error: `it takes more memory than it may, or its reader failed (${signal ?? code})` });
    const failed = (error: Error) => end({ error: error.message });
    const begun = performance.now();
    const before = usage(reader);
    const timer = setInterval(async () => {
      const [first, now] = await Promise.all([before, usage(reader)]);
      const passed = first && now ? now.seconds - first.seconds : (performance.now() - begun) / 1000;
      if (passed > seconds(size)) end({ error: `some of its rows take longer than ${seconds(size)} s` });
      // what it decompresses is not on its heap
      else if (now && now.megabytes > 256 + megabytes(size))
        end({ error: `it takes more memory than ${256 + megabytes(size)} MiB` });
    }, WATCH);
    reader.once("message", end).once("exit", ended).once("error", failed);
    reader.send("next", (error) => error && failed(error));
  });
}

/**
 * What a process has used, where the system tells: time of its threads, not that in which others
 * had the machine, and its memory.
 */
async function usage({ pid }: ChildProcess): Promise<{ seconds: number; megabytes: number } | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" "); // from the third on
  const [user, system, pages] = [11, 12, 21].map((place) => Number(fields[place]));
  return fields.length > 21 ? { seconds: (user + system) / 100, megabytes: pages / 256 } : undefined;
}
