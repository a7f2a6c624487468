import { open, readFile, rm, writeFile, type FileHandle } from "node:fs/promises";
import { dirname } from "node:path";
import { typeError } from "../device/errors.js";
import { isNumber, isNumbers, isString, readJsonl, type Row } from "./jsonl.js";

/** How much better: of the one that was preferred in a pair. */
export type Strength = "slightly" | "clearly";

/** A line of the log: what one annotator did with one task. */
export interface LabelEntry {
  kind: "label" | "skip" | "flag" | "undo";
  task: string;
  annotator: string;
  /** When, ISO 8601. */
  at: string;
  /** The completions in the order in which they were shown, by their place in the task. */
  shown: number[];
  /** From showing to answer. */
  seconds: number;
  /** For each criterion the rank of each completion, in the task's order: 1 is best, equal ranks are a tie. */
  ranks?: Record<string, number[]>;
  /** For each criterion; a tie has none, nor has a ranking of more than two. */
  strength?: Record<string, Strength>;
  reason?: string;
}

const kinds = ["label", "skip", "flag", "undo"];

/** @throws TypeError `COLUMN` naming the column and the line */
export function labelEntry(row: Row): LabelEntry {
  row.column("kind", `one of ${kinds.join(", ")}`, (value): value is string => isString(value) && kinds.includes(value));
  for (const name of ["task", "annotator", "at"]) row.text(name);
  row.column("shown", "places of completions", isNumbers);
  row.column("seconds", "a number", isNumber);
  row.optional("ranks", "ranks for each criterion", (value): value is object => typeof value === "object" && Object.values(value!).every(isNumbers));
  return row.value as unknown as LabelEntry;
}

const LINE_FEED = 0x0a;

/**
 * The labels of a folder's annotators, one line each, only ever appended: a line is on the disk (fdatasync) before `append`
 * returns. A process that is killed in the middle of a line leaves a torn one, which nobody was told of; opening drops it.
 */
export class LabelLog {
  private last: Promise<unknown> = Promise.resolve();

  private constructor(
    readonly entries: LabelEntry[],
    private readonly handle: FileHandle,
    private length: number,
    private readonly lock: string,
  ) {}

  /** @throws TypeError `LOCKED` if another process has it open; `FILE`, `JSON`, `COLUMN` for what is no log */
  static async open(file: string): Promise<LabelLog> {
    const lock = `${file}.lock`;
    await take(lock);
    try {
      const handle = await open(file, "a+").then(
        (made) => made.close().then(() => open(file, "r+")),
        (error: Error) => {
          throw typeError("FILE", `${file} cannot be opened: ${error.message}`);
        },
      );
      const length = await wholeLines(handle);
      await handle.truncate(length);
      await handle.sync();
      const folder = await open(dirname(file), "r"); // a new name is durable once the folder is
      await folder.sync();
      await folder.close();
      const entries: LabelEntry[] = [];
      for await (const row of readJsonl(file)) entries.push(labelEntry(row));
      return new LabelLog(entries, handle, length, lock);
    } catch (error) {
      await rm(lock, { force: true });
      throw error;
    }
  }

  /** @throws TypeError `FILE` if the disk does not take it; then the log is as it was */
  append(entry: LabelEntry): Promise<void> {
    const line = Buffer.from(`${JSON.stringify(entry)}\n`);
    const write = async () => {
      try {
        for (let at = 0; at < line.length;) at += (await this.handle.write(line, at, line.length - at, this.length + at)).bytesWritten;
        await this.handle.datasync();
      } catch (error) {
        await this.handle.truncate(this.length).catch(() => undefined); // the next line begins at the same place in any case
        throw typeError("FILE", `the label is not saved: ${(error as Error).message}`);
      }
      this.length += line.length;
      this.entries.push(entry);
    };
    const done = this.last.then(write, write);
    this.last = done;
    return done;
  }

  async close(): Promise<void> {
    await this.last.catch(() => undefined);
    await this.handle.close();
    await rm(this.lock, { force: true });
  }
}

/** Bytes up to the last line feed. */
async function wholeLines(handle: FileHandle): Promise<number> {
  let { size } = await handle.stat();
  const block = Buffer.alloc(65536);
  while (size > 0) {
    const start = Math.max(0, size - block.length);
    const { bytesRead } = await handle.read(block, 0, size - start, start);
    const end = block.subarray(0, bytesRead).lastIndexOf(LINE_FEED);
    if (end >= 0) return start + end + 1;
    size = start;
  }
  return 0;
}

/** Makes the lock file with this process's id; one that a dead process left is taken over. */
async function take(lock: string): Promise<void> {
  for (;;) {
    try {
      return await writeFile(lock, String(process.pid), { flag: "wx" });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw typeError("FILE", `${lock} cannot be written: ${(error as Error).message}`);
    }
    const owner = Number(await readFile(lock, "utf8").catch(() => ""));
    if (owner > 0 && alive(owner)) throw typeError("LOCKED", `${lock}: process ${owner} is labelling into the same file; several annotators share one server`);
    await rm(lock, { force: true });
  }
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
