import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import { byPrompt, readCompletions, writeCompletions, type CompletionRow } from "../../lib/data/completions.js";
import { readRows, writeJsonl } from "../../lib/data/jsonl.js";
import { readComparisons, readDemonstrations, readPrompts } from "../../lib/data/preferences.js";
import { seed } from "../random.js";

let folder: string;
let file: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-jsonl-"));
  file = join(folder, "rows.jsonl");
});
afterAll(() => rm(folder, { recursive: true }));

const values = () => readRows(file, ({ value }) => value);

describe("a file named .json", () => {
  test("holds one array of objects, however it is laid out, or lines", async () => {
    const rows = [
      { prompt: "a", n: 1 },
      { prompt: "b\n", n: [2] },
    ];
    const [json, zipped] = [join(folder, "rows.json"), join(folder, "rows.json.gz")];
    const read = (path: string) => readRows(path, ({ value }) => value);
    for (const text of [
      JSON.stringify(rows),
      `\n ${JSON.stringify(rows, null, 2)}\n`,
      rows.map((row) => JSON.stringify(row)).join("\n"),
    ]) {
      await writeFile(json, text);
      await writeFile(zipped, gzipSync(text));
      expect([await read(json), await read(zipped)]).toEqual([rows, rows]);
    }
    const wrong: [string, string][] = [
      ["[1]", "rows.json, row 1: 1, wanted a JSON object"],
      ['[{"a":1}', "not an array in JSON"],
      ["{\n}", "rows.json:1: not a line of JSON"],
    ];
    for (const [text, message] of wrong) {
      await writeFile(json, text);
      await expect(read(json)).rejects.toMatchObject({ code: "JSON", message: expect.stringContaining(message) });
    }
  });
});

describe("JSONL", () => {
  test("holds any rows, line separators of Unicode and long lines included", async () => {
    const row = fc.dictionary(fc.string({ unit: "binary" }), fc.jsonValue());
    await fc.assert(
      fc.asyncProperty(fc.array(row, { maxLength: 5 }), async (rows) => {
        await writeJsonl(file, rows);
        expect(await values()).toEqual(rows.map((one) => JSON.parse(JSON.stringify(one))));
      }),
      { seed, numRuns: 100 },
    );
    const rows = [{ text: "a\u2028b\u2029c\u0085d\r\ne" }, { text: "é".repeat(300_000) }, { text: "end" }];
    await writeJsonl(file, rows);
    expect(await values()).toEqual(rows);
  });

  test("takes carriage returns, blank lines and a last line without a line feed, and counts lines rightly", async () => {
    await writeFile(file, '{"a":1}\r\n\n  \n{"a":2}');
    expect(await readRows(file, ({ value, place }) => [value.a, place])).toEqual([
      [1, `${file}:1`],
      [2, `${file}:4`],
    ]);
    await writeFile(file, "");
    expect(await values()).toEqual([]);
  });

  test.each<[string, string | Uint8Array]>([
    ["no JSON", '{"a":1}\n{"a":\n'],
    ["no object", '{"a":1}\n[1]\n'],
    ["null", '{"a":1}\nnull\n'],
    ["not UTF-8", Buffer.concat([Buffer.from('{"a":1}\n{"a":"'), Buffer.of(0xff), Buffer.from('"}')])],
  ])("names file and line where a line is %s", async (_, content) => {
    await writeFile(file, content);
    await expect(values()).rejects.toMatchObject({
      name: "TypeError",
      code: "JSON",
      message: expect.stringContaining(`${file}:2`),
    });
  });

  test("names a file that is not there", async () => {
    await expect(readPrompts(join(folder, "absent.jsonl"))).rejects.toMatchObject({
      code: "FILE",
      message: expect.stringContaining("absent.jsonl"),
    });
  });

  test("is read from a pipe as it comes", async () => {
    const pipe = join(folder, "pipe");
    await promisify(execFile)("mkfifo", [pipe]);
    const written = writeFile(pipe, '{"a":1}\n{"a":2}\n');
    expect(await readRows(pipe, ({ value }) => value.a)).toEqual([1, 2]);
    await written;
  });

  test("refuses to write NaN, and leaves the old file", async () => {
    await writeJsonl(file, [{ a: 1 }]);
    await expect(writeJsonl(file, [{ a: 2 }, { logprobs: [-1, -Infinity] }])).rejects.toMatchObject({
      code: "JSON",
      message: expect.stringContaining(":2"),
    });
    expect(await readFile(file, "utf8")).toBe('{"a":1}\n');
  });
});

describe("rows of preferences", () => {
  const write = (...rows: unknown[]) => writeFile(file, rows.map((row) => JSON.stringify(row)).join("\n"));

  test("may carry agreement, margin and columns of others; rankings may stand among them", async () => {
    await write(
      { prompt: "p", chosen: "a", rejected: "b", agreement: 0.75, margin: null, source: 1 },
      { prompt: "p", ranking: ["a", "b", "c"] },
      { prompt: "p", chosen: "a", rejected: "b", margin: 2 },
    );
    expect(await readComparisons(file)).toEqual([
      { prompt: "p", chosen: "a", rejected: "b", agreement: 0.75 },
      { prompt: "p", ranking: ["a", "b", "c"] },
      { prompt: "p", chosen: "a", rejected: "b", margin: 2 },
    ]);
    await write({ prompt: "p", completion: "c" });
    expect(await readDemonstrations(file)).toEqual([{ prompt: "p", completion: "c" }]);
    expect(await readPrompts(file)).toEqual([{ prompt: "p" }]);
  });

  test.each<[string, object]>([
    ["prompt", { prompt: 3, chosen: "a", rejected: "b" }],
    ["chosen", { prompt: "p", rejected: "b" }],
    ["rejected", { prompt: "p", chosen: "a", rejected: "" }],
    ["agreement", { prompt: "p", chosen: "a", rejected: "b", agreement: 1.5 }],
    ["margin", { prompt: "p", chosen: "a", rejected: "b", margin: "2" }],
    ["ranking", { prompt: "p", ranking: ["a"] }],
  ])("are refused by the column %s and the line", async (column, row) => {
    await write({ prompt: "p", chosen: "a", rejected: "b" }, row);
    await expect(readComparisons(file)).rejects.toMatchObject({
      name: "TypeError",
      code: "COLUMN",
      message: expect.stringContaining(`${file}:2: the column "${column}"`),
    });
  });

  test("do not take a column from Object.prototype", async () => {
    await write({ prompt: "p", rejected: "b" });
    Object.defineProperty(Object.prototype, "chosen", { value: "inherited", configurable: true });
    try {
      await expect(readComparisons(file)).rejects.toMatchObject({ code: "COLUMN" });
    } finally {
      delete (Object.prototype as { chosen?: unknown }).chosen;
    }
  });
});

describe("rows of completions", () => {
  const row: CompletionRow = {
    prompt: "p",
    completion: " q",
    prompt_ids: [1, 2],
    completion_ids: [3],
    temperature: 0.7,
    logprobs: [Math.fround(-0.1)],
  };

  test("keep log-probs to the bit", async () => {
    const logprobs = [...Float32Array.of(-1e-45, -0.1, -3.4e38, -1 / 3)];
    await writeCompletions(file, [{ ...row, completion_ids: [1, 2, 3, 4], logprobs, truncated_logprobs: logprobs }]);
    expect((await readCompletions(file))[0].logprobs).toEqual(logprobs);
    expect((await readCompletions(file))[0].truncated_logprobs).toEqual(logprobs);
  });

  test("group by prompt in the order of the file", () => {
    const rows = [row, { ...row, prompt_ids: [9] }, { ...row, completion: "second" }];
    expect(byPrompt(rows)).toEqual([[rows[0], rows[2]], [rows[1]]]);
  });

  test.each<[string, Partial<CompletionRow>]>([
    ["completion_ids", { completion_ids: [] }],
    ["prompt_ids", { prompt_ids: [] }],
    ["prompt_ids", { prompt_ids: [-1] }],
    ["logprobs", { logprobs: [] }],
    ["truncated_logprobs", { truncated_logprobs: [-1, -1] }],
    ["temperature", { temperature: -1 }],
    ["completion", { completion: undefined }],
  ])("are refused by the column %s", async (column, change) => {
    await writeJsonl(file, [{ ...row, ...change }]);
    await expect(readCompletions(file)).rejects.toMatchObject({
      code: "COLUMN",
      message: expect.stringContaining(`:1: the column "${column}"`),
    });
  });
});
