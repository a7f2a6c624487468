import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import { writeFileDurably } from "../../lib/files/durable.js";
import {
  readSafetensors,
  readSafetensorsFile,
  writeSafetensors,
  type StoredTensor,
} from "../../lib/model/safetensors.js";
import { seed } from "../random.js";

let folder: string;
let file: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-safetensors-"));
  file = join(folder, "model.safetensors");
});
afterAll(() => rm(folder, { recursive: true }));

/** A file with this header (an object, or bytes as they are) and this data. */
async function put(header: unknown, data: Uint8Array = new Uint8Array(0), to = file): Promise<void> {
  const text = typeof header === "string" ? Buffer.from(header) : Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  await writeFile(to, Buffer.concat([length, text, data]));
}

const stored = async (dtype: string, words: ArrayBufferView, count: number) => {
  await put(
    { x: { dtype, shape: [count], data_offsets: [0, words.byteLength] } },
    new Uint8Array(words.buffer, words.byteOffset, words.byteLength),
  );
  return (await readSafetensorsFile(file)).tensors.get("x")!.data;
};

describe("dtypes", () => {
  test("every half-precision number is widened exactly", async () => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const got = await stored("F16", bits, bits.length);
    for (let i = 0; i < 65536; i++) {
      const [exponent, fraction, sign] = [(i >> 10) & 31, i & 1023, i >> 15 ? -1 : 1];
      const wanted =
        exponent === 31
          ? fraction
            ? NaN
            : sign * Infinity
          : sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
      if (!Object.is(got[i], wanted)) throw new Error(`half ${i} is ${got[i]}, wanted ${wanted}`);
    }
  });

  test("bf16 is the upper half of an f32", async () => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const got = (await stored("BF16", bits, bits.length)) as Float32Array;
    const words = new Uint32Array(got.buffer, got.byteOffset, got.length);
    expect(words.every((word, i) => word === i * 65536)).toBe(true);
  });

  test("integers keep their values, and one beyond 2^53 is refused", async () => {
    expect(await stored("I64", BigInt64Array.of(-5n, 2n ** 53n - 1n), 2)).toEqual(Float64Array.of(-5, 2 ** 53 - 1));
    expect(await stored("I32", Int32Array.of(-7, 2 ** 31 - 1), 2)).toEqual(Int32Array.of(-7, 2 ** 31 - 1));
    expect(await stored("U32", Uint32Array.of(2 ** 32 - 1), 1)).toEqual(Float64Array.of(2 ** 32 - 1));
    expect(await stored("I8", Int8Array.of(-128), 1)).toEqual(Int32Array.of(-128));
    expect(await stored("BOOL", Uint8Array.of(1, 0), 2)).toEqual(Int32Array.of(1, 0));
    await expect(stored("I64", BigInt64Array.of(2n ** 53n), 1)).rejects.toMatchObject({
      code: "SAFETENSORS",
      message: expect.stringContaining("x has 9007199254740992"),
    });
  });
});

describe("files", () => {
  test("hold what was written, to the bit, aligned, with its metadata", async () => {
    const bits = Uint32Array.of(0, 0x80000000, 0x7fc00001, 0x7f800000, 1, 0x3f800000);
    const tensors = new Map<string, StoredTensor>([
      ["odd", { shape: [3], data: Int32Array.of(1, -2, 3) }],
      ["bits", { shape: [2, 3], data: new Float32Array(bits.buffer) }],
      ["double", { shape: [1], data: Float64Array.of(Math.PI) }],
      ["empty", { shape: [0, 4], data: new Float32Array(0) }],
      ["scalar", { shape: [], data: Float32Array.of(7) }],
    ]);
    await writeSafetensors(file, tensors, { format: "pt" });
    const { tensors: got, metadata } = await readSafetensorsFile(file);
    expect(metadata).toEqual({ format: "pt" });
    expect(got).toEqual(tensors);
    const read = got.get("bits")!.data;
    expect(new Uint32Array(read.buffer, read.byteOffset, 6)).toEqual(bits);
    const bytes = await readFile(file);
    const start = Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.toString("utf8", 8, 8 + start)) as Record<
      string,
      { dtype: string; data_offsets: number[] }
    >;
    expect(start % 8).toBe(0);
    for (const { dtype, data_offsets: [begin] = [0] } of Object.values(header))
      if (dtype) expect(begin % (Number(dtype.slice(1)) / 8)).toBe(0);
    expect(await readdir(folder)).toEqual(["model.safetensors"]);
  });

  test("come in shards, each tensor where the index places it", async () => {
    const shards = await mkdtemp(join(folder, "shards-"));
    await writeSafetensors(join(shards, "a.safetensors"), new Map([["x", { shape: [1], data: Float32Array.of(1) }]]));
    await writeSafetensors(
      join(shards, "b.safetensors"),
      new Map([["y", { shape: [2], data: Float32Array.of(2, 3) }]]),
    );
    const index = join(shards, "model.safetensors.index.json");
    await writeFile(index, JSON.stringify({ weight_map: { x: "a.safetensors", y: "b.safetensors" } }));
    const got = await readSafetensors(shards);
    expect([...got.keys()].sort()).toEqual(["x", "y"]);
    expect(got.get("y")!.data).toEqual(Float32Array.of(2, 3));
    await writeFile(index, JSON.stringify({ weight_map: { x: "b.safetensors" } }));
    await expect(readSafetensors(shards)).rejects.toMatchObject({
      code: "SAFETENSORS",
      message: expect.stringContaining("b.safetensors: the tensor x"),
    });
    await writeFile(index, JSON.stringify({ weight_map: { x: "../model.safetensors" } }));
    await expect(readSafetensors(shards)).rejects.toMatchObject({ code: "SAFETENSORS" });
    await rm(shards, { recursive: true });
  });

  test("are not touched by a write that fails", async () => {
    await writeSafetensors(file, new Map([["x", { shape: [1], data: Float32Array.of(1) }]]));
    const before = await readFile(file);
    function* failing(): Generator<Uint8Array> {
      yield new Uint8Array(10);
      throw new Error("out of space");
    }
    await expect(writeFileDurably(file, failing())).rejects.toThrow("out of space");
    await expect(
      writeSafetensors(file, new Map([["x", { shape: [2], data: Float32Array.of(1) }]])),
    ).rejects.toMatchObject({ code: "SAFETENSORS" });
    expect(await readFile(file)).toEqual(before);
    expect(await readdir(folder)).toEqual(["model.safetensors"]);
  });
});

describe("a malformed file is refused with its name and the tensor's", () => {
  const x = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
  test.each<[string, unknown, number, string]>([
    ["a header that is not JSON", "{", 0, "not JSON"],
    ["a header that is a list", [], 0, "no JSON object"],
    ["an unknown dtype", { x: { ...x, dtype: "F8_E4M3" } }, 8, 'x has dtype "F8_E4M3"'],
    ["a dtype by an inherited name", { x: { ...x, dtype: "constructor" } }, 8, 'x has dtype "constructor"'],
    ["a negative dimension", { x: { ...x, shape: [-2] } }, 8, "x has shape [-2]"],
    ["offsets beyond the data", { x }, 7, "x has data_offsets [0,8]"],
    ["offsets backwards", { x: { ...x, data_offsets: [8, 0] } }, 8, "x has data_offsets [8,0]"],
    ["a size that is not the shape's", { x: { ...x, shape: [3] } }, 8, "x has 8 bytes, wanted 12"],
    ["overlapping tensors", { x, y: { ...x, data_offsets: [4, 12] } }, 12, "y begins at byte 4"],
    ["a gap", { x: { ...x, data_offsets: [4, 12] } }, 12, "x begins at byte 4"],
    ["bytes that no tensor has", { x }, 9, "8 bytes of the 9"],
    ["metadata that are no strings", { x, __metadata__: { a: 1 } }, 8, "__metadata__"],
  ])("%s", async (_, header, bytes, message) => {
    await put(header, new Uint8Array(bytes));
    await expect(readSafetensors(folder)).rejects.toMatchObject({
      name: "TypeError",
      code: "SAFETENSORS",
      message: expect.stringContaining(message),
    });
    await expect(readSafetensors(folder)).rejects.toThrow("model.safetensors");
  });

  test("one cut short anywhere, or with a byte changed, is read or refused, never more", async () => {
    await writeSafetensors(file, new Map([["x", { shape: [3], data: Float32Array.of(1, 2, 3) }]]));
    const whole = await readFile(file);
    for (let length = 0; length < whole.length; length++) {
      await writeFile(file, whole.subarray(0, length));
      await expect(readSafetensors(folder)).rejects.toMatchObject({ code: "SAFETENSORS" });
    }
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: whole.length - 13 }), fc.nat({ max: 255 }), async (at, byte) => {
        const changed = Buffer.from(whole);
        changed[at] = byte;
        await writeFile(file, changed);
        const outcome = await readSafetensors(folder).catch((error: { code: string }) => error.code);
        expect(typeof outcome === "string" ? outcome : "read").toMatch(/^(SAFETENSORS|read)$/);
      }),
      { seed, numRuns: 300 },
    );
  });

  test("a file that is not there", async () => {
    await expect(readSafetensors(join(folder, "absent"))).rejects.toMatchObject({ code: "SAFETENSORS" });
    await expect(readSafetensorsFile(join(folder, "absent"))).rejects.toMatchObject({ code: "SAFETENSORS" });
  });
});
