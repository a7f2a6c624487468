import { stat } from "node:fs/promises";
import { typeError } from "../device/errors.js";
import { readListed } from "../files/sums.js";
import { rowsOf } from "./jsonl.js";
import type { Row } from "./row.js";

/** Items that come one by one. */
export type Source<T> = Iterable<T> | AsyncIterable<T>;

/**
 * What a file holds, one by one, as often as it is asked for. A file that changes meanwhile is an
 * error.
 */
class FileSource<T> implements AsyncIterable<T> {
  private state?: string; // when it was read first

  constructor(
    private readonly file: string,
    private readonly read: () => AsyncIterable<T>,
  ) {}

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    if (this.state === ONCE)
      throw typeError("FILE", `${this.file} can be read only once, wanted a file that can be read again`);
    let items = 0;
    await this.check(items);
    for await (const item of this.read()) {
      items++;
      yield item;
    }
    await this.check(items);
  }

  private async check(items: number): Promise<void> {
    const state = await stateOf(this.file);
    if (state !== (this.state ??= state))
      throw typeError("CHANGED", `${this.file} has changed since its reading began, noticed after ${items} rows`);
  }
}

/**
 * The rows of a file, each as `parse` makes it.
 * @returns throws TypeError `CHANGED`, what `parse` throws, and as `rowsOf`: `JSON`, `PARQUET`,
 *   `FILE`
 */
export const rowFile = <T>(file: string, parse: (row: Row) => T): AsyncIterable<T> =>
  new FileSource(file, async function* () {
    for await (const row of rowsOf(file)) yield parse(row);
  });

/** The text of a file, in one piece. @returns throws TypeError `CHANGED`, `FILE`, `DAMAGED` */
export const textFile = (file: string): AsyncIterable<string> =>
  new FileSource(file, async function* () {
    yield await readListed(file).then(String, (error: NodeJS.ErrnoException) => {
      throw error.code === "DAMAGED" ? error : typeError("FILE", `${file}: ${error.message}`);
    });
  });

const ONCE = ""; // the state of what is no file: standard input, a pipe

/** What tells a file from another, and from itself before a change. */
async function stateOf(file: string): Promise<string> {
  const found = await stat(file, { bigint: true }).catch(() => undefined);
  return found?.isFile() ? [found.dev, found.ino, found.size, found.mtimeNs].join() : ONCE;
}
