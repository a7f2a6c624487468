import { shown } from "../device/errors.js";
import { wordPattern } from "./byte_level.js";

// The steps by which a tokenizer.json turns text into words and tokens into text.
// @huggingface/tokenizers 0.2 carries out the first, rewritten where it differs from HF's own
// tokenizers; tokens are joined here, since its byte fallback differs too.

/** A rule of a tokenizer.json: its type and the options of that type. */
export interface TokenizerRule {
  /** Name of the step in Hugging Face's tokenizers. */
  type: string;
  [option: string]: unknown;
}

const LONGEST_PATTERN = 4096; // the library reads patterns in quadratic time
const MOST_GROWTH = 64;
const MOST_STEPS = 256; // a usual file has ten
const QUICK_STEPS = 32;

/**
 * Rewrites a normalizer or pre-tokenizer into steps that the library carries out exactly. The
 * library's own ByteLevel cuts by JavaScript's \s. Its Digits knows decimal digits only, its
 * Metaspace cuts nothing, and its Replace reads "$" as a special sign.
 * @throws Error for a step that it would carry out otherwise, or that makes a text grow without measure
 */
export function exact(step: TokenizerRule | null): TokenizerRule | null {
  checkGrowth(step);
  return rewritten(step);
}

/** The steps of a sequence, and the sequence, however it is nested. @throws Error for too many */
export function stepsOf(step: TokenizerRule | null | undefined): TokenizerRule[] {
  const found: TokenizerRule[] = [];
  const left: unknown[] = [step];
  while (left.length > 0) {
    const next = left.pop() as TokenizerRule | null | undefined;
    if (next === null || next === undefined) continue;
    if (found.length === MOST_STEPS) throw new Error(`it has more than ${MOST_STEPS} steps`);
    found.push(next);
    const parts = next.type === "Sequence" ? partsOf(next) : [];
    for (let i = parts.length - 1; i >= 0; i--) left.push(parts[i]);
  }
  return found;
}

function partsOf(step: TokenizerRule): unknown[] {
  const parts = step.normalizers ?? step.pretokenizers ?? step.decoders ?? step.processors;
  if (!Array.isArray(parts)) throw new Error(`a Sequence has ${shown(parts)}, wanted a list of steps`);
  return parts;
}

function rewritten(step: TokenizerRule | null): TokenizerRule | null {
  switch (step?.type) {
    case "Sequence": {
      const steps = "normalizers" in step ? "normalizers" : "pretokenizers";
      return { ...step, [steps]: (step[steps] as (TokenizerRule | null)[]).map(rewritten) };
    }
    case "ByteLevel":
      return step.use_regex !== false && !step.add_prefix_space
        ? sequence(split(wordPattern), { ...step, use_regex: false })
        : step;
    case "Digits":
      return split(step.individual_digits ? "\\p{N}" : "\\p{N}+");
    case "Metaspace": {
      const { replacement = "▁", prepend_scheme = step.add_prefix_space === false ? "never" : "always" } = step;
      if (typeof replacement !== "string" || Array.from(replacement).length !== 1)
        throw new Error(`the replacement of Metaspace is ${shown(replacement)}`);
      const spaced = { type: "Metaspace", replacement, prepend_scheme };
      const mark = `\\u{${replacement.codePointAt(0)!.toString(16)}}`;
      return step.split === false ? spaced : sequence(spaced, split(`${mark}[^${mark}]*|[^${mark}]+`));
    }
    case "Split":
      checkPattern(step);
      if (step.behavior !== "Isolated" && step.behavior !== "Removed")
        throw new Error(`a Split that is ${shown(step.behavior)} is not supported`);
      if (step.invert && step.behavior !== "Removed")
        throw new Error("a Split that is inverted and Isolated is not supported");
      return step;
    case "FixedLength":
      if (!(Number.isInteger(step.length) && (step.length as number) > 0))
        throw new Error(`the length of FixedLength is ${shown(step.length)}`);
      return step;
    case "Replace":
      checkPattern(step);
      return {
        ...step,
        content: typeof step.content === "string" ? step.content.replaceAll("$", "$$$$") : step.content,
      };
    default:
      return step;
  }
}

const split = (Regex: string): TokenizerRule => ({
  type: "Split",
  pattern: { Regex },
  behavior: "Isolated",
  invert: false,
});
const sequence = (...pretokenizers: TokenizerRule[]): TokenizerRule => ({ type: "Sequence", pretokenizers });

function checkPattern({ type, pattern }: TokenizerRule): void {
  const { Regex } = (pattern ?? {}) as { Regex?: unknown };
  if (typeof Regex === "string" && Regex.length > LONGEST_PATTERN)
    throw new Error(`a ${type} has a pattern of ${Regex.length} characters, wanted at most ${LONGEST_PATTERN}`);
}

const words = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
const capitals = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const smalls = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const marks = (end: string) => `| ?[^\\s\\p{L}\\p{N}]+[${end}]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

/**
 * What GPT-2, Llama 3, Qwen and Mistral cut a text by: each takes a time that grows as the text
 * does.
 */
export const familiarPatterns: readonly string[] = [
  wordPattern,
  `${words}\\p{N}{1,3}${marks("\\r\\n")}`,
  `${words}\\p{N}${marks("\\r\\n")}`,
  `[^\\r\\n\\p{L}\\p{N}]?${capitals}*${smalls}+|[^\\r\\n\\p{L}\\p{N}]?${capitals}+${smalls}*|\\p{N}${marks("\\r\\n/")}`,
];

/**
 * Whether the steps are few and every pattern of theirs is a familiar one, so that they need no
 * limit of time.
 */
export function areQuick(...pipelines: readonly (TokenizerRule | null | undefined)[]): boolean {
  const steps = pipelines.flatMap(stepsOf);
  return (
    steps.length <= QUICK_STEPS &&
    steps.every(({ pattern }) => {
      const { Regex } = (pattern ?? {}) as { Regex?: unknown };
      return Regex === undefined || familiarPatterns.includes(Regex as string);
    })
  );
}

// How many characters, at most, the forms of Unicode make of one.
const FORMS: Record<string, number> = { Lowercase: 2, NFC: 3, NFD: 4, NFKC: 18, NFKD: 18, Precompiled: 18 };

/** @throws Error for steps that make a text grow without measure */
function checkGrowth(step: TokenizerRule | null): void {
  let [times, more] = [1, 0]; // of the text, and at the beginning of each of its parts
  let folded = true; // what a form has made, no other makes longer: the first is not counted
  for (const one of stepsOf(step)) {
    const { type, content, prepend, pattern } = one;
    const form = FORMS[type];
    if (form !== undefined) {
      if (!folded) [times, more] = [form * times, form * more];
      folded = true;
    }
    if (type === "ByteLevel" || type === "BertNormalizer") [times, more] = [3 * times, 3 * more + 1];
    if (type === "Prepend") more += lengthOf(prepend);
    if (type === "Replace") {
      const { String: sought } = (pattern ?? {}) as { String?: unknown };
      const [length, part] = [lengthOf(content), lengthOf(sought)];
      const factor = part > 0 ? Math.max(1, length / part) : 1 + length; // a pattern may match nothing, everywhere
      [times, more] = [factor * times, factor * more + (part > 0 ? 0 : length)];
    }
    if ([content, prepend].some((text) => typeof text === "string" && /[^\0-\x7f]/.test(text))) folded = false;
  }
  if (!(times + more <= MOST_GROWTH))
    throw new Error(`its steps make a text grow ${times + more} times, wanted at most ${MOST_GROWTH}`);
}

const lengthOf = (text: unknown) => (typeof text === "string" ? text.length : 0);

export type Join = (tokens: string[]) => string[];

/** A token of byte fallback: `<0x41>`. */
export const byteToken = /^<0x([0-9A-Fa-f]{2})>$/;

/**
 * The decoder that joins tokens to a text; undefined where a step is none of these.
 * @throws Error as `exact`
 */
export function joinOf(step: TokenizerRule | null): Join | undefined {
  checkGrowth(step);
  return joined(step);
}

function joined(step: TokenizerRule | null): Join | undefined {
  switch (step?.type) {
    case "Sequence": {
      const joins = (step.decoders as (TokenizerRule | null)[]).map(joined);
      return joins.includes(undefined) ? undefined : (tokens) => joins.reduce((joined, join) => join!(joined), tokens);
    }
    case "Replace": {
      const { String: text } = (step.pattern ?? {}) as { String?: unknown };
      const { content } = step;
      if (typeof text !== "string" || typeof content !== "string") return undefined;
      return (tokens) => tokens.map((token) => token.replaceAll(text, () => content));
    }
    case "ByteFallback":
      return joinBytes;
    case "Fuse":
      return (tokens) => [tokens.join("")];
    case "Strip": {
      const { content, start, stop } = step;
      if (typeof content !== "string" || !Number.isInteger(start) || !Number.isInteger(stop)) return undefined;
      return (tokens) => tokens.map((token) => stripped(token, content, start as number, stop as number));
    }
    case "Metaspace": {
      const { replacement = "▁", prepend_scheme = step.add_prefix_space === false ? "never" : "always" } = step;
      if (typeof replacement !== "string" || replacement === "") return undefined;
      return (tokens) =>
        tokens.map((token, i) => token.replaceAll(replacement, i === 0 && prepend_scheme !== "never" ? "" : " "));
    }
    default:
      return undefined;
  }
}

/** Byte tokens that follow each other are a text, if they are UTF-8; if not, U+FFFD for each. */
function joinBytes(tokens: string[]): string[] {
  const out: string[] = [];
  let bytes: number[] = [];
  const flush = () => {
    if (bytes.length === 0) return;
    try {
      out.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes)));
    } catch {
      out.push("\ufffd".repeat(bytes.length));
    }
    bytes = [];
  };
  for (const token of tokens) {
    const byte = byteToken.exec(token)?.[1];
    if (byte !== undefined) bytes.push(Number.parseInt(byte, 16));
    else {
      flush();
      out.push(token);
    }
  }
  flush();
  return out;
}

/** Without the first `start` and last `stop` characters that are `content`. */
function stripped(token: string, content: string, start: number, stop: number): string {
  const characters = Array.from(token);
  let begin = 0;
  while (begin < Math.min(start, characters.length) && characters[begin] === content) begin++;
  let end = characters.length;
  while (end > begin && characters.length - end < stop && characters[end - 1] === content) end--;
  return characters.slice(begin, end).join("");
}
