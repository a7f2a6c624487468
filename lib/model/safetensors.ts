import { createHash } from "node:crypto";
import { constants, open, stat, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { shown, typeError } from "../device/errors.js";
import { fromHalf } from "../tensor/half.js";
import { writeFileDurably, type Content } from "../files/durable.js";
import { listedSum, readListed, SUMS } from "../files/sums.js";

/**
 * A tensor of a file: F32, F16 and BF16 as f32, small integers as int32, F64 and large integers as
 * f64, all exact.
 */
export interface StoredTensor {
  shape: readonly number[];
  data: Float32Array | Float64Array | Int32Array;
}

/** A tensor that may be bf16, by its bits: what is written, and what is read where that is kept. */
export interface Writable {
  shape: readonly number[];
  data: StoredTensor["data"] | Uint16Array;
}

interface Entry {
  name: string;
  dtype: string;
  shape: number[];
  begin: number;
  end: number;
}

type Widen = (bytes: ArrayBuffer, name: string) => StoredTensor["data"];

/** Bytes of an element, and how an array of them is read. */
const dtypes: Record<string, { bytes: number; widen: Widen }> = {
  F64: { bytes: 8, widen: (bytes) => new Float64Array(bytes) },
  F32: { bytes: 4, widen: (bytes) => new Float32Array(bytes) },
  F16: { bytes: 2, widen: (bytes) => fromHalf(new Uint16Array(bytes)) },
  BF16: { bytes: 2, widen: (bytes) => fromBrain(new Uint16Array(bytes)) },
  I64: { bytes: 8, widen: (bytes, name) => fromBig(new BigInt64Array(bytes), name) },
  U64: { bytes: 8, widen: (bytes, name) => fromBig(new BigUint64Array(bytes), name) },
  I32: { bytes: 4, widen: (bytes) => new Int32Array(bytes) },
  U32: { bytes: 4, widen: (bytes) => Float64Array.from(new Uint32Array(bytes)) },
  I16: { bytes: 2, widen: (bytes) => Int32Array.from(new Int16Array(bytes)) },
  U16: { bytes: 2, widen: (bytes) => Int32Array.from(new Uint16Array(bytes)) },
  I8: { bytes: 1, widen: (bytes) => Int32Array.from(new Int8Array(bytes)) },
  U8: { bytes: 1, widen: (bytes) => Int32Array.from(new Uint8Array(bytes)) },
  BOOL: { bytes: 1, widen: (bytes) => Int32Array.from(new Uint8Array(bytes)) },
};

/**
 * Bytes of a header, or an index: 200,000 tensors. JSON of empty objects takes twenty times as much
 * memory.
 */
const HEADER_LIMIT = 2 ** 25;
const READ_LIMIT = 2 ** 30; // one read call takes less than 2^31 bytes

/** In `__metadata__`: the SHA-256 of the whole file, with the 64 digits of this digest as zeros. */
const DIGEST = "rlhf.sha256";
const NO_DIGEST = "0".repeat(64);

/**
 * Where the start of a file holds the digest of the file. Undefined where it holds none, as in
 * files of others.
 */
export function digestIn(start: Uint8Array): { digest: string; at: number } | undefined {
  const text = Buffer.from(start.buffer, start.byteOffset, start.byteLength).toString("latin1");
  const found = /"rlhf\.sha256":"([0-9a-f]{64})"/.exec(text);
  return found ? { digest: found[1], at: found.index + DIGEST.length + 4 } : undefined;
}

/**
 * Reads the tensors of a folder's `model.safetensors`, also in shards by
 * `model.safetensors.index.json`. A file that its folder's SHA256SUMS lists, or that holds a digest
 * of itself, is held to it.
 *
 * @param brain `keep` leaves BF16 as it is, by its bits
 * @throws TypeError `SAFETENSORS` for a file that is missing, truncated, malformed or not what its
 *   digest says, naming the file and the tensor
 */
export async function readSafetensors(folder: string, brain: "keep"): Promise<Map<string, Writable>>;
export async function readSafetensors(folder: string): Promise<Map<string, StoredTensor>>;
export async function readSafetensors(folder: string, brain?: "keep"): Promise<Map<string, Writable>> {
  const tensors = new Map<string, Writable>();
  for (const [file, names] of await filesOf(folder)) {
    const { tensors: found } = await readFileOf(file, brain);
    for (const name of names ?? found.keys()) {
      const tensor = found.get(name);
      if (!tensor) throw malformed(file, `the tensor ${name}, which the index places here, is missing`);
      tensors.set(name, tensor);
    }
  }
  return tensors;
}

/** The files of a model, and which tensors the index expects in each. */
async function filesOf(folder: string): Promise<Map<string, string[] | undefined>> {
  const single = join(folder, "model.safetensors");
  const index = join(folder, "model.safetensors.index.json");
  const exists = (file: string) =>
    stat(file).then(
      (found) => found.isFile(),
      () => false,
    );
  if (await exists(single)) return new Map([[single, undefined]]);
  if (!(await exists(index)))
    throw malformed(folder, "there is neither model.safetensors nor model.safetensors.index.json");
  const content = await readListed(index, HEADER_LIMIT).catch((error: NodeJS.ErrnoException) => {
    throw error.code === "DAMAGED" ? error : malformed(index, `it cannot be read: ${error.message}`);
  });
  const places = parse(index, content.toString()).weight_map;
  if (!isObject(places)) throw malformed(index, "weight_map is missing");
  const files = new Map<string, string[]>();
  for (const [name, shard] of Object.entries(places)) {
    if (typeof shard !== "string" || shard !== basename(shard) || shard === "..")
      throw malformed(index, `weight_map of ${name} is ${shown(shard)}, wanted the name of a file beside it`);
    const file = join(folder, shard);
    const names = files.get(file);
    if (names) names.push(name);
    else files.set(file, [name]);
  }
  return files;
}

/** What a `.safetensors` file holds. */
export interface SafetensorsFile<T = StoredTensor> {
  tensors: Map<string, T>;
  /** Without the file's digest. */
  metadata: Record<string, string>;
  /** A digest of the file stood in it, or in its folder's SHA256SUMS, and it was right. */
  verified: boolean;
}

/**
 * Reads one `.safetensors` file.
 * @throws TypeError `SAFETENSORS`
 */
export const readSafetensorsFile = (file: string) => readFileOf(file) as Promise<SafetensorsFile>;

/**
 * Checks one `.safetensors` file as `readSafetensorsFile` does, and keeps no tensor: without a
 * digest its header.
 * @throws TypeError `SAFETENSORS`
 */
export const checkSafetensorsFile = (file: string): Promise<Omit<SafetensorsFile, "tensors">> =>
  readFileOf(file, "drop");

async function readFileOf(file: string, how?: "keep" | "drop"): Promise<SafetensorsFile<Writable>> {
  const handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK).catch((error: Error) => {
    throw malformed(file, `it cannot be opened: ${error.message}`);
  });
  try {
    const found = await handle.stat();
    if (!found.isFile()) throw malformed(file, "it is no regular file");
    const start = await startOf(handle, file, found.size);
    const text = new TextDecoder().decode(start.subarray(8));
    const header = parse(file, text);
    const { [DIGEST]: own, ...metadata } = metadataOf(file, header);
    const described = entries(file, header, found.size - start.length);
    const twice = repeatedName(text);
    if (twice !== undefined) throw malformed(file, `${twice} is there twice`);
    const digest = await digestOf(file, own, start);
    const tensors = new Map<string, Writable>();
    if (how === "drop" && !digest) return { tensors, metadata, verified: false };
    for (const { name, dtype, shape, begin, end } of described) {
      const bytes = await bytesAt(handle, file, start.length + begin, end - begin);
      digest?.hash.update(new Uint8Array(bytes));
      if (how !== "drop")
        tensors.set(name, {
          shape,
          data:
            dtype === "BF16" && how === "keep"
              ? new Uint16Array(bytes)
              : dtypes[dtype].widen(bytes, `${file}: ${name}`),
        });
    }
    const given = digest?.hash.digest("hex");
    if (given !== digest?.wanted)
      throw malformed(
        file,
        `it is damaged: its SHA-256 is ${given}, wanted ${digest!.wanted}, which stands in ${digest!.place}${digest!.hint}`,
      );
    return { tensors, metadata, verified: digest !== undefined };
  } finally {
    await handle.close();
  }
}

/** The bytes of a file up to the end of its header. @throws TypeError `SAFETENSORS` */
export async function startOf(handle: FileHandle, file: string, size: number): Promise<Uint8Array> {
  if (size < 8) throw malformed(file, `it has ${size} bytes, wanted at least the 8 of the header's length`);
  const length = Number(new DataView(await bytesAt(handle, file, 0, 8)).getBigUint64(0, true));
  if (length > size - 8) throw malformed(file, `its header of ${length} bytes exceeds the file of ${size} bytes`);
  if (length > HEADER_LIMIT) throw malformed(file, `its header has ${length} bytes, wanted at most ${HEADER_LIMIT}`);
  return new Uint8Array(await bytesAt(handle, file, 0, 8 + length));
}

/**
 * The digest that a file is held to, its hash begun with the header: what the folder lists, else
 * what the file holds.
 */
async function digestOf(file: string, own: string | undefined, start: Uint8Array) {
  const hash = createHash("sha256");
  const listed = await listedSum(file);
  if (listed !== undefined) {
    const hint = `. "rlhf check --accept ${dirname(file)}" takes what is there`;
    return { wanted: listed, place: SUMS, hint, hash: hash.update(start) };
  }
  if (own === undefined) return undefined;
  const place = digestIn(start);
  if (place?.digest !== own) throw malformed(file, `its digest ${shown(own)} is none, wanted 64 hexadecimal digits`);
  const blank = Uint8Array.from(start);
  blank.set(Buffer.from(NO_DIGEST), place.at);
  return { wanted: own, place: "its header", hint: "", hash: hash.update(blank) };
}

async function bytesAt(handle: FileHandle, file: string, position: number, length: number): Promise<ArrayBuffer> {
  const buffer = new ArrayBuffer(length);
  for (let at = 0; at < length;) {
    const { bytesRead } = await handle.read(new Uint8Array(buffer, at, Math.min(READ_LIMIT, length - at)), {
      position: position + at,
    });
    if (bytesRead === 0) throw malformed(file, `it ends at byte ${position + at}, wanted ${position + length}`);
    at += bytesRead;
  }
  return buffer;
}

/** A name that the header's object has twice: JSON.parse would keep the last without a word. */
function repeatedName(header: string): string | undefined {
  const names = new Set<string>();
  let depth = 0;
  for (let at = 0; at < header.length; at++) {
    const sign = header[at];
    if (sign === "{" || sign === "[") depth++;
    else if (sign === "}" || sign === "]") depth--;
    else if (sign === '"') {
      const begin = at;
      while (header[++at] !== '"') if (header[at] === "\\") at++;
      if (depth !== 1) continue;
      // at this depth every string is a name: values are objects
      const name = JSON.parse(header.slice(begin, at + 1)) as string;
      if (names.has(name)) return name;
      names.add(name);
    }
  }
  return undefined;
}

function metadataOf(file: string, { __metadata__: metadata = {} }: Record<string, unknown>): Record<string, string> {
  if (!isObject(metadata) || Object.values(metadata).some((value) => typeof value !== "string"))
    throw malformed(file, "__metadata__ is no object of strings");
  return metadata as Record<string, string>;
}

/** The checked header, in the order of the data: tensors fill it without gap or overlap. */
function entries(file: string, header: Record<string, unknown>, size: number): Entry[] {
  const found: Entry[] = [];
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (!isObject(value)) throw malformed(file, `${name} is described by ${shown(value)}, wanted an object`);
    const { dtype, shape, data_offsets: offsets } = value;
    if (typeof dtype !== "string" || !Object.hasOwn(dtypes, dtype))
      throw malformed(file, `${name} has dtype ${shown(dtype)}, wanted one of ${Object.keys(dtypes).join(", ")}`);
    if (!isCounts(shape)) throw malformed(file, `${name} has shape ${shown(shape)}, wanted whole numbers from 0`);
    if (!isCounts(offsets) || offsets.length !== 2 || offsets[1] < offsets[0] || offsets[1] > size)
      throw malformed(
        file,
        `${name} has data_offsets ${shown(offsets)}, wanted two in order within the ${size} bytes of data`,
      );
    const [begin, end] = offsets;
    const wanted = shape.reduce((a, b) => a * b, dtypes[dtype].bytes);
    if (end - begin !== wanted)
      throw malformed(file, `${name} has ${end - begin} bytes, wanted ${wanted} for ${dtype} [${shape.join()}]`);
    found.push({ name, dtype, shape, begin, end });
  }
  found.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = 0;
  for (const { name, begin, end } of found) {
    if (begin !== at)
      throw malformed(
        file,
        `${name} begins at byte ${begin} of the data, wanted ${at}: tensors overlap or leave a gap`,
      );
    at = end;
  }
  if (at !== size) throw malformed(file, `the tensors take ${at} bytes of the ${size} bytes of data`);
  return found;
}

/**
 * Writes a `.safetensors` file: f32 arrays as F32, f64 as F64, int32 as I32, uint16 as BF16; with a
 * digest of itself in its metadata. It is written beside, synced, then renamed.
 * @throws TypeError `SAFETENSORS` for a tensor whose length is not that of its shape
 */
export async function writeSafetensors(
  file: string,
  tensors: ReadonlyMap<string, Writable>,
  metadata?: Record<string, string>,
): Promise<void> {
  await writeFileDurably(file, safetensors(tensors, metadata));
}

/**
 * The content of a `.safetensors` file, as `writeSafetensors` writes it.
 * @throws TypeError `SAFETENSORS`
 */
export function safetensors(tensors: ReadonlyMap<string, Writable>, metadata: Record<string, string> = {}): Content {
  const header: Record<string, unknown> = { __metadata__: { ...metadata, [DIGEST]: NO_DIGEST } };
  let at = 0;
  // Large elements first, so that every tensor lies at a multiple of its element's size.
  const ordered = [...tensors].sort(([, a], [, b]) => b.data.BYTES_PER_ELEMENT - a.data.BYTES_PER_ELEMENT);
  for (const [name, { shape, data }] of ordered) {
    const wanted = shape.reduce((a, b) => a * b, 1);
    if (name === "__metadata__" || data.length !== wanted)
      throw typeError(
        "SAFETENSORS",
        `${name} has ${data.length} elements, wanted ${wanted} for shape [${shape.join()}]`,
      );
    const dtype =
      data instanceof Float32Array
        ? "F32"
        : data instanceof Float64Array
          ? "F64"
          : data instanceof Uint16Array
            ? "BF16"
            : "I32";
    header[name] = { dtype, shape, data_offsets: [at, (at += data.byteLength)] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const start = new Uint8Array(8 + Math.ceil(text.length / 8) * 8).fill(0x20); // spaces pad the header
  new DataView(start.buffer).setBigUint64(0, BigInt(start.length - 8), true);
  start.set(text, 8);
  const parts = ordered.map(([, { data }]) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return {
    async write(handle) {
      let at = start.length;
      for (const part of parts) {
        await writeAt(handle, part, at);
        at += part.length;
      }
      const syncing = at > LARGE ? handle.datasync() : undefined; // the disk writes while this thread hashes
      const digest = this.sha256();
      await syncing;
      start.set(Buffer.from(digest), digestIn(start)!.at);
      await writeAt(handle, start, 0);
    },
    sha256() {
      const hash = createHash("sha256").update(start);
      for (const part of parts) hash.update(part);
      return hash.digest("hex");
    },
  };
}

const LARGE = 2 ** 24; // bytes, from which hashing takes longer than one more sync

async function writeAt(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let at = 0; at < bytes.length;)
    at += (await handle.write(bytes, at, Math.min(READ_LIMIT, bytes.length - at), position + at)).bytesWritten;
}

function fromBrain(bits: Uint16Array): Float32Array {
  const words = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) words[i] = bits[i] << 16;
  return new Float32Array(words.buffer);
}

function fromBig(values: BigInt64Array | BigUint64Array, name: string): Float64Array {
  return Float64Array.from(values as Iterable<bigint>, (value) => {
    if (!Number.isSafeInteger(Number(value)))
      throw typeError("SAFETENSORS", `${name} has ${value}, wanted at most 2^53 - 1 in size`);
    return Number(value);
  });
}

function parse(file: string, text: string): Record<string, unknown> {
  try {
    const json: unknown = JSON.parse(text);
    if (isObject(json)) return json;
  } catch (error) {
    throw malformed(file, `its header is not JSON: ${(error as Error).message}`);
  }
  throw malformed(file, "its header is no JSON object");
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const isCounts = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0);

const malformed = (file: string, what: string) => typeError("SAFETENSORS", `${file}: ${what}`);
