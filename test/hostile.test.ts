import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { parquetWriteBuffer } from "hyparquet-writer";
import { readConfig } from "../lib/cli/config/config.js";
import { rowsOf } from "../lib/data/jsonl.js";
import { LabelLog } from "../lib/data/label_log.js";
import { root } from "../lib/device/native.js";
import { device, loadModel, Tokenizer, trainBpe, type Device } from "../lib/index.js";
import { ChatTemplate } from "../lib/tokenizer/chat.js";
import { stopIds } from "../lib/cli/model.js";
import { readSafetensors, readSafetensorsFile } from "../lib/model/safetensors.js";
import type { TokenizerJson } from "../lib/tokenizer/tokenizer.js";

// Files that ask for more memory or time than any honest one. Each ends in an error with a code,
// and the process goes on.

let folder: string;
let on: Device;
beforeAll(async () => {
  on = await device("cpu", { threads: 1 });
  folder = await mkdtemp(join(tmpdir(), "rlhf-hostile-"));
});
afterAll(async () => {
  await on.close();
  await rm(folder, { recursive: true });
});
const at = (name: string) => join(folder, name);

/** The code of the refusal, or nothing. The file is named. */
async function refusal(work: () => unknown, name: string): Promise<string | undefined> {
  try {
    await work();
    return undefined;
  } catch (error) {
    const { code, message } = error as Error & { code?: string };
    if (!(error instanceof TypeError || error instanceof RangeError) || !code) throw error;
    expect(message).toContain(name);
    expect(message.length).toBeLessThan(2000);
    return code;
  }
}

const grown = (times: number, rest: string, first = "'ab'") =>
  `{% set ns = namespace(s=${first}, l=[1]) %}{% for i in range(${times}) %}{% set ns.s = ns.s + ns.s %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}${rest}`;
const templates: Record<string, string> = {
  "a text that doubles": grown(60, ""),
  "a list that doubles": grown(60, "", "[1, 2]"),
  "texts that double in a list":
    "{% set ns = namespace(s='aa', l=[]) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% set ns.l = ns.l + [ns.s | upper] %}{% endfor %}",
  "a list of itself twice, written": grown(
    20,
    "{% for i in range(3) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
  ),
  "a list of itself twice, compared": grown(24, "{{ ns.l == 'x' }}", "''"),
  "a list of itself twice, joined": grown(24, "{% set x = ns.l | join %}", "''"),
  "a list of itself twice, as JSON": grown(24, "{% set x = ns.l | tojson %}", "''"),
  "a namespace that holds itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
  "a billion numbers": "{% set x = range(10 ** 9) %}",
  "a loop within a loop": "{% for i in range(10 ** 5) %}{% for j in range(10 ** 5) %}{% endfor %}{% endfor %}",
  "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
  "a macro that calls itself twice":
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
  "replacements that multiply": grown(20, "{% set x = ns.s.replace('a', ns.s) %}"),
  "replacements of nothing": grown(20, "{% set x = ns.s | replace('', ns.s) %}"),
  "a method that was kept": grown(20, "{% set f = ns.s.replace %}{% call f('a', ns.s) %}{% endcall %}"),
  "a method whose name is put together": grown(20, "{% set x = ns.s['rep' ~ 'lace']('a', ns.s) %}"),
  "an indent of a billion": "{{ 'a\\nb' | indent(10 ** 9) }}",
  "JSON with an indent of a billion": "{{ [[1]] | tojson(indent=10 ** 9) }}",
  "a long separator": grown(20, "{% set x = range(10000) | join(separator=ns.s) %}"),
  "many slices": grown(20, "{% for i in range(1000) %}{% set ns.l = [ns.l, ns.s[1:]] %}{% endfor %}"),
  "many pieces": grown(20, "{% for i in range(1000) %}{% set ns.l = [ns.l, ns.s.split('a')] %}{% endfor %}"),
  "methods of many texts":
    "{% set ns = namespace(l=[]) %}{% for i in range(10 ** 5) %}{% set x = 'a' ~ i %}{% set y = x.strip %}{% set ns.l = [ns.l, x] %}{% endfor %}",
  "a search that goes back": grown(
    20,
    "{% set p = 'b' ~ ns.s %}{% for i in range(1000) %}{% set x = p in ns.s ~ ns.s %}{% endfor %}",
    "'aa'",
  ),
  "names that are unknown": "{% for i in range(10 ** 7) %}{{ nothing }}{% endfor %}",
  "an error of 16 million characters": grown(23, "{{ raise_exception(ns.s) }}", "''").replace("s=''", "s='ab'"),
  "nesting without end": `{{ ${"(".repeat(1e5)} }}`,
  "filters without end": `{{ 'a'${"|upper".repeat(4e4)} }}`,
  "white space without end": " ".repeat(2e5),
  "a template of a million characters": "a".repeat(1e6),
};

describe("a chat template", () => {
  // in a process of its own with a small heap: what takes more ends it
  test("of a few bytes that asks for all memory or time is refused, and the process goes on", async () => {
    const script = `
      const { ChatTemplate } = await import(${JSON.stringify(pathToFileURL(join(root, "dist/lib/tokenizer/chat.js")).href)});
      const { readFileSync } = await import("node:fs");
      const told = {};
      for (const [name, source] of Object.entries(JSON.parse(readFileSync(process.argv[1], "utf8"))))
        try {
          told[name] = new ChatTemplate(source, {}, "tokenizer.json").render([{ role: "user", content: "a" }]).slice(0, 100);
        } catch ({ code, message }) {
          told[name] = message.length < 1000 && message.includes("tokenizer.json") ? code : message.slice(0, 1000);
        }
      console.log(JSON.stringify(told));`;
    await writeFile(at("templates.json"), JSON.stringify(templates));
    const { stdout } = await promisify(execFile)(process.execPath, [
      "--max-old-space-size=400",
      "--input-type=module",
      "-e",
      script,
      at("templates.json"),
    ]);
    expect(JSON.parse(stdout)).toEqual(Object.fromEntries(Object.keys(templates).map((name) => [name, "CHAT"])));
  }, 120_000);

  test("whose every row takes a little too much is stopped; one that takes its time for much text is not", async () => {
    const row = [{ role: "user", content: "a" }];
    const slow = new ChatTemplate(
      "{% for i in range(20000) %}{% endfor %}{{ messages[0].content }}",
      {},
      "tokenizer.json",
    );
    expect(slow.render(row)).toBe("a");
    expect(await refusal(() => Array.from({ length: 100 }, () => slow.render(row)), "tokenizer.json")).toBe("CHAT");
    const honest = new ChatTemplate(
      "{% for message in messages %}{% if message.role == 'user' and not message.name %}{{ '<' + message.role + '>' + message.content | trim + '\\n' }}{% endif %}{% endfor %}",
      {},
      "tokenizer.json",
    );
    for (let i = 0; i < 20_000; i++) expect(honest.render(row)).toBe("<user>a\n");
    const many = Array.from({ length: 10_000 }, () => row[0]);
    expect(honest.render(many).length).toBe(8 * many.length);
    const long = [{ role: "user", content: "word ".repeat(2 ** 20) }];
    for (let i = 0; i < 20; i++) expect(honest.render(long).length).toBe(5 * 2 ** 20 + 6);
  });
});

describe("a tokenizer", () => {
  const { tokenizer, tokenizerConfig } = trainBpe(["aaaa"], { vocabulary: 258 });
  const split = (Regex: string) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false });
  const normalizers = (...steps: object[]) => ({ normalizer: { type: "Sequence", normalizers: steps } });
  const deep = (type: string, parts: string): never =>
    JSON.parse(`${`{"type":"${type}","${parts}":[`.repeat(1e5)}${"]}".repeat(1e5)}`) as never;
  test.each<[string, Partial<TokenizerJson>]>([
    ["a hundred thousand beginnings", normalizers(...Array<object>(1e5).fill({ type: "Prepend", prepend: "ab" }))],
    ["a beginning of a million characters", normalizers({ type: "Prepend", prepend: "a".repeat(1e6) })],
    ["a hundred thousand steps", normalizers(...Array<object>(1e5).fill({ type: "Lowercase" }))],
    [
      "forms of Unicode that grow again",
      normalizers(
        ...Array.from({ length: 40 }, (_, i) =>
          i % 2 ? { type: "NFKD" } : { type: "Replace", pattern: { String: "\u0627" }, content: "\ufdfa" },
        ),
      ),
    ],
    ["pieces of no length", { pre_tokenizer: { type: "FixedLength", length: 0 } }],
    [
      "pieces of half a character",
      { pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "FixedLength", length: 0.5 }] } },
    ],
    [
      "a pattern that an added token makes take for ever",
      {
        normalizer: { type: "Replace", pattern: { Regex: "(a|a)*b" }, content: "" },
        added_tokens: [{ id: 300, content: "a".repeat(60), normalized: true }],
      },
    ],
    [
      "added tokens of a million characters",
      { normalizer: { type: "Lowercase" }, added_tokens: [{ id: 300, content: "a".repeat(1e6) }] },
    ],
    [
      "a special token that is null",
      {
        post_processor: {
          type: "TemplateProcessing",
          single: [{ SpecialToken: null }, { Sequence: { id: "A" } }],
          special_tokens: {},
        },
      },
    ],
    ["parts that are null", { post_processor: { type: "TemplateProcessing", single: [null], special_tokens: null } }],
    ["a nested normalizer without end", { normalizer: deep("Sequence", "normalizers") }],
    ["a nested pre-tokenizer without end", { pre_tokenizer: deep("Sequence", "pretokenizers") }],
    ["a nested post-processor without end", { post_processor: deep("Sequence", "processors") }],
    ["a nested decoder without end", { decoder: deep("Sequence", "decoders") }],
    ["a sequence of nothing", { normalizer: { type: "Sequence", normalizers: null } }],
    ["an expression that is too large", { pre_tokenizer: split(`${"(".repeat(1500)}a${")".repeat(1499)}`) }],
  ])("with %s is refused", async (_, changes) => {
    const use = () => {
      const made = new Tokenizer({ tokenizer: { ...tokenizer, ...changes }, tokenizerConfig });
      made.encodePrompt("a");
      made.decode(made.encode("aab\u0627", { special: true }));
    };
    expect(await refusal(use, "tokenizer.json")).toBe("TOKENIZER");
  });

  test("whose every text takes a little too long is stopped", async () => {
    const made = new Tokenizer({ tokenizer: { ...tokenizer, pre_tokenizer: split("(a+)+$") }, tokenizerConfig });
    const text = `${"a".repeat(23)}c`; // some tenths of a second
    expect(
      await refusal(() => Array.from({ length: 500 }, (_, i) => made.encode(`${text}${i}`)), "tokenizer.json"),
    ).toBe("TOKENIZER");
  }, 120_000);
});

describe("rows", () => {
  const read = async (file: string) => {
    let rows = 0;
    for await (const row of rowsOf(file)) rows += row ? 1 : 0;
    return rows;
  };
  const peak = async (work: () => Promise<unknown>) => {
    const before = process.memoryUsage().rss;
    await work();
    return process.memoryUsage().rss - before;
  };
  test.each(["rows.json.gz", "rows.jsonl.gz"])(
    "of a bomb, %s, are refused by their number and the limit",
    async (name) => {
      const [begin, between, end] = name === "rows.json.gz" ? ["[", ",", "]"] : ["", "\n", ""];
      const parts = [begin, '{"a":1}', between, '{"b":"', Buffer.alloc(2 ** 25, "a"), '"}', end].map((part) =>
        Buffer.from(part),
      );
      await writeFile(at(name), gzipSync(Buffer.concat(parts)));
      const grew = await peak(async () => expect(await refusal(() => read(at(name)), name)).toBe("JSON"));
      expect(grew).toBeLessThan(2 ** 28);
      await expect(read(at(name))).rejects.toThrow(/(row |:)2\b.* 16777216 bytes, the limit of a row/);
    },
  );
  test("of 600 MB in a small file are refused, and are never all in memory", async () => {
    const block = Buffer.from(`{"a":"${"b".repeat(1e5)}"},`.repeat(10));
    await writeFile(
      at("many.json.gz"),
      gzipSync(Buffer.concat([Buffer.from("["), ...Array<Buffer>(600).fill(block), Buffer.from("{}]")])),
    );
    const grew = await peak(async () =>
      expect(await refusal(() => read(at("many.json.gz")), "many.json.gz")).toBe("FILE"),
    );
    expect(grew).toBeLessThan(2 ** 28);
  }, 120_000);
  test("of a dictionary that holds one long text for all of them are refused, in bounded memory", async () => {
    const data = Array<string>(2000).fill("a".repeat(2 ** 20));
    await writeFile(
      at("rows.parquet"),
      new Uint8Array(parquetWriteBuffer({ columnData: [{ name: "prompt", data, type: "STRING" }], codec: "SNAPPY" })),
    );
    const grew = await peak(async () =>
      expect(await refusal(() => read(at("rows.parquet")), "rows.parquet")).toBe("PARQUET"),
    );
    expect(grew).toBeLessThan(2 ** 29);
  });
  test("nested without end are refused", async () => {
    const nested = `{"prompt":${"[".repeat(1e5)}${"]".repeat(1e5)}}`;
    for (const [name, text] of [
      ["deep.jsonl", nested],
      ["deep.json", `[${nested}]`],
      ["deep2.json", "[".repeat(1e5)],
    ]) {
      await writeFile(at(name), text);
      expect([undefined, "JSON"]).toContain(await refusal(() => read(at(name)), name)); // what it means is for its reader
    }
    await writeFile(at("log"), `${nested}\n`);
    expect(await refusal(() => LabelLog.open(at("log")), "log")).toBe("COLUMN");
  });
});

describe("configurations", () => {
  const nested = "[".repeat(1e5) + "]".repeat(1e5);
  const wrong: [string, string][] = [
    [
      "nested without end",
      `{"a":${nested},"model_type":${nested},"weight_map":${nested},"peft_type":${nested},"model":${nested},"eos_token_id":${nested}}`,
    ],
    ["of null", "null"],
    ["of a number", "1"],
    ["of a list", "[]"],
    ["cut off", '{"a":'],
    ["of 70 MB", `{"a":"${"b".repeat(7e7)}"}`],
  ];
  test.each(wrong)("%s are refused by every reader", async (name, text) => {
    const own = join(folder, name.replaceAll(" ", "_"));
    await mkdir(own);
    const put = (file: string) => writeFile(join(own, file), text);
    await put("tokenizer.json");
    expect(await refusal(() => Tokenizer.load(own), "tokenizer.json")).toBe("TOKENIZER");
    await put("config.json");
    expect(await refusal(() => loadModel(own), "config.json")).toBe("MODEL");
    await put("model.safetensors.index.json");
    expect(await refusal(() => readSafetensors(own), "model.safetensors.index.json")).toBe("SAFETENSORS");
    await put("generation_config.json");
    const model = { config: { eosId: 1, vocabulary: 2 } } as never;
    expect([undefined, "MODEL"]).toContain(
      await refusal(() => stopIds(own, model, { eosId: 1 } as never), "generation_config.json"),
    );
    await put("adapter_config.json");
    expect(await refusal(() => loadModel(own), "adapter_config.json")).toBe("MODEL");
    await put("config.yaml");
    expect(await refusal(() => readConfig(join(own, "config.yaml")), "config.yaml")).toBe("CONFIG");
  });

  test("with ten thousand keys, or anchors, are refused at once", async () => {
    const texts = [
      Array.from({ length: 1e4 }, (_, i) => `k${i}: 1`).join("\n"),
      `a: [${Array.from({ length: 4e3 }, (_, i) => `&a${i} 1, *a${i}`).join(", ")}]`,
      Array.from({ length: 1e6 }, (_, i) => `k${i}: 1`).join("\n"),
    ];
    for (const text of texts) {
      await writeFile(at("config.yaml"), text);
      const begun = process.cpuUsage();
      expect(await refusal(() => readConfig(at("config.yaml")), "config.yaml")).toBe("CONFIG");
      const { user } = process.cpuUsage(begun);
      expect(user).toBeLessThan(10e6);
    }
  });
});

describe("safetensors", () => {
  const header = (text: string) => {
    const bytes = Buffer.from(`        ${text}`);
    bytes.writeBigUInt64LE(BigInt(bytes.length - 8));
    return writeFile(at("x.safetensors"), bytes);
  };
  test("with a string of 16 MB are read, or refused by a code", async () => {
    for (const long of ["a".repeat(16e6), "\\n".repeat(8e6)]) {
      await header(`{"__metadata__":{"a":"${long}"}}`);
      expect((await readSafetensorsFile(at("x.safetensors"))).metadata.a.length).toBe(
        (JSON.parse(`"${long}"`) as string).length,
      );
      await header(`{"${long}":{}}`);
      await expect(readSafetensorsFile(at("x.safetensors"))).rejects.toMatchObject({ code: "SAFETENSORS" });
    }
    await header(`{"a":${"[]".repeat(1)}${" ".repeat(2 ** 25)}}`);
    expect(await refusal(() => readSafetensorsFile(at("x.safetensors")), "x.safetensors")).toBe("SAFETENSORS");
  });

  test("of 400,000 names in an index take a time that grows as their number", async () => {
    const own = join(folder, "index");
    await mkdir(own);
    const places = Array.from({ length: 400_000 }, (_, i) => `"w${i}":"a.safetensors"`); // as the square they took minutes
    await writeFile(join(own, "model.safetensors.index.json"), `{"weight_map":{${places.join()}}}`);
    expect(await refusal(() => readSafetensors(own), "a.safetensors")).toBe("SAFETENSORS");
  }, 60_000);
});
