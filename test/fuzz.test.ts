import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import { parquetWriteBuffer } from "hyparquet-writer";
import { readConfig } from "../lib/cli/config/config.js";
import { root } from "../lib/device/native.js";
import {
  device,
  loadModel,
  readComparisons,
  readCompletions,
  readPrompts,
  saveModel,
  Tokenizer,
  Transformer,
  type Device,
} from "../lib/index.js";
import { readRows } from "../lib/data/jsonl.js";
import { families } from "../lib/model/config.js";
import { trainBpe } from "../lib/tokenizer/bpe.js";
import type { TokenizerJson } from "../lib/tokenizer/tokenizer.js";
import { readSafetensors } from "../lib/model/safetensors.js";
import { llama } from "./models.js";
import { seed } from "./random.js";

// What others may put into our files. Each input is read, or refused by an error with a code that
// names the file; nothing else happens, and it takes no memory that the file has not.
// RLHF_FUZZ_RUNS: inputs of each test.

const numRuns = Number(process.env.RLHF_FUZZ_RUNS ?? 500);
const options = { seed, numRuns };

let on: Device;
let folder: string;
const at = (name: string) => join(folder, name);
beforeAll(async () => {
  on = await device("cpu", { threads: 1 });
  folder = await mkdtemp(join(tmpdir(), "rlhf-fuzz-"));
});
afterAll(async () => {
  await on.close();
  await rm(folder, { recursive: true });
});

const ROOM = 1 << 24;

/** Whether the input was taken; if not, the error must have one of these codes and name the file. */
async function taken(read: () => unknown, name: string, ...codes: string[]): Promise<boolean> {
  const before = process.memoryUsage();
  let accepted = true;
  try {
    await read();
  } catch (error) {
    const { code, message, stack } = error as Error & { code?: string };
    if (!codes.includes(code ?? "")) throw new Error(`no error of ours: ${stack ?? message}`);
    expect(message).toContain(name);
    accepted = false;
  }
  const after = process.memoryUsage();
  expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(ROOM);
  return accepted;
}

const counted = () => {
  const counts = { taken: 0, refused: 0 };
  return { counts, count: (accepted: boolean) => void counts[accepted ? "taken" : "refused"]++ };
};

const nested = JSON.parse(`${"[".repeat(1000)}${"]".repeat(1000)}`) as unknown;

/** A value where another kind, size or sign was meant. */
const hostile = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    true,
    "",
    "x",
    [],
    {},
    0,
    -1,
    0.5,
    1e9,
    2 ** 31,
    2 ** 53,
    1e308,
    "__proto__",
    [[]],
    [-1],
    ["a"],
    [null],
    { a: null },
    "x".repeat(1e5),
    nested,
  ),
  fc.jsonValue({ maxDepth: 2 }),
);

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** A JSON value of which some parts are replaced, removed or doubled. */
const mutated = (value: Json): fc.Arbitrary<unknown> =>
  fc
    .array(
      fc.tuple(
        fc.array(fc.nat(), { minLength: 1, maxLength: 5 }),
        fc.constantFrom("replace", "replace", "remove", "copy"),
        hostile,
      ),
      {
        minLength: 1,
        maxLength: 3,
      },
    )
    .map((changes) => {
      const root = [structuredClone(value)];
      for (const [path, change, other] of changes) {
        let parent = root as unknown as Record<string, unknown>;
        let key = "0";
        for (const step of path) {
          const child = parent[key];
          const keys = typeof child === "object" && child !== null ? Object.keys(child) : [];
          if (keys.length === 0) break;
          parent = child as Record<string, unknown>;
          key = keys[step % keys.length];
        }
        if (change === "remove" && Array.isArray(parent)) parent.splice(Number(key), 1);
        else if (change === "remove") delete parent[key];
        else if (change === "copy") parent[`${key}_`] = structuredClone(parent[key]);
        else parent[key] = structuredClone(other); // a later change may reach into it
      }
      return root[0];
    });

/** Bytes of which a few are changed, cut out or put in. */
const disturbed = (bytes: Uint8Array) =>
  fc
    .array(fc.tuple(fc.nat(bytes.length), fc.uint8Array({ maxLength: 8 }), fc.nat(8)), { minLength: 1, maxLength: 4 })
    .map((changes) => {
      let all = Buffer.from(bytes);
      for (const [place, put, cut] of changes)
        all = Buffer.concat([all.subarray(0, place), put, all.subarray(place + cut)]);
      return all;
    });

const file = (header: Uint8Array, data: Uint8Array, length = BigInt(header.length)) => {
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(BigInt.asUintN(64, length));
  return Buffer.concat([start, header, data]);
};

describe("safetensors", () => {
  const number = fc.oneof(fc.nat(32), fc.constantFrom(-1, 0.5, 2 ** 31, 2 ** 40, 2 ** 53, 1e308));
  const entry = fc.record(
    {
      dtype: fc.constantFrom("F32", "F16", "BF16", "I64", "I8", "F8_E4M3", "BOOL", "toString"),
      shape: fc.oneof(fc.array(number, { maxLength: 5 }), hostile),
      data_offsets: fc.oneof(fc.tuple(number, number), hostile),
    },
    { requiredKeys: [] },
  );
  const header = fc.dictionary(
    fc.oneof(fc.constantFrom("a", "b", "__metadata__", "__proto__"), fc.string()),
    fc.oneof(entry, hostile),
    { maxKeys: 4 },
  );
  const whole = file(
    Buffer.from(
      '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}',
    ),
    new Uint8Array(14),
  );
  const read = async (bytes: Uint8Array) => {
    await writeFile(at("model.safetensors"), bytes);
    return taken(() => readSafetensors(folder), "model.safetensors", "SAFETENSORS");
  };
  afterAll(() => rm(at("model.safetensors"), { force: true }));

  test("with any header, length and data", async () => {
    const length = fc.oneof(
      fc.constant(undefined),
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      fc.bigInt({ min: 0n, max: 300n }),
    );
    await fc.assert(
      fc.asyncProperty(header, fc.uint8Array({ maxLength: 64 }), length, async (header, data, length) => {
        await read(file(Buffer.from(JSON.stringify(header)), data, length));
      }),
      options,
    );
  });
  test("whole but for a few bytes", () =>
    fc.assert(
      fc.asyncProperty(disturbed(whole), async (bytes) => void (await read(bytes))),
      options,
    ));
  test("of any bytes", () =>
    fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => void (await read(bytes))),
      options,
    ));

  const x = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}';
  test.each<[string, string, number]>([
    ["the same name twice", `{"x":${x},"x":${x}}`, 4],
    ["the same name twice, once escaped", `{"x":${x},"\\u0078":${x}}`, 4],
    [
      "a billion rows of nothing less one",
      '{"x":{"dtype":"F32","shape":[9007199254740991,9007199254740991],"data_offsets":[0,4]}}',
      4,
    ],
    ["nesting without end", `{"x":${"[".repeat(1e5)}${"]".repeat(1e5)}}`, 0],
    [
      "a tensor that begins amid an element of another",
      '{"x":{"dtype":"F32","shape":[1],"data_offsets":[2,6]},"y":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}',
      6,
    ],
  ])("with %s is refused", async (_, header, bytes) =>
    expect(await read(file(Buffer.from(header), new Uint8Array(bytes)))).toBe(false),
  );

  test("with any index", async () => {
    await rm(at("model.safetensors"), { force: true });
    await writeFile(at("shard.safetensors"), whole);
    const shard = fc.oneof(
      fc.constantFrom(
        "shard.safetensors",
        "../x",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/../shard.safetensors",
        "shard.safetensors\0",
      ),
      hostile,
    );
    const index = fc.oneof(
      fc.dictionary(fc.constantFrom("a", "b", "c", "__proto__"), shard).map((weight_map) => ({ weight_map })),
      hostile,
      fc.record({ weight_map: hostile }),
    );
    const { counts, count } = counted();
    await fc.assert(
      fc.asyncProperty(index, async (index) => {
        await writeFile(at("model.safetensors.index.json"), JSON.stringify(index));
        count(await taken(() => readSafetensors(folder), folder, "SAFETENSORS"));
      }),
      options,
    );
    expect(counts.taken).toBeGreaterThan(0);
  });
});

describe("a model's directory", () => {
  test.each(Object.values(families))("with any change of a $kind's config.json", async (family) => {
    const own = await mkdtemp(at(family.kind));
    const small = {
      ...llama,
      ...family,
      layers: 1,
      width: 8,
      heads: 2,
      kvHeads: 2,
      headSize: 4,
      mlp: 8,
      vocabulary: 11,
    };
    const made = Transformer.random(small, "logits", on, 1);
    await saveModel(made, own);
    await rm(join(own, "SHA256SUMS"));
    made.dispose();
    const config = JSON.parse(await readFile(join(own, "config.json"), "utf8")) as Json;
    const { counts, count } = counted();
    await fc.assert(
      fc.asyncProperty(mutated(config), async (changed) => {
        await writeFile(join(own, "config.json"), JSON.stringify(changed) ?? "");
        count(await taken(async () => (await loadModel(own, on)).dispose(), own, "MODEL"));
      }),
      options,
    );
    expect(Math.min(counts.taken, counts.refused)).toBeGreaterThan(0);
    expect(on.memory().current).toBe(0);
  });
});

describe("tokenizer.json", () => {
  test("with any change", async () => {
    const own = await mkdtemp(at("tokenizer"));
    const { tokenizer, tokenizerConfig } = trainBpe(["the cat sat on the mat, the cat sat"], {
      vocabulary: 262,
      specials: ["<|endoftext|>"],
    });
    await writeFile(join(own, "tokenizer_config.json"), JSON.stringify(tokenizerConfig));
    const { counts, count } = counted();
    await fc.assert(
      fc.asyncProperty(
        mutated(tokenizer as unknown as Json),
        fc.string({ unit: "binary", maxLength: 12 }),
        async (changed, text) => {
          await writeFile(join(own, "tokenizer.json"), JSON.stringify(changed) ?? "");
          const use = async () => {
            const loaded = await Tokenizer.load(own);
            loaded.decode(loaded.encode(`${text}<|endoftext|> the cat`));
          };
          count(await taken(use, "tokenizer.json", "TOKENIZER"));
        },
      ),
      options,
    );
    expect(Math.min(counts.taken, counts.refused)).toBeGreaterThan(0);
  });

  const { tokenizer, tokenizerConfig } = trainBpe(["aaaa"], { vocabulary: 258 });
  const changed = (changes: Partial<TokenizerJson>) =>
    new Tokenizer({ tokenizer: { ...tokenizer, ...changes }, tokenizerConfig });
  const split = (Regex: string) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false });
  const replace = (content: string) => ({ type: "Replace", pattern: { String: "a" }, content });
  test.each<[string, Partial<TokenizerJson>]>([
    ["a pattern that takes for ever", { pre_tokenizer: split("(a+)+$") }],
    [
      "a pattern that takes for ever in its normalizer",
      { normalizer: { type: "Replace", pattern: { Regex: "(a|a)*b" }, content: "" } },
    ],
    ["a pattern too long to be read", { pre_tokenizer: split("[^(\\s|[".repeat(1e5)) }],
    [
      "steps that make a text grow without end",
      { normalizer: { type: "Sequence", normalizers: Array(40).fill(replace("aa")) as unknown[] } },
    ],
    [
      "tokens that grow without end",
      { decoder: { type: "Sequence", decoders: Array(40).fill(replace("aa")) as unknown[] } },
    ],
    ["a cut that is made otherwise", { pre_tokenizer: { ...split("a"), behavior: "MergedWithNext" } }],
    [
      "nesting without end",
      {
        normalizer: JSON.parse(
          `${'{"type":"Sequence","normalizers":['.repeat(1e4)}${"]}".repeat(1e4)}`,
        ) as TokenizerJson["normalizer"],
      },
    ],
  ])("with %s is refused", async (_, changes) => {
    const begun = Date.now();
    expect(await taken(() => changed(changes).encode(`${"a".repeat(40)}c`), "tokenizer.json", "TOKENIZER")).toBe(false);
    expect(Date.now() - begun).toBeLessThan(30_000);
  });

  test("with a template that takes for ever is refused", async () => {
    const loop = "{% for i in range(100000000) %}{% endfor %}";
    const { chat } = new Tokenizer({ tokenizer, tokenizerConfig: { ...tokenizerConfig, chat_template: loop } });
    expect(await taken(() => chat.render([{ role: "user", content: "a" }]), "tokenizer.json", "CHAT")).toBe(false);
  });
});

describe("Parquet", () => {
  const rows = 40;
  const columns = [
    { name: "prompt", data: Array.from({ length: rows }, (_, i) => `a prompt ${i % 7}`), type: "STRING" },
    { name: "chosen", data: Array.from({ length: rows }, (_, i) => (i % 5 ? `yes ${i}` : null)), type: "STRING" },
    {
      name: "rejected",
      data: Array.from({ length: rows }, (_, i) => [{ role: "user", content: `${i}` }]),
      type: "JSON",
    },
    { name: "margin", data: Array.from({ length: rows }, (_, i) => i / 7), type: "DOUBLE" },
    { name: "n", data: Array.from({ length: rows }, (_, i) => BigInt(i)), type: "INT64" },
    { name: "flag", data: Array.from({ length: rows }, (_, i) => i % 3 === 0), type: "BOOLEAN" },
  ] as const;
  const written = (codec: "UNCOMPRESSED" | "SNAPPY") =>
    new Uint8Array(
      parquetWriteBuffer({
        columnData: columns.map((column) => ({ ...column, data: [...column.data] })),
        codec,
        rowGroupSize: 15,
      }),
    );
  const read = async (bytes: Uint8Array) => {
    await writeFile(at("rows.parquet"), bytes);
    return taken(() => readRows(at("rows.parquet"), ({ value }) => value), "rows.parquet", "PARQUET", "JSON");
  };
  const few = { seed, numRuns: Math.ceil(numRuns / 10) }; // each input has a process of its own

  /** Bytes from a place on of which a few are others. */
  const altered = (bytes: Uint8Array, from: number) =>
    fc
      .array(
        fc.tuple(
          fc.integer({ min: from, max: bytes.length - 9 }),
          fc.oneof(fc.nat(255), fc.constantFrom(0, 0x15, 0x7f, 0x80, 0xff)),
        ),
        {
          minLength: 1,
          maxLength: 3,
        },
      )
      .map((changes) => {
        const all = Buffer.from(bytes);
        for (const [place, byte] of changes) all[place] = byte;
        return all;
      });

  test.each(["UNCOMPRESSED", "SNAPPY"] as const)("with any change of its pages, %s", async (codec) => {
    const whole = written(codec);
    expect(await read(whole)).toBe(true);
    const { counts, count } = counted();
    await fc.assert(
      fc.asyncProperty(altered(whole, 4), async (bytes) => count(await read(bytes))),
      few,
    );
    expect(Math.min(counts.taken, counts.refused)).toBeGreaterThan(0);
  });

  test("with any change of what tells of its columns, which its end holds", async () => {
    const whole = Buffer.from(written("UNCOMPRESSED"));
    const start = whole.length - 8 - whole.readUInt32LE(whole.length - 8);
    await fc.assert(
      fc.asyncProperty(altered(whole, start), async (bytes) => void (await read(bytes))),
      few,
    );
  });

  /** A run of 2^31 - 1 in a few bytes. */
  function endless(): Buffer {
    const whole = Buffer.from(
      parquetWriteBuffer({ columnData: [{ ...columns[1], data: [...columns[1].data] }], codec: "UNCOMPRESSED" }),
    );
    const levels = whole.indexOf(Uint8Array.of(0x0b, 0xde)); // which of the 40 values are there, as 5 times 8 bits
    expect(levels).toBeGreaterThan(0);
    whole.set([0xfe, 0xff, 0xff, 0xff, 0x0f, 1], levels); // a run of ones
    return whole;
  }

  test("with a run of two billion in a few bytes is refused, in bounded memory", async () => {
    const before = process.memoryUsage().rss;
    expect(await read(endless())).toBe(false);
    expect(process.memoryUsage().rss - before).toBeLessThan(2 ** 30);
  });

  (existsSync("/proc/self/cmdline") ? test : test.skip)(
    "is read by a process that ends with its parent, though it is at work and that is killed",
    async () => {
      const [file, bytes] = [at("endless.parquet"), endless()];
      const footer = bytes.length - 8 - bytes.readUInt32LE(bytes.length - 8);
      await writeFile(file, Buffer.concat([bytes.subarray(0, footer), Buffer.alloc(2 ** 25), bytes.subarray(footer)])); // so large, it may take minutes
      const script = `import(${JSON.stringify(pathToFileURL(join(root, "dist/lib/data/parquet.js")).href)}).then(({ readParquet }) => readParquet(${JSON.stringify(file)}).next())`;
      const parent = spawn(process.execPath, ["-e", script], { stdio: "ignore" });
      const command = async (pid: string) =>
        (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).split("\0");
      const readers = async () => {
        const found: string[] = [];
        for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name)))
          if ((await command(pid)).slice(2).includes(file)) found.push(pid);
        return found;
      };
      const until = async (wanted: number, seconds: number) => {
        for (const last = Date.now() + 1000 * seconds; Date.now() < last && (await readers()).length !== wanted;)
          await new Promise((resolve) => setTimeout(resolve, 50));
        expect((await readers()).length).toBe(wanted);
      };
      await until(1, 30);
      await new Promise((resolve) => setTimeout(resolve, 1000)); // it has begun
      expect((await readers()).length).toBe(1);
      parent.kill("SIGKILL");
      await until(0, 2.5);
    },
  );

  test("of any bytes between its marks", () =>
    fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 80 }), async (bytes) => {
        const length = Buffer.alloc(4);
        length.writeUInt32LE(bytes.length);
        await read(Buffer.concat([Buffer.from("PAR1"), bytes, length, Buffer.from("PAR1")]));
      }),
      few,
    ));
});

describe("JSONL", () => {
  const names = [
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "ranking",
    "agreement",
    "margin",
    "prompt_ids",
    "completion_ids",
    "logprobs",
    "temperature",
  ];
  const row = fc.dictionary(
    fc.constantFrom(...names),
    fc.oneof(fc.string(), fc.array(fc.nat(9), { maxLength: 3 }), fc.double(), hostile),
  );
  const line = fc.oneof(
    row.map((one) => JSON.stringify(one)),
    fc.json(),
    fc.string(),
    fc.constant("[".repeat(1e5)),
    fc.constant(`{"prompt":${"[".repeat(1e5)}${"]".repeat(1e5)}}`),
  );
  const read = async (content: string | Uint8Array) => {
    await writeFile(at("rows.jsonl"), content);
    for (const reader of [readPrompts, readComparisons, readCompletions])
      await taken(() => reader(at("rows.jsonl")), "rows.jsonl", "JSON", "COLUMN");
  };
  test("of any lines", () =>
    fc.assert(
      fc.asyncProperty(fc.array(line, { maxLength: 4 }), (lines) => read(lines.join("\n"))),
      options,
    ));
  test("of any bytes", () => fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 100 }), read), options));
  test("of a line that is a thousand times as long as its file, gzipped", async () => {
    const zipped = gzipSync(Buffer.concat([Buffer.from('{"prompt":"'), Buffer.alloc(2 ** 28, "a"), Buffer.from('"}')]));
    await writeFile(at("long.jsonl"), zipped);
    await expect(readPrompts(at("long.jsonl"))).rejects.toMatchObject({
      code: "JSON",
      message: expect.stringContaining("long.jsonl"),
    });
  });
});

describe("a configuration", () => {
  const read = async (text: string) => {
    await writeFile(at("config.yaml"), text);
    await taken(() => readConfig(at("config.yaml")), "config.yaml", "CONFIG");
  };
  const word = fc.oneof(
    fc.constantFrom(
      "seed",
      "ppo",
      "updates",
      "sft",
      "steps",
      "model",
      "heads",
      "__proto__",
      ": ",
      "- ",
      "{",
      "}",
      "[",
      "]",
      "&a ",
      "*a",
      "!!js ",
      "? ",
      "<<: ",
      "|",
      ">",
      "'",
      '"',
      "\n",
      "\n  ",
      "1",
      "-1",
      ".inf",
      "~",
      "%",
    ),
    fc.string({ maxLength: 4 }),
  );
  test("of any words", () =>
    fc.assert(
      fc.asyncProperty(fc.array(word, { maxLength: 14 }), (words) => read(words.join(""))),
      options,
    ));
  test("of any options", () => {
    const section = fc.dictionary(
      fc.constantFrom("updates", "heads", "width", "steps", "topK", "temperature", "every"),
      hostile,
    );
    return fc.assert(
      fc.asyncProperty(
        fc.dictionary(fc.constantFrom("seed", "model", "ppo", "sft", "eval", "checkpoint"), fc.oneof(section, hostile)),
        (all) => read(JSON.stringify(all)),
      ),
      options,
    );
  });
  test("of aliases that double, or nesting without end, is refused", async () => {
    const laughs = Array.from({ length: 40 }, (_, i) => `a${i}: &a${i} [${i ? `*a${i - 1}, *a${i - 1}` : "x"}]`).join(
      "\n",
    );
    for (const text of [laughs, `seed: ${"[".repeat(1e4)}`, `${"a: {".repeat(1e4)}`]) await read(text);
  });
});
