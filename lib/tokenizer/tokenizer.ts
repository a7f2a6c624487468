import { existsSync } from "node:fs";
import { stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import { brief, rangeError, shown, typeError } from "../device/errors.js";
import { byteCharacters, ByteLevelEncoder, PAIR, tokenBytes } from "./byte_level.js";
import { chatTemplate, type ChatTemplate } from "./chat.js";
import { baseFolder } from "../files/adapter.js";
import { tokenIds } from "../files/json.js";
import { writeListed } from "../files/listed.js";
import { areQuick, byteToken, exact, joinOf, stepsOf, type Join, type TokenizerRule } from "./pipeline.js";
import { readListed } from "../files/sums.js";
import { TimeLimit } from "./time_limit.js";

/** A token beside the model's own, in tokenizer.json. */
export interface AddedToken {
  /** Place in the vocabulary. */
  id: number;
  /** Text of the token. */
  content: string;
  /** Whether the token counts only where no letter stands beside it: not supported. */
  single_word?: boolean;
  /** Whether the token takes the spaces before it. */
  lstrip?: boolean;
  /** Whether the token takes the spaces after it. */
  rstrip?: boolean;
  /** Whether the token is looked for in the normalized text. */
  normalized?: boolean;
  /** Whether the token is a mark, which `encode` and `decode` may leave out. */
  special?: boolean;
}

/** tokenizer.json, as far as it is read here. */
export interface TokenizerJson {
  /** Tokens that are cut out of a text before all else. */
  added_tokens: AddedToken[];
  /** Rules that change the text. */
  normalizer: TokenizerRule | null;
  /** Rules that cut the text into words. */
  pre_tokenizer: TokenizerRule | null;
  /** Rules that put special tokens around the text. */
  post_processor: TokenizerRule | null;
  /** Rules that make text of tokens. */
  decoder: TokenizerRule | null;
  /** The model, which makes tokens of words. */
  model: TokenizerRule & {
    /** The id of each token. */
    vocab: Record<string, number>;
    /** Merges of byte-pair encoding: pairs of neighbours that become one, in order. */
    merges?: (string | [string, string])[];
  };
  [other: string]: unknown;
}

/** tokenizer_config.json */
export type TokenizerConfig = Record<string, unknown>;

/** The contents of a tokenizer's files. */
export interface TokenizerFiles {
  /** tokenizer.json */
  tokenizer: TokenizerJson;
  /** tokenizer_config.json, with what special_tokens_map.json and chat_template.jinja add. */
  tokenizerConfig: TokenizerConfig;
}

/**
 * What is used of @huggingface/tokenizers, whose own types do not resolve under `module: nodenext`.
 */
interface Library {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: (number | undefined)[] };
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: false }): string;
}

/** Decodes ids as they come: characters appear once their last byte is there. */
export interface TokenStream {
  /** The text that this id completes, perhaps none. */
  push(id: number): string;
  /** What was held back, after the last id. */
  end(): string;
}

const MOST_IDS = 2 ** 22; // four times the largest vocabulary that is known

// The pipeline of a file may be one that never ends. It has twenty times what a usual one takes for
// each character, and some seconds for all that it does.
const SECONDS = 2;
const CHARACTERS_PER_SECOND = 50_000;

const MOST_BYTES = 2 ** 26; // of a tokenizer's file: twice the largest that is known
const MOST_ADDED = 2 ** 16; // characters of added tokens that one regular expression looks for
const MOST_CHOICES = 2 ** 12; // it tries them one by one
const MOST_ADDED_IN_LIBRARY = 2 ** 19; // the library makes an object of each
const QUICK_ADDED = 256; // added tokens
const LONGEST_TOKEN = 1024;

/**
 * A tokenizer of a Hugging Face directory. Byte-level BPE cut as GPT-2 does is encoded here, the
 * rest by @huggingface/tokenizers.
 */
export class Tokenizer {
  /** How many ids there are: the greatest one, and one more. */
  readonly vocabularySize: number;
  /** A text begins with this token; undefined if tokenizer_config.json names none. */
  readonly bosId?: number;
  /** A text ends with this token; undefined if tokenizer_config.json names none. */
  readonly eosId?: number;
  /** The token that others pad with; nothing is padded here. */
  readonly padId?: number;
  /** Special tokens and their ids. */
  readonly special: ReadonlyMap<string, number>;
  private readonly ids = new Map<string, number>();
  private readonly tokens: string[] = [];
  private readonly bytes?: Uint8Array[]; // of each id, where the decoder is byte-level
  private readonly join?: Join;
  private readonly encoder?: ByteLevelEncoder;
  private readonly added?: RegExp;
  private readonly limit = new TimeLimit(SECONDS);
  private library?: Library;
  private quick?: boolean;
  private template?: ChatTemplate;
  private before?: readonly number[];

  /** @throws TypeError `TOKENIZER` for contents that are no tokenizer */
  constructor(
    /** The contents of the files from which the tokenizer was made. */
    readonly files: TokenizerFiles,
    private readonly name = "tokenizer.json",
  ) {
    const { tokenizer, tokenizerConfig: config } = files;
    const vocab: unknown = tokenizer?.model?.vocab;
    if (typeof vocab !== "object" || vocab === null || Array.isArray(vocab) || !Array.isArray(tokenizer.added_tokens))
      throw typeError("TOKENIZER", `${name} has no model.vocab or added_tokens of a tokenizer with a table of ids`);
    for (const added of tokenizer.added_tokens as unknown[]) {
      if (typeof added !== "object" || added === null)
        throw typeError("TOKENIZER", `${name}: added_tokens has ${shown(added)}, wanted an object`);
      if ((added as AddedToken).single_word)
        throw typeError("TOKENIZER", `${name}: single_word of an added token is not supported`);
    }
    for (const [token, id] of [
      ...Object.entries(vocab),
      ...tokenizer.added_tokens.map(({ content, id }) => [content, id] as const),
    ]) {
      if (typeof token !== "string" || !Number.isInteger(id) || id < 0 || id > MOST_IDS)
        throw typeError(
          "TOKENIZER",
          `${name}: the token ${shown(token)} has id ${shown(id)}, wanted a whole number from 0 to ${MOST_IDS}`,
        );
      this.ids.set(token, id);
      this.tokens[id] = token;
    }
    this.vocabularySize = this.tokens.length;
    this.special = new Map(
      tokenizer.added_tokens.filter(({ special }) => special).map(({ content, id }) => [content, id]),
    );
    this.bosId = this.named(config.bos_token, "bos_token");
    this.eosId = this.named(config.eos_token, "eos_token");
    this.padId = this.named(config.pad_token, "pad_token");
    if (tokenizer.decoder?.type === "ByteLevel") this.bytes = this.tokens.map(tokenBytes);
    else this.join = this.followed(() => joinOf(tokenizer.decoder));
    if (this.isPlainByteLevel(tokenizer)) {
      const given: unknown = tokenizer.model.merges ?? [];
      const isMerge = (merge: unknown) =>
        typeof merge === "string" ||
        (Array.isArray(merge) && merge.length === 2 && merge.every((part) => typeof part === "string"));
      if (!Array.isArray(given) || !given.every(isMerge))
        throw typeError("TOKENIZER", `${name}: model.merges is ${shown(given)}, wanted pairs of tokens`);
      const merges = (given as (string | [string, string])[]).map(
        (merge) => (typeof merge === "string" ? merge.split(" ", 2) : merge) as [string, string],
      );
      for (const [a, b] of merges)
        if (!this.ids.has(a) || !this.ids.has(b) || !this.ids.has(a + b))
          throw typeError(
            "TOKENIZER",
            `${name}: the merge of ${JSON.stringify(a)} and ${JSON.stringify(b)} has a part that is not in the vocabulary`,
          );
      this.encoder = new ByteLevelEncoder(this.ids, merges);
      const longestFirst = tokenizer.added_tokens.map(({ content }) => content).sort((a, b) => b.length - a.length);
      if (longestFirst.length > 0) this.added = new RegExp(`(${longestFirst.map(escaped).join("|")})`, "u");
    }
  }

  /**
   * Loads the tokenizer of a Hugging Face directory, or a tokenizer.json with what lies beside it.
   * @throws TypeError `TOKENIZER`; `DAMAGED` for a file that is not what SHA256SUMS beside it lists
   */
  static async load(path: string): Promise<Tokenizer> {
    const isFolder = await stat(path).then(
      (found) => found.isDirectory(),
      () => false,
    );
    const file = isFolder
      ? join(existsSync(join(path, "tokenizer.json")) ? path : await baseFolder(path), "tokenizer.json")
      : path;
    const tokenizer = await readJson(file);
    if (!tokenizer) throw typeError("TOKENIZER", `${file} is missing`);
    const config = await readJson(join(dirname(file), "tokenizer_config.json"));
    const map = await readJson(join(dirname(file), "special_tokens_map.json"));
    const tokenizerConfig: TokenizerConfig = { ...map, ...config };
    if (tokenizerConfig.eos_token === undefined) {
      // GPT-2's own files name the end of a text in config.json alone.
      const [id] = tokenIds((await readJson(join(await baseFolder(dirname(file)), "config.json")))?.eos_token_id);
      const eos = Array.isArray(tokenizer.added_tokens)
        ? (tokenizer.added_tokens as AddedToken[]).find((token) => token.id === id)
        : undefined;
      if (eos) tokenizerConfig.eos_token = eos.content;
    }
    const template = await read(join(dirname(file), "chat_template.jinja"));
    if (template !== undefined) tokenizerConfig.chat_template = template;
    return new Tokenizer({ tokenizer: tokenizer as TokenizerJson, tokenizerConfig }, file);
  }

  private named(token: unknown, key: string): number | undefined {
    const content = typeof token === "object" && token !== null ? (token as { content?: unknown }).content : token;
    if (content === undefined || content === null) return undefined;
    const id = typeof content === "string" ? this.ids.get(content) : undefined;
    if (id === undefined)
      throw typeError(
        "TOKENIZER",
        `${this.name}: ${key} is ${JSON.stringify(content)}, which is not in the vocabulary`,
      );
    return id;
  }

  private isPlainByteLevel({ normalizer, pre_tokenizer, added_tokens, model }: TokenizerJson): boolean {
    return (
      model.type === "BPE" &&
      !normalizer &&
      !model.dropout &&
      !model.ignore_merges &&
      !model.continuing_subword_prefix &&
      !model.end_of_word_suffix &&
      pre_tokenizer?.type === "ByteLevel" &&
      pre_tokenizer.use_regex !== false &&
      !pre_tokenizer.add_prefix_space &&
      this.tokens.length <= PAIR &&
      byteCharacters.every((character) => this.ids.has(character)) &&
      added_tokens.every(({ content, lstrip, rstrip }) => content !== "" && !lstrip && !rstrip) &&
      new Set(added_tokens.map(({ special, normalized = !special }) => normalized)).size <= 1 && // else some are looked for before others
      added_tokens.length <= MOST_CHOICES &&
      added_tokens.reduce((length, { content }) => length + content.length, 0) <= MOST_ADDED
    );
  }

  /** What the steps of the file give; that they cannot be followed is the fault of the file. */
  private followed<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw typeError("TOKENIZER", `${this.name} cannot be used: ${brief((error as Error).message)}`);
    }
  }

  /** What the library makes of so many characters, by the pipeline of the file. */
  private used<T>(length: number, work: (library: Library) => T): T {
    return this.followed(() => {
      const library = (this.library ??= this.limited(0, () => this.opened()));
      return this.limited(length, () => work(library));
    });
  }

  /**
   * Work on so many characters, within a time unless the file can ask for no more than a usual one.
   */
  private limited<T>(length: number, work: () => T): T {
    return this.isQuick ? work() : this.limit.within(length / CHARACTERS_PER_SECOND, work);
  }

  private get isQuick(): boolean {
    return (this.quick ??= this.followed(() => this.asksLittle(this.files.tokenizer)));
  }

  private asksLittle({
    normalizer,
    pre_tokenizer,
    post_processor,
    decoder,
    model,
    added_tokens,
  }: TokenizerJson): boolean {
    const {
      continuing_subword_prefix: before,
      continuing_subword_suffix: within,
      end_of_word_suffix: after,
      max_input_chars_per_word: most,
    } = model;
    const isShort = (text: unknown) => typeof text !== "string" || text.length <= LONGEST_TOKEN;
    return (
      areQuick(normalizer, pre_tokenizer, post_processor, decoder) &&
      [before, within, after, ...this.tokens].every(isShort) &&
      (typeof most !== "number" || most <= LONGEST_TOKEN) &&
      added_tokens.length <= QUICK_ADDED
    );
  }

  private opened(): Library {
    const { tokenizer, tokenizerConfig } = this.files;
    const { added_tokens, normalizer, pre_tokenizer, post_processor, decoder } = tokenizer;
    const added = added_tokens.reduce((length, { content }) => length + content.length, 0);
    if (added > MOST_ADDED_IN_LIBRARY)
      throw new Error(`its added tokens have ${added} characters, wanted at most ${MOST_ADDED_IN_LIBRARY}`);
    for (const steps of [post_processor, decoder]) stepsOf(steps);
    const steps = {
      normalizer: exact(normalizer ?? null),
      pre_tokenizer: exact(pre_tokenizer ?? null),
      post_processor: post_processor ?? null,
      decoder: decoder ?? null,
    };
    // what names special tokens is used by none of what is asked for here, and takes time that
    // grows as their square
    return new LibraryTokenizer(
      { ...tokenizer, ...steps },
      { ...tokenizerConfig, additional_special_tokens: undefined },
    ) as Library;
  }

  /** The id of a token as the vocabulary spells it. */
  id(token: string): number | undefined {
    return this.ids.get(token);
  }

  /**
   * Ids of a text. Special tokens that the text spells out are encoded as such; `special` adds
   * those of the model's own template (as BOS) too. Lone surrogates are encoded as U+FFFD.
   *
   * @throws TypeError `TOKENIZER` for a character that the vocabulary cannot express, or where the
   *   steps of the file take more time than texts of this length may; all texts share a reserve of
   *   some seconds
   */
  encode(text: string, { special = false } = {}): Int32Array {
    if (typeof text !== "string") throw typeError("TYPE", `text is ${typeof text}, wanted a string`);
    if (!this.encoder || special) {
      const { ids } = this.used(text.length, (slow) =>
        slow.encode(text.replace(/\p{Surrogate}/gu, "\ufffd"), { add_special_tokens: special }),
      );
      if (ids.includes(undefined))
        throw typeError("TOKENIZER", `${this.name} has no token for a part of ${JSON.stringify(text.slice(0, 80))}`);
      return Int32Array.from(ids as number[]);
    }
    const out: number[] = [];
    const { added } = this;
    const parts = !added
      ? [text]
      : this.isQuick
        ? text.split(added)
        : this.followed(() => this.limited(text.length, () => text.split(added)));
    for (const [i, part] of parts.entries())
      if (i % 2 === 1) out.push(this.ids.get(part)!);
      else if (part !== "") this.encoder.encode(part, out);
    return Int32Array.from(out);
  }

  /**
   * The text of ids, nothing cleaned up; bytes that are no UTF-8 become U+FFFD. An id that the
   * vocabulary does not have, as models that are padded may sample it, has no text.
   * @throws RangeError `ID` for what is no id: not a whole number from 0
   */
  decode(ids: ArrayLike<number>, { skipSpecial = false } = {}): string {
    const kept = Array.from(ids).filter((id) => this.has(id) && !(skipSpecial && this.isSpecial(id)));
    if (this.bytes) return utf8().decode(Buffer.concat(kept.map((id) => this.bytes![id])));
    if (this.join) return this.join(kept.map((id) => this.tokens[id])).join("");
    const options = { skip_special_tokens: false, clean_up_tokenization_spaces: false } as const;
    return kept.length === 0 ? "" : this.used(kept.length, (slow) => slow.decode(kept, options));
  }

  /** Decodes ids one by one; the pieces joined are what `decode` gives. */
  stream(): TokenStream {
    if (this.bytes) {
      const { bytes } = this;
      const text = utf8();
      return {
        push: (id) => (this.has(id) ? text.decode(bytes[id], { stream: true }) : ""),
        end: () => text.decode(),
      };
    }
    const ids: number[] = [];
    let given = "";
    const rest = (text: string) => {
      const piece = text.slice(given.length);
      given = text;
      return piece;
    };
    return {
      push: (id) => {
        if (!this.has(id)) return "";
        ids.push(id);
        const text = this.decode(ids);
        // the next byte may change these
        const waits = byteToken.test(this.tokens[id]) || text.endsWith("\ufffd") || !text.startsWith(given);
        return waits ? "" : rest(text);
      },
      end: () => rest(this.decode(ids)),
    };
  }

  /** The model's own chat template. @throws TypeError `CHAT` if it has none */
  get chat(): ChatTemplate {
    this.template ??= chatTemplate(this.files.tokenizerConfig, this.name);
    if (!this.template)
      throw typeError("CHAT", `${this.name} has no chat template beside it, which a conversation needs`);
    return this.template;
  }

  /**
   * Ids of a prompt, after what the post-processor puts before a text (Llama's and Mistral's BOS),
   * as transformers encodes one. Before a completion without a prompt stands that or, where there
   * is none, the token that begins a text or, as in GPT-2, the one that ended the text before it.
   * @param options `rendered`: a chat template made the prompt, and began it itself
   * @throws TypeError `TOKENIZER` for an empty prompt where there is no such token
   */
  encodePrompt(prompt: string, { rendered = false } = {}): Int32Array {
    const prefix = rendered ? [] : this.prefix;
    if (prompt !== "" || prefix.length > 0) return joined(prefix, this.encode(prompt));
    const begin = this.bosId ?? this.eosId;
    if (begin === undefined)
      throw typeError(
        "TOKENIZER",
        `the prompt is empty, and ${this.name} names no bos_token or eos_token to begin a text with`,
      );
    return Int32Array.of(begin);
  }

  /**
   * Ids of a completion, with the token that ends a text after it, unless it ends with that
   * already, or there is none.
   * @param options `open`: nothing is to follow; a chat template has closed the turn, or what was
   *   sampled was cut short
   * @throws TypeError `TOKENIZER` for a character that the vocabulary cannot express
   */
  encodeCompletion(completion: string, { open = false } = {}): Int32Array {
    const ids = this.encode(completion);
    return open || this.eosId === undefined || ids.at(-1) === this.eosId ? ids : joined(ids, [this.eosId]);
  }

  /**
   * What the post-processor puts before a text, unless tokenizer_config.json says that it does not.
   */
  get prefix(): readonly number[] {
    if (this.before) return this.before;
    const steps =
      this.files.tokenizerConfig.add_bos_token === false
        ? []
        : this.followed(() => stepsOf(this.files.tokenizer.post_processor));
    return (this.before = steps.flatMap(prefixOf).filter((id) => this.tokens[id] !== undefined));
  }

  /**
   * Writes tokenizer.json and tokenizer_config.json, and lists their digests in the folder's
   * SHA256SUMS.
   */
  async save(folder: string): Promise<void> {
    await writeListed(folder, {
      "tokenizer.json": JSON.stringify(this.files.tokenizer, null, 1) + "\n",
      "tokenizer_config.json": JSON.stringify(this.files.tokenizerConfig, null, 2) + "\n",
    });
  }

  private isSpecial(id: number): boolean {
    return this.special.get(this.tokens[id]) === id;
  }

  private has(id: number): boolean {
    if (!(Number.isInteger(id) && id >= 0))
      throw rangeError("ID", `token ${id} is no id, wanted a whole number from 0`);
    return this.tokens[id] !== undefined;
  }
}

const read = (file: string): Promise<string | undefined> =>
  readListed(file, MOST_BYTES).then(String, (error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error.code === "DAMAGED" ? error : typeError("TOKENIZER", `${file} cannot be read: ${error.message}`);
  });

async function readJson(file: string): Promise<Record<string, unknown> | undefined> {
  const text = await read(file);
  if (text === undefined) return undefined;
  try {
    const json: unknown = JSON.parse(text);
    if (typeof json === "object" && json !== null) return json as Record<string, unknown>;
  } catch (error) {
    throw typeError("TOKENIZER", `${file} is not JSON: ${(error as Error).message}`);
  }
  throw typeError("TOKENIZER", `${file} is no JSON object`);
}

/** Ids that a step of a post-processor puts before a text that stands alone. */
function prefixOf(step: TokenizerRule): number[] {
  if (step.type !== "TemplateProcessing" || !Array.isArray(step.single)) return [];
  const parts = step.single as ({ SpecialToken?: { id?: string } | null } | null)[];
  const before = parts.slice(
    0,
    parts.findIndex((part) => !part?.SpecialToken),
  );
  const specials = (step.special_tokens ?? {}) as Record<string, { ids?: unknown } | null | undefined>;
  return before.flatMap((part) => {
    const ids = specials[String(part!.SpecialToken!.id)]?.ids;
    return Array.isArray(ids) ? ids.filter((id): id is number => Number.isInteger(id)) : [];
  });
}

/** One after the other; a call takes only some 125,000 arguments, so ids are no arguments. */
function joined(first: ArrayLike<number>, second: ArrayLike<number>): Int32Array {
  const all = new Int32Array(first.length + second.length);
  all.set(first);
  all.set(second, first.length);
  return all;
}

const escaped = (text: string) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

const utf8 = () => new TextDecoder("utf-8", { ignoreBOM: true });
