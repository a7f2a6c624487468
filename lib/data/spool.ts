import { closeSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { typeError } from "../device/errors.js";
import { besideName } from "../files/durable.js";

/**
 * Items by their place, 0 to `length` - 1: an array, or what reads an item when it is asked for.
 */
export interface Indexed<T> {
  /** Items there are. */
  readonly length: number;
  /** The item at a place. */
  at(place: number): T | undefined;
}

/** The items from one place to before another. */
export const part = <T>(items: Indexed<T>, from: number, to: number): Indexed<T> => ({
  length: to - from,
  at: (place) => items.at(from + place),
});

/** Copies of the items from one place to before another, or the last. */
export const sliceOf = <T>(items: Indexed<T>, from: number, to: number): T[] =>
  Array.from({ length: Math.min(to, items.length) - from }, (_, i) => items.at(from + i)!);

/** Numbers that grow at their end, in a typed array that doubles. */
export class Grown<A extends Uint32Array | Float64Array> {
  length = 0;

  constructor(public values: A) {}

  push(value: number): void {
    if (this.length === this.values.length) {
      const larger = new (this.values.constructor as new (length: number) => A)(2 * this.length + 64);
      larger.set(this.values);
      this.values = larger;
    }
    this.values[this.length++] = value;
  }
}

const PAGE = 1024; // values that share a checksum
const PAGE_BYTES = 4 * PAGE;
const ROOM = 4096 * PAGE; // values that are kept in memory: 16 MiB

/**
 * A long row of int32 that grows at its end: tokens, or records of them. All but the last 16 MiB
 * lie in a temporary file, so memory does not grow with the data. The file has no name: the system
 * frees it when the process ends.
 */
export class Spool {
  /** Values there are. */
  length = 0;
  private readonly tail: Int32Array;
  private readonly sums = new Grown(new Uint32Array(0)); // CRC-32 of each page on disk
  private onDisk = 0; // values, whole pages
  private file?: number;

  /**
   * @param folder where the temporary file lies: not in a file system that is memory itself, as
   *   /tmp may be
   * @param room   values that are kept in memory, a multiple of 1024
   */
  constructor(
    private readonly folder = tmpdir(),
    room = ROOM,
  ) {
    this.tail = new Int32Array(room);
  }

  /** @throws TypeError `WRITE` if the temporary file cannot be written */
  push(values: Int32Array): void {
    for (let from = 0; from < values.length;) {
      const at = this.length - this.onDisk;
      const some = values.subarray(from, from + this.tail.length - at);
      this.tail.set(some, at);
      this.length += some.length;
      from += some.length;
      if (at + some.length === this.tail.length) this.flush();
    }
  }

  private flush(): void {
    const bytes = new Uint8Array(this.tail.buffer);
    try {
      this.file ??= nameless(this.folder);
      for (let at = 0; at < bytes.length;)
        at += writeSync(this.file, bytes, at, bytes.length - at, 4 * this.onDisk + at);
    } catch (error) {
      throw typeError(
        "WRITE",
        `${this.folder}: a temporary file for the data cannot be written: ${(error as Error).message}`,
      );
    }
    for (let at = 0; at < bytes.length; at += PAGE_BYTES) this.sums.push(crc32(bytes.subarray(at, at + PAGE_BYTES)));
    this.onDisk += this.tail.length;
  }

  /**
   * A copy of the values from `begin` to before `end`.
   * @throws TypeError `FILE` if the disk gives others than were written
   */
  slice(begin: number, end: number): Int32Array {
    const values = new Int32Array(end - begin);
    const cut = Math.min(Math.max(this.onDisk, begin), end);
    if (begin < cut) values.set(this.read(begin, cut));
    values.set(this.tail.subarray(cut - this.onDisk, end - this.onDisk), cut - begin);
    return values;
  }

  /** Reads whole pages, which have a checksum. */
  private read(begin: number, end: number): Int32Array {
    const first = Math.floor(begin / PAGE);
    const bytes = new Uint8Array(PAGE_BYTES * (Math.ceil(end / PAGE) - first));
    try {
      for (let at = 0, some = 1; some > 0 && at < bytes.length; at += some)
        some = readSync(this.file!, bytes, at, bytes.length - at, PAGE_BYTES * first + at);
    } catch (error) {
      throw typeError(
        "FILE",
        `${this.folder}: the temporary file of the data cannot be read: ${(error as Error).message}`,
      );
    }
    for (let at = 0; at < bytes.length; at += PAGE_BYTES)
      if (crc32(bytes.subarray(at, at + PAGE_BYTES)) !== this.sums.values[first + at / PAGE_BYTES])
        throw typeError(
          "FILE",
          `${this.folder}: the temporary file of the data is damaged: it holds other bytes than were written`,
        );
    return new Int32Array(bytes.buffer).subarray(begin - PAGE * first, end - PAGE * first);
  }

  /** Frees the temporary file. */
  [Symbol.dispose](): void {
    if (this.file !== undefined) closeSync(this.file);
    this.file = undefined;
  }
}

/** What `fill` has filled. It is freed where that fails. */
export async function filled<A extends Disposable>(all: A, fill: (all: A) => Promise<void>): Promise<A> {
  try {
    await fill(all);
    return all;
  } catch (error) {
    all[Symbol.dispose]();
    throw error;
  }
}

/**
 * Opens a new file and takes its name away. A process that is killed between the two leaves what
 * the next run in the folder sweeps.
 */
function nameless(folder: string): number {
  const path = besideName(join(folder, "rows"));
  const file = openSync(path, "wx+", 0o600);
  rmSync(path, { force: true }); // another process may have swept it already
  return file;
}

/**
 * Records of int32, each read by its number. They take 8 bytes of memory each; what they hold lies
 * in a `Spool`.
 */
export class Records implements Indexed<Int32Array> {
  private readonly starts = new Grown(new Float64Array(0));
  private readonly spool: Spool;

  /** @param folder as of `Spool` */
  constructor(folder?: string) {
    this.spool = new Spool(folder);
  }

  get length(): number {
    return this.starts.length;
  }

  /** Adds a record: the parts end to end. @throws TypeError `WRITE` */
  add(parts: readonly Int32Array[]): void {
    this.starts.push(this.spool.length);
    for (const values of parts) this.spool.push(values);
  }

  /** A copy of a record. @throws TypeError `FILE` */
  at(place: number): Int32Array {
    return this.spool.slice(
      this.starts.values[place],
      place + 1 < this.length ? this.starts.values[place + 1] : this.spool.length,
    );
  }

  [Symbol.dispose](): void {
    this.spool[Symbol.dispose]();
  }
}
