import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import { root } from "../../lib/device/native.js";
import { areQuick, familiarPatterns } from "../../lib/tokenizer/pipeline.js";
import { Tokenizer, type TokenizerJson } from "../../lib/tokenizer/tokenizer.js";
import { Documents } from "../../lib/rlhf/batch/rows.js";
import { peerPython } from "../python.js";
import { seed } from "../random.js";

// Tokenizers built as those of the families are, held to HF's own: test/fixtures, made by tokenizers_of_families.py.

interface Expected {
  ids: number[][];
  special: number[][];
  random: number[][];
  decoded: string[];
  plain: string[];
}

const folder = join(root, "test/fixtures/tokenizers");
const file = (name: string) => join(folder, `${name}.json`);
const read = (name: string) => JSON.parse(readFileSync(file(name), "utf8")) as unknown;
const { texts, ...expected } = read("expected") as { texts: string[] } & Record<string, Expected>;
const python = peerPython("tokenizers", "a thousand texts against HF's tokenizers");

const piece = fc.oneof(
  fc.constantFrom(...texts, " ", "\n", "a", "1", "'", "\ud83d", "\udc69"),
  fc.string({ unit: "grapheme", maxLength: 5 }),
  fc.string(),
);
const anyText = fc.array(piece, { maxLength: 6 }).map((pieces) => pieces.join(""));
const wellFormed = (text: string) => text.replace(/\p{Surrogate}/gu, "\ufffd");

test("every tokenizer that is there has what is expected of it", () => {
  const names = readdirSync(folder).map((name) => name.replace(".json", ""));
  expect(names.sort()).toEqual([...Object.keys(expected), "expected"].sort());
});

test.each(familiarPatterns)("a text is cut in a time that grows as it does, by %s", (pattern) => {
  const cut = new RegExp(pattern.replace("(?i:", "(?:"), "gu");
  for (const run of [" ", "\n", "A", "a", "狐", "1", "/", "'", " \t", "aA", "\t\n"]) {
    const begun = performance.now();
    run.repeat(200_000).match(cut);
    expect(performance.now() - begun).toBeLessThan(5000); // were it quadratic, these would be 10^10 steps back
  }
});

describe.each(Object.keys(expected))("%s", (name) => {
  const json = read(name) as TokenizerJson;
  const tokenizer = new Tokenizer({ tokenizer: json, tokenizerConfig: {} }, name);
  const wanted = expected[name];

  test("encodes hard texts as HF's tokenizers does", () => {
    for (const [i, text] of texts.entries()) {
      expect({ text, ids: [...tokenizer.encode(text)] }).toEqual({ text, ids: wanted.ids[i] });
      expect({ text, special: [...tokenizer.encode(text, { special: true })] }).toEqual({
        text,
        special: wanted.special[i],
      });
    }
  });

  test("begins a plain prompt as transformers does, one that a template rendered as it stands", async () => {
    const before = (config: object) => new Tokenizer({ tokenizer: json, tokenizerConfig: { ...config } }, name);
    for (const [i, text] of texts.entries()) {
      if (text === "" && wanted.special[i].length === 0) continue;
      expect({ text, prompt: [...tokenizer.encodePrompt(text)] }).toEqual({ text, prompt: wanted.special[i] });
      if (text === "") continue;
      expect([...tokenizer.encodePrompt(text, { rendered: true })]).toEqual(wanted.ids[i]);
      expect([...before({ add_bos_token: false }).encodePrompt(text)]).toEqual(wanted.ids[i]);
    }
    expect(tokenizer.prefix.length).toBe(/llama|mistral/.test(name) ? 1 : 0);
    const [one, other] = ["a", "b"].map((text) => [...tokenizer.encode(text)]);
    const ended = before({ eos_token: Object.keys(json.model.vocab)[2] });
    const documents = await Documents.read(["a", "b"], ended);
    expect(Array.from(documents.slice(0, documents.length))).toEqual(
      tokenizer.prefix.length > 0
        ? [...tokenizer.prefix, ...one, ended.eosId, ...tokenizer.prefix, ...other]
        : [ended.eosId, ...one, ended.eosId, ...other],
    );
  });

  test("cuts by a familiar pattern, so that texts need no limit of time", () =>
    expect(areQuick(json.normalizer, json.pre_tokenizer, json.decoder)).toBe(true));

  test("decodes any ids as HF's tokenizers does, and streams to the same", () => {
    for (const [i, ids] of wanted.random.entries()) {
      expect({ ids, text: tokenizer.decode(ids) }).toEqual({ ids, text: wanted.decoded[i] });
      expect({ ids, text: tokenizer.decode(ids, { skipSpecial: true }) }).toEqual({ ids, text: wanted.plain[i] });
      const stream = tokenizer.stream();
      expect(ids.map((id) => stream.push(id)).join("") + stream.end()).toBe(wanted.decoded[i]);
    }
  });

  test("takes a lone surrogate for U+FFFD", () => {
    for (const text of ["\ud83d", "a\ude00b", "\ud83d \ud83d", "\udc69\u200d👩"])
      expect(tokenizer.encode(text)).toEqual(tokenizer.encode(wellFormed(text)));
  });

  (python ? test : test.skip)("encodes a thousand texts more as HF's tokenizers does", () => {
    const more = fc.sample(anyText, { seed, numRuns: 1000 });
    const input = JSON.stringify(more.map(wellFormed));
    const { stdout, stderr } = spawnSync(python!, [join(root, "test/fixtures/check_tokenizer.py"), file(name)], {
      input,
      encoding: "utf8",
      maxBuffer: 2 ** 26,
    });
    if (stdout === "") throw new Error(stderr);
    for (const [i, ids] of (JSON.parse(stdout) as number[][]).entries())
      expect({ seed, text: more[i], ids: [...tokenizer.encode(more[i])] }).toEqual({ seed, text: more[i], ids });
  });
});
