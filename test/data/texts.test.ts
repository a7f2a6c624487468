import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { parquetWriteFile } from "hyparquet-writer";
import { schema } from "../../lib/cli/config/schema.js";
import { labelAll } from "../../lib/cli/stages/label.js";
import { readRows } from "../../lib/data/jsonl.js";
import { readComparisons, readDemonstrations, readPrompts } from "../../lib/data/preferences.js";
import { trainBpe } from "../../lib/tokenizer/bpe.js";
import { ChatTemplate } from "../../lib/tokenizer/chat.js";
import { Tokenizer } from "../../lib/tokenizer/tokenizer.js";
import { Comparisons } from "../../lib/rlhf/batch/rows.js";
import { sliceOf } from "../../lib/data/spool.js";
import type { ComparisonRow } from "../../lib/data/preferences.js";

let folder: string;
let file: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-texts-"));
  file = join(folder, "rows.jsonl");
});
afterAll(() => rm(folder, { recursive: true }));

const write = (...rows: object[]) => writeFile(file, rows.map((row) => JSON.stringify(row)).join("\n"));
const files = trainBpe(["the text of a tokenizer"], { vocabulary: 260, specials: ["<|endoftext|>"] });
const chatMl =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const tokenizer = new Tokenizer({ ...files, tokenizerConfig: { ...files.tokenizerConfig, chat_template: chatMl } });
const chat = () => tokenizer.chat;
const comparisons = async (rows: readonly ComparisonRow[], softLabels = true) => {
  using all = await Comparisons.read(rows, tokenizer, { softLabels });
  return sliceOf(all, 0, all.length);
};
const defaults = () => schema.parse({});
const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });

describe("a comparison without a prompt column", () => {
  const pair = async (chosen: string, rejected: string) => {
    await write({ chosen, rejected });
    return (await readComparisons(file))[0];
  };

  test("is split before the word in which the texts part, and never leaves an empty completion", async () => {
    expect(await pair("I like cats", "I like cars")).toEqual({ prompt: "I like", chosen: " cats", rejected: " cars" });
    expect(await pair("We go", "We go on")).toEqual({ prompt: "We", chosen: " go", rejected: " go on" });
    expect(await pair("cats", "cars")).toEqual({ prompt: "", chosen: "cats", rejected: "cars" });
    expect(await pair("a\n\nb c", "a\n\nd")).toEqual({ prompt: "a", chosen: "\n\nb c", rejected: "\n\nd" });
  });

  test("that is a transcript is split where the assistant's turn opens", async () => {
    const prompt = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: Well?\n\nAssistant:";
    expect(await pair(`${prompt} I will.`, `${prompt} I won't.`)).toEqual({
      prompt,
      chosen: " I will.",
      rejected: " I won't.",
    });
  });

  test("of conversations is split at the last turn that they share", async () => {
    await write({ chosen: [user("a"), assistant("b")], rejected: [user("a"), assistant("c"), user("d")] });
    expect(await readComparisons(file, chat)).toEqual([
      {
        prompt: "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
        chosen: "b<|im_end|>\n",
        rejected: "c<|im_end|>\n<|im_start|>user\nd<|im_end|>\n",
        rendered: true,
      },
    ]);
  });
});

describe("conversations", () => {
  test("are rendered by the model's template, a prompt with what opens the answer", async () => {
    const prompt = [{ role: "system", content: "s" }, user("q")];
    const text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
    await write({ prompt, completion: [assistant("yes")] });
    expect(await readPrompts(file, chat)).toEqual([{ prompt: text, rendered: true }]);
    expect(await readDemonstrations(file, chat)).toEqual([
      { prompt: text, completion: "yes<|im_end|>\n", rendered: true },
    ]);
  });

  test("that end with words of the assistant go on from those", async () => {
    await write({ prompt: [user("q"), assistant("Well, ")] });
    expect(await readPrompts(file, chat)).toEqual([
      { prompt: "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nWell, ", rendered: true },
    ]);
    const trimming = new ChatTemplate(
      "{% for message in messages %}[{{ message['content'] | trim }}]{% endfor %}",
      {},
      "trimming",
    );
    expect(trimming.render([user("q"), assistant(" Well, ")], { open: true })).toBe("[q][Well,"); // as transformers 5 does
  });

  test("are refused by name without a template, or mixed with texts", async () => {
    await write({ prompt: [user("q")], chosen: [assistant("a")], rejected: [assistant("b")] });
    await expect(readComparisons(file)).rejects.toMatchObject({
      code: "COLUMN",
      message: expect.stringContaining("chat template"),
    });
    await expect(readComparisons(file, () => new Tokenizer(files).chat)).rejects.toMatchObject({ code: "CHAT" });
    await write({ prompt: "q", chosen: [assistant("a")], rejected: [assistant("b")] });
    await expect(readComparisons(file, chat)).rejects.toMatchObject({
      code: "COLUMN",
      message: expect.stringContaining('"prompt" is a text'),
    });
    await write({ prompt: [user("q")], chosen: [assistant("a")], rejected: "b" });
    await expect(readComparisons(file, chat)).rejects.toMatchObject({
      code: "COLUMN",
      message: expect.stringContaining("mix"),
    });
  });
});

test("an empty prompt begins with BOS, or else with the end of the text before, or is refused", () => {
  const withConfig = (tokenizerConfig: object) => new Tokenizer({ ...files, tokenizerConfig: { ...tokenizerConfig } });
  const end = tokenizer.id("<|endoftext|>")!;
  expect([...withConfig({ eos_token: "<|endoftext|>" }).encodePrompt("")]).toEqual([end]);
  expect([...withConfig({ bos_token: "t", eos_token: "<|endoftext|>" }).encodePrompt("")]).toEqual([tokenizer.id("t")]);
  expect(() => withConfig({}).encodePrompt("")).toThrow(
    expect.objectContaining({ code: "TOKENIZER", message: expect.stringContaining("prompt is empty") }),
  );
});

test("comparisons without a prompt are units of their own, also where all of a file hang together by their completions", async () => {
  const pair = (chosen: string, rejected: string, prompt = "") => ({ prompt, chosen, rejected });
  const units = async (...rows: ReturnType<typeof pair>[]) =>
    (await comparisons(rows)).map(({ episodes, pairs }) => [episodes.length, pairs.length]);
  expect(await units(pair("a", "b"), pair("c", "d"), pair("e", "d"))).toEqual([
    [2, 1],
    [2, 1],
    [2, 1],
  ]);
  expect(await units(pair("a", "b", "p"), pair("c", "d", "p"))).toEqual([[4, 2]]);
});

test("a completion ends with the token that ends a text, but for one that a template closed, or that was sampled without", async () => {
  const end = tokenizer.eosId!;
  const learnt = async (row: object) => {
    await write(row);
    return (await comparisons(await readComparisons(file, chat)))[0].episodes.map(({ completion }) => completion);
  };
  const plain = [" a", " b"].map((text) => tokenizer.encode(text));
  const ended = plain.map((ids) => Int32Array.of(...ids, end));
  const row = { prompt: "q", chosen: " a", rejected: " b" };
  expect(await learnt(row)).toEqual(ended);
  expect(await learnt({ prompt: "q", ranking: [" a", " b"] })).toEqual(ended);
  expect(await learnt({ ...row, chosen: " a<|endoftext|>" })).toEqual(ended);
  expect(await learnt({ ...row, chosen: " a<|endoftext|>", sampled: true })).toEqual([ended[0], plain[1]]);
  const [one] = await learnt({ prompt: [user("q")], chosen: [assistant("a")], rejected: [assistant("b")] });
  expect(tokenizer.decode(one)).toBe("a<|im_end|>\n");
  await expect(learnt({ ...row, sampled: "no" })).rejects.toMatchObject({
    code: "COLUMN",
    message: expect.stringContaining('"sampled"'),
  });
});

test("comparisons of sampled completions keep their ends: those that were cut have none", async () => {
  const sampled = (completion: string) => ({
    prompt: "q",
    completion,
    prompt_ids: [1],
    completion_ids: [2],
    temperature: 1,
    logprobs: [-1],
  });
  const { label, seed } = defaults();
  const rows = await labelAll([sampled(" a good day<|endoftext|>"), sampled(" a bad day")], { label, seed });
  expect(rows).toMatchObject([{ prompt: "q", sampled: true }]);
  const ends = (await comparisons(rows))[0].episodes.map(
    ({ completion }) => Array.from(completion).at(-1) === tokenizer.eosId,
  );
  expect([ends.length, ends.filter(Boolean).length]).toEqual([2, 1]);
});

test("comparisons of a prompt are one unit wherever they stand; rankings are units of their own", async () => {
  const pair = (prompt: string, chosen: string, rejected: string) => ({ prompt, chosen, rejected });
  const weights = async (...rows: ComparisonRow[]) => (await comparisons(rows)).map(({ pairs }) => pairs.length);
  const [first, second, other] = [pair("p", "a", "b"), pair("p", "c", "d"), pair("q", "e", "f")];
  expect(await weights(first, second, other)).toEqual([2, 1]);
  expect(await weights(first, other, second)).toEqual([2, 1]);
  expect(await weights(pair("", "a", "b"), other, pair("", "b", "c"))).toEqual([1, 1, 1]);
  const ranked = { prompt: "p", ranking: ["a", "b", "c"] };
  expect(await weights(first, ranked, second)).toEqual([2, 3]);
  expect(await weights(ranked, first, second)).toEqual([3, 2]);
});

test("the majority alone is learnt where labels are not soft: turned where it is the other way, nothing where there is none", async () => {
  const rows = [0.2, 0.5, 0.9, undefined].map((agreement, i) => ({
    prompt: `p${i}`,
    chosen: "a",
    rejected: "b",
    agreement,
    margin: 2,
  }));
  const [a, b] = ["a", "b"].map((text) => [...tokenizer.encode(text)]);
  const learnt = async (soft: boolean) =>
    (await comparisons(rows, soft)).map(({ episodes, pairs: [{ chosen, rejected, label, margin }] }) => {
      const text = (place: number) => (episodes[place].completion[0] === a[0] ? "a" : "b");
      return [text(chosen), text(rejected), label, margin];
    });
  expect(b).not.toEqual(a);
  expect(await learnt(false)).toEqual([
    ["b", "a", undefined, -2],
    ["a", "b", undefined, 2],
    ["a", "b", undefined, 2],
  ]);
  expect((await learnt(true)).map(([, , label]) => label)).toEqual([0.2, 0.5, 0.9, undefined]);
});

test.each(["UNCOMPRESSED", "SNAPPY"] as const)(
  "Parquet holds the same rows as JSONL, row group by row group: %s",
  async (codec) => {
    const rows = Array.from({ length: 25 }, (_, i) => ({
      prompt: `p${i}`,
      chosen: `\u00e9 ${i}`,
      rejected: "b",
      agreement: 0.5 + i / 50,
      margin: i % 3 ? i : null,
    }));
    const columns = ["prompt", "chosen", "rejected", "agreement", "margin"] as const;
    parquetWriteFile({
      filename: join(folder, "rows.parquet"),
      columnData: columns.map((name) => ({
        name,
        data: rows.map((row) => row[name]),
        type: ["agreement", "margin"].includes(name) ? "DOUBLE" : "STRING",
      })),
      rowGroupSize: 10,
      codec,
    });
    await write(...rows);
    expect(await readComparisons(join(folder, "rows.parquet"))).toEqual(await readComparisons(file));
    await writeFile(join(folder, "torn.parquet"), "PAR1 and nothing of it");
    await expect(readRows(join(folder, "torn.parquet"), () => 0)).rejects.toMatchObject({
      code: "PARQUET",
      message: expect.stringContaining("torn.parquet"),
    });
  },
);

test("Parquet holds conversations too, and its 64-bit integers are numbers", async () => {
  const filename = join(folder, "chat.parquet");
  parquetWriteFile({
    filename,
    columnData: [
      { name: "prompt", data: [[user("q")]], type: "JSON" },
      { name: "n", data: [7n], type: "INT64" },
    ],
  });
  expect(await readPrompts(filename, chat)).toEqual([
    { prompt: "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", rendered: true },
  ]);
  expect(await readRows(filename, ({ value }) => value.n)).toEqual([7]);
});

test("gzipped JSONL is read, and a torn one is an error that names the file", async () => {
  const zipped = gzipSync('{"prompt":"a"}\n{"prompt":"b"}\n');
  await writeFile(join(folder, "a.jsonl.gz"), zipped);
  expect(await readPrompts(join(folder, "a.jsonl.gz"))).toEqual([{ prompt: "a" }, { prompt: "b" }]);
  await writeFile(join(folder, "a.jsonl.gz"), zipped.subarray(0, -9));
  await expect(readPrompts(join(folder, "a.jsonl.gz"))).rejects.toMatchObject({
    code: "FILE",
    message: expect.stringContaining("a.jsonl.gz"),
  });
});
