import { constants, open, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { typeError } from "../device/errors.js";
import { syncFolder } from "../model/safetensors.js";
import { isNumber, isNumbers, isString, readJsonl, type Row } from "./jsonl.js";
import { Lock } from "./lock.js";

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
    private readonly lock: Lock,
  ) {}

  /** @throws TypeError `LOCKED` if another process has it open; `FILE`, `JSON`, `COLUMN` for what is no log */
  static async open(file: string): Promise<LabelLog> {
    const lock = new Lock(join(dirname(file), `.${basename(file)}.lock`), "one server, which several annotators share");
    let handle: FileHandle | undefined;
    try {
      handle = await open(file, constants.O_RDWR | constants.O_CREAT).catch((error: Error) => {
        throw typeError("FILE", `${file} cannot be opened: ${error.message}`);
      });
      const content = await handle.readFile();
      const length = content.lastIndexOf(LINE_FEED) + 1;
      const entries: LabelEntry[] = [];
      for await (const row of readJsonl(file, [content.subarray(0, length)])) entries.push(labelEntry(row));
      await handle.truncate(length);
      await handle.sync();
      await syncFolder(dirname(file));
      return new LabelLog(entries, handle, length, lock);
    } catch (error) {
      await handle?.close();
      lock[Symbol.dispose]();
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
    this.lock[Symbol.dispose]();
  }
}
