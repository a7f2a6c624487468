import { constants, open, readFile, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { shown as text, typeError } from "../device/errors.js";
import { syncFolder, writeFileDurably } from "../files/durable.js";
import { isRanks, type Strength } from "./answers.js";
import { checkedFields, withCrc, withoutCrc } from "../files/crc.js";
import { isString, Row } from "./row.js";
import { Lock } from "../files/lock.js";

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
  /**
   * For each criterion the rank of each completion, in the task's order: 1 is best, equal ranks are
   * a tie.
   */
  ranks?: Record<string, number[]>;
  /** For each criterion; a tie has none, nor has a ranking of more than two. */
  strength?: Record<string, Strength>;
  reason?: string;
}

const KINDS = ["label", "skip", "flag", "undo"];
const FIELDS = ["kind", "task", "annotator", "at", "shown", "seconds", "ranks", "strength", "reason"];

/**
 * A line of the log, whose checksum is verified where it has one.
 * @throws TypeError `COLUMN` naming the column and the line
 */
export function labelEntry(row: Row): LabelEntry {
  const { fields, damage } = checkedFields(row.value);
  if (damage !== undefined) throw row.error(`the line is damaged: ${damage}`);
  const line = fields === row.value ? row : new Row(fields, row.place);
  const unknown = Object.keys(fields).find((name) => !FIELDS.includes(name));
  if (unknown !== undefined) throw row.error(`there is a column ${text(unknown)}, wanted only ${FIELDS.join(", ")}`);
  line.column(
    "kind",
    `one of ${KINDS.join(", ")}`,
    (value): value is string => isString(value) && KINDS.includes(value),
  );
  for (const name of ["task", "annotator", "at"]) line.text(name);
  const { length } = line.column("shown", "the places of completions, each once", isOrder);
  line.column(
    "seconds",
    "a number from 0",
    (value): value is number => Number.isFinite(value) && (value as number) >= 0,
  );
  line.optional("ranks", `${length} ranks for each criterion`, (value): value is object =>
    isRecord(value, (ranks) => isRanks(ranks, length)),
  );
  line.optional("strength", "slightly or clearly for each criterion", (value): value is object =>
    isRecord(value, (how) => how === "slightly" || how === "clearly"),
  );
  line.optional("reason", "a string", isString);
  return fields as unknown as LabelEntry;
}

const isRecord = (value: unknown, accepts: (one: unknown) => boolean) =>
  typeof value === "object" && value !== null && !Array.isArray(value) && Object.values(value).every(accepts);
const isOrder = (value: unknown): value is number[] =>
  Array.isArray(value) && value.toSorted((a, b) => Number(a) - Number(b)).every((place, i) => place === i);

const LINE_FEED = 0x0a;
const decoder = new TextDecoder("utf-8", { fatal: true });

/**
 * The entry of a line without its line feed; undefined of a blank one.
 * @throws TypeError `JSON`, `COLUMN`
 */
function entryOf(bytes: Uint8Array, place: string): LabelEntry | undefined {
  let value: unknown;
  try {
    const line = decoder.decode(bytes);
    if (line.trim() === "") return undefined;
    value = JSON.parse(withoutCrc(line));
  } catch (error) {
    throw typeError("JSON", `${place}: not a line of JSON: ${(error as Error).message}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw typeError("JSON", `${place}: ${text(value)}, wanted a JSON object`);
  return labelEntry(new Row(value as Record<string, unknown>, place));
}

/** The lines that end with a line feed, without it. */
function* linesOf(content: Buffer): Generator<Buffer> {
  for (let start = 0, end = content.indexOf(LINE_FEED); end >= 0; end = content.indexOf(LINE_FEED, start)) {
    yield content.subarray(start, end);
    start = end + 1;
  }
}

/** What follows the last line feed: a line that was cut off. */
const restOf = (content: Buffer) => content.subarray(content.lastIndexOf(LINE_FEED) + 1);

/**
 * A line that is whole but for its line feed was acknowledged: what stands there is damage. A line
 * that was cut off is shorter.
 */
function lostLineFeed(rest: Buffer, place: string): boolean {
  try {
    return rest.length > 1 && entryOf(rest.subarray(0, -1), place) !== undefined;
  } catch {
    return false;
  }
}

const lockOf = (file: string) =>
  new Lock(join(dirname(file), `.${basename(file)}.lock`), "one server, which several annotators share");

/**
 * The labels of a folder's annotators, one line each, only ever appended: a line is on the disk
 * (fdatasync) before `append` returns. A process that is killed in the middle of a line leaves a
 * torn one, which nobody was told of; opening drops it.
 */
export class LabelLog {
  private last: Promise<unknown> = Promise.resolve();
  private isClean = true; // nothing lies behind the last entry

  private constructor(
    readonly entries: LabelEntry[],
    /** Whether a line that was cut off has been dropped. */
    readonly torn: boolean,
    private readonly handle: FileHandle,
    private length: number,
    private readonly lock: Lock,
    private readonly file: string,
  ) {}

  /**
   * @throws TypeError `LOCKED` if another process has it open; `FILE`, `JSON`, `COLUMN` for what is
   *   no log, or has a damaged line: the message names file and line, and what sets such lines
   *   aside
   */
  static async open(file: string): Promise<LabelLog> {
    const lock = lockOf(file);
    let handle: FileHandle | undefined;
    try {
      handle = await open(file, constants.O_RDWR | constants.O_CREAT).catch((error: Error) => {
        throw typeError("FILE", `${file} cannot be opened: ${error.message}`);
      });
      const content = await handle.readFile();
      const rest = restOf(content);
      const entries = entriesOf(file, content);
      if (lostLineFeed(rest, file)) throw damaged(`${file}: the line feed at the end of its last line is damaged`);
      const length = content.length - rest.length;
      if (rest.length > 0) await handle.truncate(length);
      await handle.sync();
      await syncFolder(dirname(file));
      return new LabelLog(entries, rest.length > 0, handle, length, lock, file);
    } catch (error) {
      await handle?.close();
      lock[Symbol.dispose]();
      const { syscall, message } = error as NodeJS.ErrnoException;
      throw syscall ? typeError("FILE", `${file} cannot be opened: ${message}`) : error;
    }
  }

  /**
   * Appends an entry. Before this returns, the entry is on the disk and has been read back.
   * @throws TypeError `ANSWER` for what `open` would not read again, `FILE` if the disk does not
   *   take it; then the log is as it was
   */
  append(entry: LabelEntry): Promise<void> {
    const line = Buffer.from(`${withCrc(JSON.stringify(entry))}\n`);
    const write = async () => {
      holds(line, entry);
      try {
        if (!this.isClean) await this.handle.truncate(this.length);
        this.isClean = false;
        for (let at = 0; at < line.length;)
          at += (await this.handle.write(line, at, line.length - at, this.length + at)).bytesWritten;
        await this.handle.datasync();
        const { buffer, bytesRead } = await this.handle.read(
          Buffer.alloc(line.length + 1),
          0,
          line.length + 1,
          this.length,
        );
        if (!buffer.subarray(0, bytesRead).equals(line)) throw new Error("what was read back is not what was written");
      } catch (error) {
        const truncated = this.handle.truncate(this.length).then(() => this.handle.datasync());
        this.isClean = await truncated.then(
          () => true,
          () => false, // tried again before the next line is written
        );
        throw typeError("FILE", `${this.file}: the label is not saved: ${(error as Error).message}`);
      }
      this.isClean = true;
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

/** @throws TypeError `ANSWER` unless the line, read as `open` reads it, is the entry */
function holds(line: Buffer, entry: LabelEntry): void {
  let fault = "";
  try {
    if (isDeepStrictEqual(entryOf(line.subarray(0, -1), "it"), entry)) return;
  } catch (error) {
    fault = `: ${(error as Error).message}`;
  }
  throw typeError("ANSWER", `the label would not be read again as it is${fault}`);
}

const damaged = (message: string) =>
  typeError("COLUMN", `${message}. \`rlhf data repair\` sets such lines aside and keeps the others`);

function entriesOf(file: string, content: Buffer): LabelEntry[] {
  const entries: LabelEntry[] = [];
  let number = 0;
  for (const line of linesOf(content))
    try {
      const entry = entryOf(line, `${file}:${++number}`);
      if (entry) entries.push(entry);
    } catch (error) {
      if (hasEntry(linesOf(content)))
        throw Object.assign(error as Error, { message: damaged((error as Error).message).message });
      throw error; // no log at all
    }
  return entries;
}

function hasEntry(lines: Iterable<Buffer>): boolean {
  for (const line of lines)
    try {
      if (entryOf(line, "")) return true;
    } catch {
      // the next one may be
    }
  return false;
}

export interface Repaired {
  /** Lines that stay. */
  kept: number;
  /** Why each of the others was set aside, by file and line. */
  aside: string[];
  /** Where they are; it is there only if there are any. */
  file: string;
}

/**
 * Sets the damaged lines of a log aside: they move to FILE.damaged, all others stay as they are,
 * byte for byte.
 * @throws TypeError `LOCKED` while a server has it open; `FILE` if it cannot be read or holds no
 *   label at all
 */
export async function repairLog(file: string): Promise<Repaired> {
  using _lock = lockOf(file);
  const content = await readFile(file).catch((error: Error) => {
    throw typeError("FILE", `${file} cannot be read: ${error.message}`);
  });
  const [lines, rest] = [[...linesOf(content)], restOf(content)];
  if (lostLineFeed(rest, file)) lines.push(rest.subarray(0, -1)); // the line itself is whole
  const [kept, set]: Buffer[][] = [[], []];
  const aside: string[] = [];
  for (const [i, line] of lines.entries())
    try {
      entryOf(line, `${file}:${i + 1}`);
      kept.push(line);
    } catch (error) {
      aside.push((error as Error).message);
      set.push(line);
    }
  if (!hasEntry(kept)) throw typeError("FILE", `${file} holds no label: wanted the log that rlhf label keeps`);
  const beside = `${file}.damaged`;
  const ended = (all: readonly Buffer[]) => all.map((line) => Buffer.concat([line, Buffer.of(LINE_FEED)]));
  if (set.length > 0) {
    const before = await readFile(beside).catch(() => Buffer.alloc(0));
    await writeFileDurably(beside, [before, ...ended(set)]);
  }
  await writeFileDurably(file, ended(kept));
  return { kept: kept.length, aside, file: beside };
}
