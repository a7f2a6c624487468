import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import { stateOfTheUnion } from "../../lib/data/corpus.js";
import { byteCharacters, splitWords } from "../../lib/tokenizer/byte_level.js";
import { trainBpe } from "../../lib/tokenizer/bpe.js";
import { Tokenizer, type TokenizerFiles } from "../../lib/tokenizer/tokenizer.js";
import { Random, seed } from "../random.js";

const texts = stateOfTheUnion()
  .train.slice(0, 12)
  .map(({ text }) => text);
const files = trainBpe([...texts, "naïve café ½ cup — 東京 🙂🙂 \ufeff"], {
  vocabulary: 700,
  specials: ["<|endoftext|>", "<|pad|>", "<|end"],
});
const tokenizer = new Tokenizer(files);

/** Respells a tokenizer so that @huggingface/tokenizers carries it out. */
function throughLibrary({ tokenizer: json, tokenizerConfig }: TokenizerFiles): Tokenizer {
  return new Tokenizer({
    tokenizer: { ...json, pre_tokenizer: { type: "Sequence", pretokenizers: [json.pre_tokenizer] } },
    tokenizerConfig,
  });
}
const library = throughLibrary(files);

// White space of all kinds, U+FEFF, U+0085, numerals that are no digits, joiners, lone surrogates,
// contractions, specials.
const piece = fc.oneof(
  fc.constantFrom(
    " ",
    "  ",
    "\n",
    "\t",
    "\u0085",
    "\u00a0",
    "\ufeff",
    "\u2028",
    "\u3000",
    "½",
    "²",
    "Ⅷ",
    "٣",
    "e\u0301",
    "🙂",
    "👩‍👩‍👧",
    "\ud83d",
    "\ude00",
    "'s",
    "'ll",
    "don't",
    "'",
    "<|endoftext|>",
    "<|end",
    "<|pad|>",
    "Ġ",
    "Ċ",
    "the",
    " of",
    "1790",
    "$%",
    "\0",
    "\ufffd",
  ),
  fc.string({ unit: "binary", maxLength: 6 }),
  fc.string({ unit: "grapheme", maxLength: 4 }),
);
const anyText = fc.array(piece, { maxLength: 16 }).map((pieces) => pieces.join(""));
const wellFormed = (text: string) => text.replace(/\p{Surrogate}/gu, "\ufffd");

describe("training", () => {
  test("learns what counting every pair anew at each step learns", () => {
    const random = new Random("bpe");
    for (let round = 0; round < 20; round++) {
      const letters = ["a", "a", "b", " ", "b", "c", " ", "\n"];
      const documents = Array.from({ length: 3 }, () =>
        Array.from({ length: 60 }, () => random.pick(letters)).join(""),
      );
      const vocabulary = 256 + 1 + random.below(40);
      const trained = trainBpe(documents, { vocabulary }).tokenizer;
      expect({ seed, merges: trained.model.merges }).toEqual({ seed, merges: naive(documents, vocabulary) });
    }
  });

  test("gives ids to special tokens, bytes by code point, then merges, one each", () => {
    const { vocab } = files.tokenizer.model;
    expect(Object.values(vocab).sort((a, b) => a - b)).toEqual(Array.from({ length: 700 }, (_, id) => id));
    expect([vocab["<|endoftext|>"], vocab["<|pad|>"], vocab["!"], vocab["Ń"]]).toEqual([0, 1, 3, 258]);
  });

  test("ends early where no pair is left", () => {
    expect(new Tokenizer(trainBpe(["ab"], { vocabulary: 1000 })).vocabularySize).toBe(258);
  });

  test("refuses a vocabulary without room for the bytes, and special tokens that are empty, doubled or bytes", () => {
    expect(() => trainBpe([], { vocabulary: 256 })).toThrow(
      expect.objectContaining({ code: "RANGE", message: expect.stringContaining("257") }),
    );
    for (const specials of [[""], ["<a>", "<a>"], ["a"]])
      expect(() => trainBpe([], { vocabulary: 1000, specials })).toThrow(
        expect.objectContaining({ code: "TOKENIZER" }),
      );
  });
});

describe("encoding", () => {
  test("agrees with @huggingface/tokenizers on any text", () => {
    fc.assert(
      fc.property(anyText, (text) => expect([...tokenizer.encode(text)]).toEqual([...library.encode(text)])),
      { seed, numRuns: 3000 },
    );
  });

  test("agrees with it on real text", () => {
    for (const text of texts) expect(tokenizer.encode(text)).toEqual(library.encode(text));
  });

  test("is undone by decoding, but for lone surrogates, which become U+FFFD", () => {
    fc.assert(
      fc.property(anyText, (text) => expect(tokenizer.decode(tokenizer.encode(text))).toBe(wellFormed(text))),
      { seed, numRuns: 3000 },
    );
  });

  test("cuts text into words that joined are the text", () => {
    fc.assert(
      fc.property(anyText, (text) => expect(splitWords(text).join("")).toBe(text)),
      { seed },
    );
  });

  test("takes U+0085 for white space and U+FEFF for a sign, unlike JavaScript's own \\s", () => {
    expect(splitWords("a\ufeff$ \u0085b ½'s  x")).toEqual(["a", "\ufeff$", " ", "\u0085", "b", " ½", "'s", " ", " x"]);
  });

  test("takes a word of a hundred thousand letters, and no text", () => {
    const long = "ab".repeat(50_000);
    expect(tokenizer.decode(tokenizer.encode(long))).toBe(long);
    expect(tokenizer.encode("")).toEqual(new Int32Array(0));
    expect(tokenizer.decode([])).toBe("");
  });

  test("takes the longest special token that the text spells out", () => {
    expect([...tokenizer.encode("<|endoftext|><|end<|pad|>")]).toEqual([0, 2, 1]);
  });

  test("refuses what is no string", () => {
    expect(() => tokenizer.encode(7 as unknown as string)).toThrow(expect.objectContaining({ code: "TYPE" }));
  });
});

describe("decoding", () => {
  const anyIds = fc.array(fc.nat({ max: 699 }), { maxLength: 40 });

  test("agrees with @huggingface/tokenizers where the bytes are UTF-8, and streams to the same text always", () => {
    fc.assert(
      fc.property(
        fc.oneof(
          anyIds,
          anyText.map((text) => [...tokenizer.encode(text)]),
        ),
        (ids) => {
          const stream = tokenizer.stream();
          expect(ids.map((id) => stream.push(id)).join("") + stream.end()).toBe(tokenizer.decode(ids));
        },
      ),
      { seed, numRuns: 2000 },
    );
    for (const text of texts) expect(tokenizer.decode(library.encode(text))).toBe(text);
  });

  test("streams whole characters only", () => {
    const stream = tokenizer.stream();
    const pieces = [...tokenizer.encode("a🜚b")].map((id) => stream.push(id));
    expect(pieces.join("")).toBe("a🜚b");
    expect(pieces.every((one) => !one.includes("\ufffd"))).toBe(true);
  });

  test("cleans nothing up", () => {
    const text = "it is n't , well ; so .  \ufeffend";
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    expect(tokenizer.decode([0, ...tokenizer.encode("a"), 1], { skipSpecial: true })).toBe("a");
  });

  test("gives no text to an id of a padded vocabulary", () => {
    const [a, b] = ["a", " b"].map((text) => [...tokenizer.encode(text)]);
    const ids = [...a, 700, 2 ** 20, ...b];
    for (const one of [tokenizer, library]) {
      expect(one.decode(ids)).toBe("a b");
      const stream = one.stream();
      expect(ids.map((id) => stream.push(id)).join("") + stream.end()).toBe("a b");
    }
    expect(tokenizer.decode([700])).toBe("");
  });

  test.each([-1, 1.5, Number.NaN])("refuses the id %p", (id) => {
    expect(() => tokenizer.decode([5, id])).toThrow(
      expect.objectContaining({ code: "ID", message: expect.stringContaining(`${id}`) }),
    );
  });
});

describe("other tokenizers", () => {
  // SentencePiece's BPE as Llama 2 has it: a space is "▁", unknown characters fall back to bytes.
  const pieces = [
    "<unk>",
    "<s>",
    "</s>",
    ...Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`),
    "▁",
    "a",
    "b",
    "▁a",
    "ab",
    "▁ab",
  ];
  const llama: TokenizerFiles = {
    tokenizer: {
      version: "1.0",
      added_tokens: ["<unk>", "<s>", "</s>"].map((content, id) => ({
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })),
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "▁" },
          { type: "Replace", pattern: { String: " " }, content: "▁" },
        ],
      },
      pre_tokenizer: null,
      post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        pair: [],
        special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
      },
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "▁" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
          { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
      },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: "<unk>",
        fuse_unk: true,
        byte_fallback: true,
        vocab: Object.fromEntries(pieces.map((token, id) => [token, id])),
        merges: ["▁ a", "a b", "▁ ab", "▁a b"],
      },
    },
    tokenizerConfig: { bos_token: { content: "<s>" }, eos_token: "</s>", unk_token: "<unk>" },
  };

  test("are encoded, decoded and streamed by the library, BOS only where it is asked for", () => {
    const other = new Tokenizer(llama);
    expect([other.bosId, other.eosId, other.padId]).toEqual([1, 2, undefined]);
    const text = "ab a , é🙂b . a";
    const ids = other.encode(text);
    expect([...other.encode(text, { special: true })]).toEqual([1, ...ids]);
    expect(other.decode(ids)).toBe(text);
    const stream = other.stream();
    expect([...ids].map((id) => stream.push(id)).join("") + stream.end()).toBe(text);
  });

  test("cut digits as Unicode has them", () => {
    const halves = trainBpe(["x ½".repeat(9)], { vocabulary: 261 });
    const pretokenizers = [
      { type: "Digits", individual_digits: true },
      { type: "ByteLevel", add_prefix_space: false, use_regex: true },
    ];
    const digits = { ...halves.tokenizer, pre_tokenizer: { type: "Sequence", pretokenizers } };
    const plain = new Tokenizer(halves);
    expect(plain.encode(" ½").length).toBe(1);
    // Here a numeral stands alone: the space before it is a word of its own.
    const alone = ["x", " ", "½", " cup"].flatMap((word) => [...plain.encode(word)]);
    expect([...new Tokenizer({ tokenizer: digits, tokenizerConfig: {} }).encode("x ½ cup")]).toEqual(alone);
  });
});

describe("files", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "rlhf-tokenizer-"));
  });
  afterAll(() => rm(folder, { recursive: true }));

  test("are read as they were written", async () => {
    await tokenizer.save(folder);
    const again = await Tokenizer.load(folder);
    expect(again.files).toEqual(files);
    expect([again.vocabularySize, again.eosId]).toEqual([700, 0]);
    expect(again.encode(texts[0])).toEqual(tokenizer.encode(texts[0]));
    expect((await Tokenizer.load(join(folder, "tokenizer.json"))).eosId).toBe(0);
  });

  test("may name the end of a text in config.json alone", async () => {
    await tokenizer.save(folder);
    await rm(join(folder, "SHA256SUMS"));
    await writeFile(join(folder, "tokenizer_config.json"), "{}");
    expect((await Tokenizer.load(folder)).eosId).toBeUndefined();
    await writeFile(join(folder, "config.json"), '{"eos_token_id":1}');
    expect((await Tokenizer.load(folder)).eosId).toBe(1);
  });

  test("name themselves where they are wrong", async () => {
    const wrong = join(folder, "wrong.json");
    const contents: [string, string][] = [
      ["{", "not JSON"],
      ["[]", "model.vocab"],
      ['{"added_tokens":[],"model":{"type":"BPE","vocab":{"a":-1}}}', '"a" has id -1'],
      [JSON.stringify({ ...files.tokenizer, model: { ...files.tokenizer.model, merges: ["a zzz"] } }), "zzz"],
    ];
    for (const [content, message] of contents) {
      await writeFile(wrong, content);
      await expect(Tokenizer.load(wrong)).rejects.toMatchObject({
        name: "TypeError",
        code: "TOKENIZER",
        message: expect.stringContaining(message),
      });
      await expect(Tokenizer.load(wrong)).rejects.toThrow("wrong.json");
    }
    await expect(Tokenizer.load(join(folder, "absent"))).rejects.toMatchObject({ code: "TOKENIZER" });
    await writeFile(join(folder, "tokenizer_config.json"), '{"eos_token":"<eos>"}');
    await expect(Tokenizer.load(folder)).rejects.toMatchObject({
      code: "TOKENIZER",
      message: expect.stringContaining("<eos>"),
    });
  });
});

/** Sennrich's algorithm word for word: count all pairs, merge the most frequent one, begin again. */
function naive(documents: string[], vocabulary: number): string[] {
  const tokens = ["<|endoftext|>", ...[...byteCharacters].sort()];
  const words = documents.flatMap(splitWords).map((word) => [...Buffer.from(word)].map((byte) => byteCharacters[byte]));
  const merges: string[] = [];
  while (tokens.length < vocabulary) {
    const counts = new Map<string, number>();
    for (const word of words)
      for (let i = 0; i + 1 < word.length; i++)
        counts.set(`${word[i]} ${word[i + 1]}`, (counts.get(`${word[i]} ${word[i + 1]}`) ?? 0) + 1);
    const id = (pair: string, part: number) => tokens.indexOf(pair.split(" ")[part]);
    const [best] = [...counts].sort(([a, m], [b, n]) => n - m || id(a, 0) - id(b, 0) || id(a, 1) - id(b, 1));
    if (!best) break;
    const [a, b] = best[0].split(" ");
    if (!merges.includes(best[0])) merges.push(best[0]);
    if (!tokens.includes(a + b)) tokens.push(a + b);
    for (const word of words)
      for (let i = 0; i + 1 < word.length; i++) if (word[i] === a && word[i + 1] === b) word.splice(i, 2, a + b);
  }
  return merges;
}
