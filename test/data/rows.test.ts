import { execFile } from "node:child_process";
import { closeSync, openSync, readdirSync, readlinkSync, writeSync } from "node:fs";
import { appendFile, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { parquetWriteFile } from "hyparquet-writer";
import { comparisonRow, type ComparisonRow, type DemonstrationRow } from "../../lib/data/preferences.js";
import { rowFile } from "../../lib/data/rows.js";
import { Records, sliceOf, Spool, type Indexed } from "../../lib/data/spool.js";
import { root } from "../../lib/device/native.js";
import { itemBatches, Random as Philox, textBatches, Tokenizer, trainBpe, windows } from "../../lib/index.js";
import { Comparisons, Demonstrations, Documents, Prompts } from "../../lib/rlhf/batch/rows.js";
import { windowsOf } from "../../lib/rlhf/batch/order.js";
import { Random } from "../random.js";

const random = new Random("rows");
let folder: string;
const at = (name: string) => join(folder, name);
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-rows-"));
});
afterAll(() => rm(folder, { recursive: true }));

const tokenizer = new Tokenizer(trainBpe(["the text of a tokenizer"], { vocabulary: 260 }));
const all = <T>(items: Indexed<T>): T[] => sliceOf(items, 0, items.length);
const places = (length: number): Indexed<number> => ({ length, at: (place) => place });

describe("the order of data", () => {
  test("is the one that the seed and the step have always given", () => {
    const few = itemBatches(places(100), { batch: 8, seed: 7 });
    expect([0, 1, 12, 13, 40].map(few)).toEqual([
      [5, 79, 84, 1, 36, 37, 51, 46],
      [25, 50, 98, 11, 8, 96, 45, 94],
      [61, 3, 10, 42],
      [11, 49, 32, 71, 60, 63, 51, 25],
      [88, 86, 9, 52, 71, 74, 32, 0],
    ]);
    const many = itemBatches(places(100_000), { batch: 6, seed: 3 });
    expect([0, 16666, 16667].map(many)).toEqual([
      [32754, 57620, 40009, 95878, 87310, 83998],
      [24478, 95549, 27178, 59828],
      [59592, 92693, 98785, 1116, 85766, 68284],
    ]);
    const chunks = textBatches(
      Int32Array.from({ length: 1000 }, (_, i) => i),
      { length: 16, batch: 6, seed: 5 },
    );
    expect([0, 10, 11].map((step) => chunks(step).map(({ completion }) => completion[0]))).toEqual([
      [228, 388, 20, 68, 916, 516],
      [452, 632, 200, 472, 504, 680],
      [376, 40, 696, 24, 392, 552],
    ]);
  });

  test("is a function of the step alone: a run that goes on in the middle has the same batches, of an array or of what reads them", () => {
    for (const [length, batch] of [
      [10, 3],
      [64, 64],
      [257, 16],
    ]) {
      const items = Array.from({ length }, (_, i) => `item ${i}`);
      const unbroken = itemBatches(items, { batch, seed: 1 });
      const wanted = Array.from({ length: 40 }, (_, step) => unbroken(step));
      for (const step of [0, 7, 23, 39, 8])
        expect(itemBatches({ length, at: (place: number) => items[place] }, { batch, seed: 1 })(step)).toEqual(
          wanted[step],
        );
      const epoch = wanted.slice(0, Math.ceil(length / batch)).flat();
      expect([...epoch].sort()).toEqual([...items].sort());
    }
  });

  test("is drawn once an epoch: a step draws nothing and reads its own items alone, of a thousand or a million", async () => {
    const counts = await inNode(`
      const { below } = Random.prototype;
      let drawn = 0;
      Random.prototype.below = function (n) { drawn++; return below.call(this, n); };
      const counts = [];
      for (const length of [1000, 1000000]) {
        const asked = new Set();
        const items = { length, at: (place) => asked.add(place) };
        const tokens = { length: 8 * length, slice: (begin, end) => (asked.add(begin), new Int32Array(end - begin)) };
        for (const batches of [itemBatches(items, { batch: 10, seed: 2 }), textBatches(tokens, { length: 8, batch: 10, seed: 2 })]) {
          batches(0);
          const first = drawn;
          asked.clear();
          for (let step = 1; step <= 50; step++) batches(step);
          counts.push([first, drawn - first, asked.size]);
          drawn = 0;
        }
      }
      return counts;`);
    const draws = [1000, 1_000_000].flatMap((length) => [length - 1, length - 2]); // two chunks are fewer, and they have an offset
    expect(counts).toEqual(draws.map((first) => [first, 0, 500]));
  });

  test("is shuffled alike in an array and in 4 bytes a place", () => {
    for (const length of [0, 1, 2, 97]) {
      const order = Array.from({ length }, (_, i) => i);
      expect([...new Philox(4, 5).shuffle(Uint32Array.from(order))]).toEqual(new Philox(4, 5).shuffle(order));
    }
  });
});

describe("what lies in a temporary file", () => {
  const bytesOf = (from: Int32Array) => Buffer.from(from.buffer, from.byteOffset, from.byteLength);
  const values = (length: number) => Int32Array.from({ length }, () => Math.floor(random.uniform(-(2 ** 31), 2 ** 31)));

  test("is what was put in, from any place to any other", () => {
    using spool = new Spool(folder, 2048);
    const parts = Array.from({ length: 40 }, () => values(random.below(random.pick([3, 700, 5000]))));
    for (const part of parts) spool.push(part);
    const wanted = Int32Array.from(parts.flatMap((part) => [...part]));
    expect(spool.length).toBe(wanted.length);
    for (let i = 0; i < 200; i++) {
      const [begin, end] = [random.below(wanted.length + 1), random.below(wanted.length + 1)].sort((a, b) => a - b);
      expect([begin, end, Buffer.compare(bytesOf(spool.slice(begin, end)), bytesOf(wanted.slice(begin, end)))]).toEqual(
        [begin, end, 0],
      );
    }
    using records = new Records(folder);
    for (const part of parts) records.add([part, part.slice(0, 2)]);
    for (const [i, part] of parts.entries())
      expect([
        i,
        Buffer.compare(bytesOf(records.at(i)), Buffer.concat([bytesOf(part), bytesOf(part.slice(0, 2))])),
      ]).toEqual([i, 0]);
  });

  test("has no name, so that nothing stays where the process is killed", async () => {
    using spool = new Spool(folder, 1024);
    spool.push(values(5000));
    expect((await readdir(folder)).filter((name) => name.includes("rows."))).toEqual([]);
    expect(spool.slice(0, 5000).length).toBe(5000);
  });

  (process.platform === "linux" ? test : test.skip)(
    "is an error where the disk gives other bytes than were written, or fewer",
    () => {
      const opened = () => readdirSync("/proc/self/fd").filter((fd) => isOurs(join("/proc/self/fd", fd)));
      const isOurs = (path: string) => {
        try {
          return readlinkSync(path).startsWith(at(".rows."));
        } catch {
          return false;
        }
      };
      const before = opened();
      using spool = new Spool(folder, 1024);
      const wanted = values(3 * 1024 + 10);
      spool.push(wanted);
      const [fd] = opened().filter((one) => !before.includes(one));
      const file = openSync(join("/proc/self/fd", fd), "r+");
      const place = 4 * (1024 + random.below(1024)); // of the second page
      const bytes = Buffer.from(wanted.buffer, place, 1);
      writeSync(file, Buffer.of(bytes[0] ^ (1 << random.below(8))), 0, 1, place);
      expect(spool.slice(0, 1024)).toEqual(wanted.slice(0, 1024));
      for (const [begin, end] of [
        [1024, 2048],
        [0, 3072],
        [2047, 2049],
      ])
        expect(() => spool.slice(begin, end)).toThrow(
          expect.objectContaining({ code: "FILE", message: expect.stringContaining(folder) }),
        );
      writeSync(file, bytes, 0, 1, place);
      expect(bytesOf(spool.slice(0, wanted.length)).equals(bytesOf(wanted))).toBe(true);
      closeSync(file);
    },
  );

  test("names the folder where it cannot be written", () => {
    using spool = new Spool(at("none"), 1024);
    expect(() => spool.push(values(1024))).toThrow(
      expect.objectContaining({ code: "WRITE", message: expect.stringContaining(at("none")) }),
    );
  });
});

/** Comparisons in one array, as their definition says: what the reward model learns from. */
function defined(rows: readonly ComparisonRow[], softLabels: boolean) {
  const units: { key?: string; texts: string[]; episodes: number[][][]; pairs: unknown[] }[] = [];
  for (const row of rows) {
    const open = row.rendered || row.sampled;
    const isRanking = "ranking" in row;
    if (!isRanking && !softLabels && row.agreement === 0.5) continue;
    const key = isRanking || row.prompt === "" ? undefined : `${row.rendered} ${row.prompt}`;
    let unit = units.find((one) => key !== undefined && one.key === key);
    if (!unit) units.push((unit = { key, texts: [], episodes: [], pairs: [] }));
    const isTurned = !isRanking && !softLabels && (row.agreement ?? 1) < 0.5;
    const texts = isRanking
      ? [...new Set(row.ranking)]
      : isTurned
        ? [row.rejected, row.chosen]
        : [row.chosen, row.rejected];
    const found = texts.map((text) => {
      const known = unit.texts.indexOf(`${open} ${text}`);
      if (known >= 0) return known;
      unit.episodes.push([
        [...tokenizer.encodePrompt(row.prompt, row)],
        [...tokenizer.encodeCompletion(text, { open })],
      ]);
      return unit.texts.push(`${open} ${text}`) - 1;
    });
    const label = isRanking || !softLabels ? undefined : row.agreement;
    const margin = isRanking ? undefined : isTurned && row.margin !== undefined ? -row.margin : row.margin;
    found.forEach((chosen, i) =>
      found.slice(i + 1).forEach((rejected) => unit.pairs.push({ chosen, rejected, label, margin })),
    );
  }
  return units.map(({ episodes, pairs }) => ({ episodes, pairs }));
}

const listed = (items: Comparisons) =>
  all(items).map(({ episodes, pairs }) => ({
    episodes: episodes.map(({ prompt, completion }) => [Array.from(prompt), Array.from(completion)]),
    pairs,
  }));

function drawRows(count: number): ComparisonRow[] {
  const word = () =>
    `${random.pick(["", " "])}${String.fromCharCode(97 + random.below(4))}`.repeat(1 + random.below(2));
  return Array.from({ length: count }, () => {
    const marks = {
      ...(random.below(4) ? {} : { sampled: true as const }),
      ...(random.below(5) ? {} : { rendered: true as const }),
    };
    const prompt = random.below(10) ? `prompt ${random.below(count / 4)}` : "";
    if (!random.below(6)) return { prompt, ranking: [word(), word(), word()], ...marks };
    const figures = {
      ...(random.below(2) ? { agreement: random.below(5) / 4 } : {}),
      ...(random.below(2) ? { margin: random.uniform(-2, 2) } : {}),
    };
    return { prompt, chosen: word(), rejected: word(), ...figures, ...marks };
  });
}

describe("comparisons", () => {
  test("are what their definition says: all preferences of a prompt together, each completion once", async () => {
    const rows = drawRows(400);
    for (const softLabels of [true, false]) {
      using read = await Comparisons.read(rows, tokenizer, { softLabels, folder });
      const wanted = defined(rows, softLabels);
      expect(listed(read)).toEqual(wanted);
      expect(read.pairs).toBe(wanted.reduce((n, { pairs }) => n + pairs.length, 0));
    }
  });

  test("are the same from JSONL, gzipped or not, an array in JSON, Parquet and a pipe", async () => {
    const rows = Array.from({ length: 300 }, (_, i) => ({
      prompt: `p${i % 70}`,
      chosen: `\u00e9 ${i}`,
      rejected: "b",
      agreement: 0.5 + i / 600,
    }));
    const text = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
    await writeFile(at("a.jsonl"), text);
    await writeFile(at("a.jsonl.gz"), gzipSync(text));
    await writeFile(at("a.json"), JSON.stringify(rows));
    const columns = ["prompt", "chosen", "rejected", "agreement"] as const;
    const columnData = columns.map((name) => ({
      name,
      data: rows.map((row) => row[name]),
      type: name === "agreement" ? ("DOUBLE" as const) : ("STRING" as const),
    }));
    parquetWriteFile({ filename: at("a.parquet"), columnData, rowGroupSize: 64 });
    await promisify(execFile)("mkfifo", [at("pipe")]);
    const batches = async (file: string) => {
      using read = await Comparisons.read(
        rowFile(file, (row) => comparisonRow(row)),
        tokenizer,
        { folder },
      );
      const step = itemBatches(read, { batch: 9, seed: 3 });
      return JSON.stringify([0, 5, 6, 31].map(step));
    };
    const wanted = await batches(at("a.jsonl"));
    for (const name of ["a.jsonl.gz", "a.json", "a.parquet"]) expect(await batches(at(name))).toBe(wanted);
    const written = writeFile(at("pipe"), text);
    expect(await batches(at("pipe"))).toBe(wanted);
    await written;
  });

  test("that were read stay what they were when the file changes", async () => {
    const row = (i: number) => `${JSON.stringify({ prompt: `p${i}`, chosen: "a", rejected: "b" })}\n`;
    await writeFile(at("b.jsonl"), Array.from({ length: 50 }, (_, i) => row(i)).join(""));
    using read = await Comparisons.read(
      rowFile(at("b.jsonl"), (one) => comparisonRow(one)),
      tokenizer,
      { folder },
    );
    const before = listed(read);
    await writeFile(at("b.jsonl"), row(7));
    expect(listed(read)).toEqual(before);
  });
});

describe("a file that changes while it is read", () => {
  const file = () => at("changing.jsonl");
  const rows = () => rowFile(file(), ({ value }) => value);
  const write = (count: number) =>
    writeFile(file(), Array.from({ length: count }, (_, i) => `${JSON.stringify({ i })}\n`).join(""));
  const told = (items: string) =>
    expect.objectContaining({
      name: "TypeError",
      code: "CHANGED",
      message: expect.stringMatching(`changing.jsonl.* ${items} rows`),
    });

  test("is told, by its name and the rows that were read", async () => {
    await write(20);
    const read = async () => {
      for await (const { i } of rows()) if (i === 3) await appendFile(file(), '{"i":20}\n');
    };
    await expect(read()).rejects.toEqual(told("2[01]"));
  });

  test("is told between two readings", async () => {
    await write(20);
    const source = rows();
    for (let i = 0; i < 2; i++) for await (const _ of source);
    await write(20);
    await expect(source[Symbol.asyncIterator]().next()).rejects.toEqual(told("0"));
  });

  test("and a pipe is not read a second time", async () => {
    await promisify(execFile)("mkfifo", [at("once")]);
    const source = rowFile(at("once"), ({ value }) => value);
    const written = writeFile(at("once"), '{"a":1}\n');
    for await (const _ of source);
    await written;
    await expect(source[Symbol.asyncIterator]().next()).rejects.toMatchObject({
      code: "FILE",
      message: expect.stringContaining("only once"),
    });
  });
});

test("demonstrations, documents and prompts are read back as they were tokenised", async () => {
  const texts = Array.from({ length: 30 }, (_, i) => `${"the text ".repeat(random.below(6))}${i} \u00e9\ud83d\ude00`);
  using shown = new Demonstrations(tokenizer, { length: 24, folder });
  const rows: DemonstrationRow[] = texts.map((completion, i) => ({
    prompt: i % 5 ? `${i}` : "",
    completion,
    ...(i % 3 ? {} : { sampled: true }),
  }));
  for (const row of rows) shown.add(row);
  const whole = rows.map(({ prompt, completion, sampled }) => [
    tokenizer.encodePrompt(prompt),
    tokenizer.encodeCompletion(completion, { open: sampled }),
  ]);
  const kept = whole.map(([prompt, completion]) => ({ prompt, completion: completion.slice(0, 25 - prompt.length) }));
  expect(all(shown)).toEqual(kept);
  expect(shown.cut).toBe(whole.filter(([, { length }], i) => length > kept[i].completion.length).length);
  expect(shown.cut).toBeGreaterThan(0);
  expect(shown.tokens).toBe(kept.reduce((n, { completion }) => n + completion.length, 0));

  using documents = await Documents.read(texts, tokenizer, folder);
  const stream = documents.slice(0, documents.length);
  expect([...stream]).toEqual(texts.flatMap((text) => [tokenizer.eosId, ...tokenizer.encode(text)]));
  expect(documents.bytes).toBe(Buffer.byteLength(texts.join("")));
  for (const options of [
    { length: 16, stride: 8 },
    { length: 7, stride: 6 },
  ])
    expect(all(windowsOf(documents, options))).toEqual(windows(stream, options));

  const asked = [...texts, "a lone \ud83d", "x".repeat(5000)].map((prompt, i) => ({
    prompt,
    ...(i % 2 ? { rendered: true as const } : {}),
  }));
  using prompts = await Prompts.read(asked, tokenizer, folder);
  expect(all(prompts)).toEqual(
    asked.map(({ prompt, rendered }) => ({
      text: prompt,
      ids: tokenizer.encodePrompt(prompt, { rendered }),
      ...(rendered ? { rendered } : {}),
    })),
  );
});

/** What a program answers that a process of its own runs: Jest's globals are slow, and hold memory. */
async function inNode(program: string): Promise<unknown> {
  const from = (path: string) => JSON.stringify(pathToFileURL(join(root, "dist", path)).href);
  const whole = `
    import { itemBatches, Random, textBatches, Tokenizer, trainBpe } from ${from("lib/index.js")};
    import { Comparisons, Demonstrations, Documents, Prompts } from ${from("lib/rlhf/batch/rows.js")};
    console.log(JSON.stringify(await (async () => { ${program} })()));`;
  const { stdout } = await promisify(execFile)(process.execPath, ["--expose-gc", "--input-type=module", "-e", whole]);
  return JSON.parse(stdout);
}

/** Bytes that a kind of data keeps in memory for each row: the growth from 20,000 rows to 120,000. */
const bytesPerRow = (kind: string) =>
  inNode(`
    const tokenizer = new Tokenizer(trainBpe(["the text of a tokenizer"], { vocabulary: 260 }));
    const folder = ${JSON.stringify(folder)};
    function* rows(count) {
      for (let i = 0; i < count; i++) yield { prompt: [...i.toString(36)].join(" "), chosen: "the text", rejected: "a text", completion: "the text" };
    }
    function* texts(count) { for (const { prompt } of rows(count)) yield prompt; }
    const read = {
      comparisons: (count) => Comparisons.read(rows(count), tokenizer, { folder }),
      demonstrations: (count) => {
        const all = new Demonstrations(tokenizer, { length: 64, folder });
        for (const row of rows(count)) all.add(row);
        return all;
      },
      documents: (count) => Documents.read(texts(count), tokenizer, folder),
      prompts: (count) => Prompts.read(rows(count), tokenizer, folder),
    }[${JSON.stringify(kind)}];
    const held = async (count) => {
      const all = await read(count);
      const batches = all.at ? itemBatches(all, { batch: 8, seed: 1 }) : textBatches(all, { length: 8, batch: 8, seed: 1 });
      batches(0);
      let least = Infinity; // arrays that are garbage are given back some time after a collection
      for (let i = 0; i < 10; i++) {
        gc();
        await new Promise((done) => setTimeout(done, 10));
        const { heapUsed, external } = process.memoryUsage();
        least = Math.min(least, heapUsed + external);
      }
      batches(1);
      return least;
    };
    await held(1000);
    const few = await held(20000);
    return (await held(120000) - few) / 100000;`);

test.each([
  ["comparisons", 40],
  ["demonstrations", 20],
  ["documents", 10],
  ["prompts", 20],
])("of %s less than %d bytes a row are kept in memory", async (kind, most) => {
  const bytes = await bytesPerRow(kind);
  expect(bytes).toBeGreaterThan(0);
  expect(bytes).toBeLessThan(most);
});
