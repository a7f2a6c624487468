import { open, stat } from "node:fs/promises";
import { pipeline } from "node:stream";
import { createGunzip } from "node:zlib";
import { shown, typeError, type CodedError } from "../device/errors.js";
import { writeFileDurably } from "../files/durable.js";
import { heldToSum } from "../files/sums.js";
import { Elements } from "./elements.js";
import { LONGEST_ROW, mostUnpacked, Row } from "./row.js";

/**
 * Reads the rows of a JSONL file one by one, gzipped or not. Lines end with a line feed, alone or
 * after a carriage return; blank ones are skipped.
 * @param content what the file holds, where it has been read
 * @throws TypeError `FILE` for a file that cannot be read, or unpacks to more than data does;
 *   `JSON`, naming file and line, for a line that is not UTF-8, no JSON object, or longer than 16
 *   MiB; `DAMAGED`, after the last row, for a file that is not what SHA256SUMS beside it lists
 */
export async function* readJsonl(file: string, content: Chunks = chunks(file)): AsyncGenerator<Row> {
  let line = 0;
  for await (const bytes of lines(file, content)) {
    const place = `${file}:${++line}`;
    let value: unknown;
    try {
      const text = utf8.decode(bytes);
      if (text.trim() === "") continue;
      value = JSON.parse(text);
    } catch (error) {
      throw typeError("JSON", `${place}: not a line of JSON: ${(error as Error).message}`);
    }
    yield rowFrom(value, place);
  }
}

/**
 * The rows of a file: Parquet by what it begins with, else JSONL, or the one array of objects that
 * a file named .json may hold; of standard input for "-". @throws also TypeError `PARQUET`
 */
export async function* rowsOf(file: string): AsyncGenerator<Row> {
  if ((await beginning(file)).toString("latin1") !== "PAR1")
    return yield* /\.json(\.gz)?$/i.test(file) ? readJson(file) : readJsonl(file);
  const { readParquet } = await import("./parquet.js");
  yield* readParquet(file);
}

/** An array of objects, or the lines that such a file may hold too. */
async function* readJson(file: string): AsyncGenerator<Row> {
  const source = chunks(file);
  try {
    const { value: first = Buffer.alloc(0) } = (await source.next()) as IteratorResult<Buffer, undefined>;
    const content = (async function* () {
      yield first;
      yield* source;
    })();
    const isArray = first.subarray(0, 256).toString("latin1").trimStart().startsWith("[");
    yield* isArray ? readArray(file, content) : readJsonl(file, content);
  } finally {
    await source.return(undefined);
  }
}

async function* readArray(file: string, content: Chunks): AsyncGenerator<Row> {
  const elements = new Elements(LONGEST_ROW);
  let row = 1;
  const place = () => `${file}, row ${row}`;
  const parsed = (bytes: Uint8Array): unknown => JSON.parse(utf8.decode(bytes));
  try {
    for await (const chunk of content)
      for (const bytes of elements.push(chunk)) {
        const value = parsed(bytes);
        yield rowFrom(value, place());
        row++;
      }
    elements.end();
  } catch (error) {
    if (["FILE", "JSON"].includes((error as CodedError).code)) throw error;
    throw typeError("JSON", `${place()}: not an array in JSON: ${(error as Error).message}`);
  }
}

function rowFrom(value: unknown, place: string): Row {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw typeError("JSON", `${place}: ${shown(value)}, wanted a JSON object`);
  return new Row(value as Record<string, unknown>, place);
}

/** Rows of a file, each as `parse` makes it. */
export async function readRows<T>(file: string, parse: (row: Row) => T): Promise<T[]> {
  const rows: T[] = [];
  for await (const row of rowsOf(file)) rows.push(parse(row));
  return rows;
}

const opened = (file: string) =>
  open(file, "r").catch((error: Error) => {
    throw typeError("FILE", `${file} cannot be read: ${error.message}`);
  });

/** Nothing of a pipe: what is read from one is gone. */
async function beginning(file: string): Promise<Buffer> {
  if (file === "-" || (await stat(file).catch(() => undefined))?.isFIFO()) return Buffer.alloc(0);
  const handle = await opened(file);
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(4), 0, 4, 0);
    return buffer.subarray(0, bytesRead);
  } catch (error) {
    throw typeError("FILE", `${file} cannot be read: ${(error as Error).message}`);
  } finally {
    await handle.close();
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true });
const LINE_FEED = 0x0a;
const GZIP = "\x1f\x8b";

type Chunks = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

async function* chunks(file: string): AsyncGenerator<Buffer> {
  if (file === "-") return yield* process.stdin as AsyncIterable<Buffer>;
  const zipped = (await beginning(file)).toString("latin1").startsWith(GZIP);
  const handle = await opened(file);
  try {
    const stream = heldToSum(file, handle.createReadStream({ autoClose: false }) as AsyncIterable<Buffer>);
    if (!zipped) return yield* stream;
    const most = mostUnpacked((await handle.stat()).size);
    let unpacked = 0;
    // the callback hears of errors that the iterator throws as well
    for await (const chunk of pipeline(stream, createGunzip(), () => undefined) as AsyncIterable<Buffer>) {
      if ((unpacked += chunk.length) > most)
        throw new Error(`it unpacks to more than ${most} bytes, which no data of its size does`);
      yield chunk;
    }
  } catch (error) {
    if ((error as CodedError).code === "DAMAGED") throw error;
    throw typeError("FILE", `${file} cannot be read: ${(error as Error).message}`);
  } finally {
    await handle.close();
  }
}

async function* lines(file: string, content: Chunks): AsyncGenerator<Uint8Array> {
  let rest: Uint8Array[] = [];
  let length = 0;
  let line = 1;
  for await (const chunk of content) {
    let start = 0;
    for (let end = chunk.indexOf(LINE_FEED); end >= 0; end = chunk.indexOf(LINE_FEED, start)) {
      yield Buffer.concat([...rest, chunk.subarray(start, end)]);
      rest = [];
      length = 0;
      start = end + 1;
      line++;
    }
    if (start < chunk.length) rest.push(chunk.subarray(start));
    if ((length += chunk.length - start) > LONGEST_ROW)
      throw typeError("JSON", `${file}:${line} has more than ${LONGEST_ROW} bytes, the limit of a row`);
  }
  if (rest.length > 0) yield Buffer.concat(rest);
}

const BLOCK = 2 ** 20;

/**
 * Writes rows as JSONL, beside, then renamed.
 * @throws TypeError `JSON` for a number that JSON cannot hold: NaN or infinite
 */
export async function writeJsonl(file: string, rows: Iterable<object> | AsyncIterable<object>): Promise<void> {
  await writeFileDurably(file, Symbol.asyncIterator in rows ? asTheyCome(file, rows) : jsonl(file, rows));
}

/** The bytes of rows that come one by one: no more than some of them are in memory. */
async function* asTheyCome(file: string, rows: AsyncIterable<object>): AsyncGenerator<Uint8Array> {
  let some: object[] = [];
  for await (const row of rows) {
    if (some.push(row) < AT_ONCE) continue;
    yield* jsonl(file, some);
    some = [];
  }
  yield* jsonl(file, some);
}

const AT_ONCE = 256; // rows

/** The bytes of rows as JSONL; `file` is for messages. @throws as `writeJsonl` */
export function* jsonl(file: string, rows: Iterable<object>): Generator<Uint8Array> {
  let text = "";
  let line = 0;
  for (const row of rows) {
    line++;
    text += `${JSON.stringify(row, (name, value: unknown) => {
      if (typeof value === "number" && !Number.isFinite(value))
        throw typeError("JSON", `${file}:${line}: ${name} is ${value}, which JSON cannot hold`);
      return value;
    })}\n`;
    if (text.length < BLOCK) continue;
    yield Buffer.from(text);
    text = "";
  }
  yield Buffer.from(text);
}
