import { describe, expect, test } from "@jest/globals";
import { clean, cutPrompts, stateOfTheUnion } from "../../lib/data/corpus.js";
import { Random } from "../../lib/device/philox.js";
import { trainBpe } from "../../lib/tokenizer/bpe.js";
import { Tokenizer } from "../../lib/tokenizer/tokenizer.js";
import { seed } from "../random.js";

const corpus = stateOfTheUnion();
const tokenizer = new Tokenizer(
  trainBpe(
    corpus.train.slice(0, 30).map(({ text }) => text),
    { vocabulary: 1000 },
  ),
);
const cut = (options: { count: number; minTokens: number; maxTokens: number }, from = seed) =>
  cutPrompts(corpus.heldOut, tokenizer, { ...options, random: new Random(from, 3) });

describe("the addresses", () => {
  test("fall into three parts that share none, the same ones every time", () => {
    const parts = [corpus.train, corpus.heldOut, corpus.evaluation];
    const indices = parts.flat().map(({ index }) => index);
    expect(new Set(indices).size).toBe(indices.length);
    expect(parts.map((part) => part.length)).toEqual([187, 23, 23]);
    expect(new Set(parts.flat().map(({ text }) => text)).size).toBe(indices.length);
    expect(corpus.heldOut[0]).toMatchObject({ index: 3, year: 1793, speaker: "George Washington" });
    expect(stateOfTheUnion()).toEqual(corpus);
  });

  test("are clean", () => {
    expect(clean("\u201cIt\u2019s [Laughter]  \u0002here\u201d \n[Applause.]  [see note]")).toBe(
      '"It\'s here" [see note]',
    );
    for (const { text } of [...corpus.train, ...corpus.heldOut, ...corpus.evaluation]) {
      expect(text).toBe(text.trim());
      expect(text).not.toMatch(/\s\s|[\u2018\u2019\u201c\u201d]|(?! )[\s\p{Cc}]/u);
    }
  });
});

describe("prompts", () => {
  test("stand in their address, begin and end at words, and are encoded as they are", () => {
    const prompts = cut({ count: 300, minTokens: 4, maxTokens: 12 });
    expect(prompts.length).toBe(300);
    expect(new Set(prompts.map(({ source, offset }) => `${source}:${offset}`)).size).toBe(300);
    for (const { text, ids, source, offset } of prompts) {
      const address = corpus.heldOut.find(({ index }) => index === source)!;
      expect(address.text.startsWith(text, offset)).toBe(true);
      expect(address.text[offset + text.length]).toBe(" ");
      expect(ids.length).toBeGreaterThanOrEqual(4);
      expect(ids.length).toBeLessThanOrEqual(12);
      expect(tokenizer.encode(text)).toEqual(ids);
      // What follows continues with a word of its own, so its ids are the same with and without the prompt.
      const rest = address.text.slice(offset + text.length, offset + text.length + 40);
      expect([...tokenizer.encode(text + rest)]).toEqual([...ids, ...tokenizer.encode(rest)]);
    }
    expect(new Set(prompts.map(({ ids }) => ids.length)).size).toBeGreaterThan(5);
  });

  test("are the same for the same random numbers, others for others", () => {
    const options = { count: 20, minTokens: 4, maxTokens: 12 };
    expect(cut(options)).toEqual(cut(options));
    expect(cut(options, seed + 1)).not.toEqual(cut(options));
  });

  test("are refused where lengths are wrong or the text has no room", () => {
    expect(() => cut({ count: 1, minTokens: 5, maxTokens: 4 })).toThrow(expect.objectContaining({ code: "RANGE" }));
    expect(() => cut({ count: 1, minTokens: 0, maxTokens: 4 })).toThrow(expect.objectContaining({ code: "RANGE" }));
    const short = [{ index: 0, year: 1790, speaker: "", text: "Only a few words here" }];
    expect(() =>
      cutPrompts(short, tokenizer, { count: 9, minTokens: 1, maxTokens: 4, random: new Random(seed, 3) }),
    ).toThrow(expect.objectContaining({ code: "RANGE" }));
  });
});
