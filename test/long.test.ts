import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { Documents } from "../lib/rlhf/batch/rows.js";
import { tasksOf } from "../lib/cli/labelling/tasks.js";
import {
  device,
  generate,
  krippendorff,
  logps,
  packEpisodes,
  packWhole,
  readComparisons,
  readDemonstrations,
  scores,
  sft,
  Tokenizer,
  trainBpe,
  Transformer,
  type Device,
  type TokenizerFiles,
} from "../lib/index.js";
import { gpt2 } from "./models.js";

// A call takes some 125,000 arguments. Texts, lists and files have more parts than that.

const LENGTH = 300_000;
const text = "ab".repeat(LENGTH / 2);
const files = trainBpe(["x"], { vocabulary: 257 });
const template = { type: "TemplateProcessing", single: [{ SpecialToken: { id: "b" } }, { Sequence: { id: "A" } }] };
const withPrefix = (ids: number[]): TokenizerFiles => ({
  ...files,
  tokenizer: { ...files.tokenizer, post_processor: { ...template, special_tokens: { b: { id: "b", ids } } } },
});

let on: Device;
let folder: string;
beforeAll(async () => {
  on = await device("cpu", { threads: 1 });
  folder = await mkdtemp(join(tmpdir(), "rlhf-long-"));
});
afterAll(async () => {
  await on.close();
  await rm(folder, { recursive: true });
});

test("a tokenizer takes prompts and completions of 300,000 tokens", async () => {
  const tokenizer = new Tokenizer(files);
  const ids = tokenizer.encode(text);
  expect(ids.length).toBe(LENGTH);
  const isSame = (found: Int32Array) => found.length === LENGTH && found.every((id, i) => id === ids[i]);
  expect(isSame(tokenizer.encodePrompt(text))).toBe(true);
  expect(isSame(tokenizer.encodeCompletion(text).subarray(0, -1))).toBe(true);
  expect(tokenizer.encodeCompletion(text).at(-1)).toBe(tokenizer.eosId);
  expect(tokenizer.decode(ids) === text).toBe(true);
  expect(isSame(new Tokenizer(withPrefix([0])).encodePrompt(text).subarray(1))).toBe(true);
  const many = new Tokenizer(withPrefix(Array<number>(LENGTH).fill(0)));
  expect(many.encodePrompt("a").length).toBe(LENGTH + 1);
  using documents = await Documents.read(["a", "b"], many);
  expect(documents.length).toBe(2 * LENGTH + 3);
});

test("a slow tokenizer takes 300,000 tokens", () => {
  const pre_tokenizer = { type: "Split", pattern: { Regex: "\\w" }, behavior: "Isolated", invert: false };
  const model = { ...files.tokenizer.model, vocab: { a: 0, b: 1 }, merges: [] };
  const slow = new Tokenizer({
    tokenizer: { ...files.tokenizer, added_tokens: [], pre_tokenizer, model },
    tokenizerConfig: {},
  });
  expect(slow.encodePrompt(text).length).toBe(LENGTH);
});

test("episodes of 300,000 tokens are packed; a model whose context is shorter refuses them with a code", async () => {
  const ids = new Int32Array(LENGTH).fill(7);
  const long = { prompt: ids, completion: ids };
  expect(packEpisodes([long]).y.length).toBe(LENGTH);
  expect(packEpisodes([[long, { prompt: ids, completion: [1] }]]).y.length).toBe(LENGTH + 1);
  expect(packWhole([long]).rows).toEqual(Int32Array.of(2 * LENGTH - 1));
  const model = Transformer.random({ ...gpt2, layers: 1 }, "logits", on, 1);
  const judge = Transformer.random({ ...gpt2, layers: 1 }, "score", on, 1);
  const schedule = { steps: 1 };
  const refused = { code: "CONTEXT", message: expect.stringMatching(/\d/) };
  await expect(
    generate(model, [{ prompt: ids, index: 0, sample: 0 }], { maxTokens: 1, seed: 1 }),
  ).rejects.toMatchObject(refused);
  await expect(logps(model, [long])).rejects.toMatchObject(refused);
  await expect(scores(judge, [long])).rejects.toMatchObject(refused);
  await expect(sft(model, () => [long], schedule).next()).rejects.toMatchObject(refused);
  for (const one of [model, judge]) one.dispose();
});

test("lists of 300,000 parts are read, compared and counted", async () => {
  expect(krippendorff([Array.from({ length: LENGTH }, (_, i) => i % 2)])).toBeCloseTo(0, 4);
  const file = join(folder, "rows.jsonl");
  const talk = Array<object>(LENGTH / 2).fill({ role: "u", content: "a" });
  await writeFile(
    file,
    JSON.stringify({
      chosen: [...talk, { role: "b", content: "c" }],
      rejected: [...talk, { role: "b", content: "d" }],
    }),
  );
  await expect(readComparisons(file)).rejects.toMatchObject({ code: "COLUMN" }); // no template
  await writeFile(file, JSON.stringify({ prompt: "a", ranking: Array.from({ length: LENGTH }, (_, i) => `${i}`) }));
  await expect(readComparisons(file)).rejects.toMatchObject({
    code: "COLUMN",
    message: expect.stringContaining("1024"),
  });
  await writeFile(
    file,
    Array.from({ length: 600 }, (_, i) => JSON.stringify({ prompt: "a", completion: `${i}` })).join("\n"),
  );
  expect((await tasksOf(file, { pairs: "all", size: 2 })).length).toBe((600 * 599) / 2);
  await writeFile(file, JSON.stringify({ prompt: text, completion: text }));
  expect((await readDemonstrations(file))[0].completion.length).toBe(LENGTH);
});
