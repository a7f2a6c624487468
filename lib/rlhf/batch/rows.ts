import { Keys } from "../../data/keys.js";
import type { ComparisonRow, DemonstrationRow, PromptRow } from "../../data/preferences.js";
import type { Source } from "../../data/rows.js";
import { filled, Grown, Records, Spool, type Indexed } from "../../data/spool.js";
import { rangeError } from "../../device/errors.js";
import type { Tokenizer } from "../../tokenizer/tokenizer.js";
import type { Episode } from "./episode.js";
import type { Comparison } from "./comparison.js";
import type { Tokens } from "./order.js";

// Rows of data as the losses want them. One pass tokenises them into a temporary file (Spool). So every error is told
// before any work, nothing is tokenised twice, and a step reads its own rows alone. A file that changes after the pass
// cannot reach the run.

/** The tokens of a row, and what is said of its completions. */
interface Compared {
  prompt: Int32Array;
  completions: Int32Array[];
  label?: number;
  margin?: number;
}

/** Completions of one prompt that are kept, for rows that follow one another. */
const REMEMBERED = 64;

/**
 * Comparisons as the reward model learns from them. Prompt and completion are tokenised apart, the completion with the
 * token that ends a text. All preferences of a prompt are one item, wherever in the file they stand, so that each of
 * its completions is computed once. Rankings, and preferences without a prompt, are items of their own.
 */
export class Comparisons implements Indexed<Comparison> {
  /** Pairs of completions in all items. */
  pairs = 0;
  private readonly records: Records;
  /** The records of item i are `places[starts[i]]` to before `places[starts[i + 1]]`. */
  private starts = new Uint32Array(1);
  private places = new Uint32Array(0);

  private constructor(folder?: string) {
    this.records = new Records(folder);
  }

  /**
   * @param options `softLabels`: learn from the share of annotators who agree. Without it learn from their majority,
   *   and nothing where there is none. `folder`: where the temporary file lies, as of `Spool`
   * @throws TypeError `TOKENIZER`, `WRITE`, and what reading the rows throws
   */
  static async read(
    rows: Source<ComparisonRow>,
    tokenizer: Tokenizer,
    { softLabels = true, folder }: { softLabels?: boolean; folder?: string } = {},
  ): Promise<Comparisons> {
    return filled(new Comparisons(folder), (all) => all.addAll(rows, tokenizer, softLabels));
  }

  private async addAll(rows: Source<ComparisonRow>, tokenizer: Tokenizer, softLabels: boolean): Promise<void> {
    const prompts = new Keys();
    const itemOf = new Grown(new Uint32Array(0)); // of each record
    const remember = memory(tokenizer);
    let length = 0;
    for await (const row of rows) {
      const { texts, ...said } = judged(row, softLabels);
      if (texts.length === 0) continue;
      const key = `${row.rendered} ${row.prompt}`;
      const item = "ranking" in row || row.prompt === "" ? length : prompts.number(key, length);
      if (item === length) length++;
      itemOf.push(item);
      this.pairs += (texts.length * (texts.length - 1)) / 2;
      this.records.add(recordOf({ ...remember(key, row, texts), ...said }));
    }
    [this.starts, this.places] = grouped(itemOf.values.subarray(0, itemOf.length), length);
  }

  get length(): number {
    return this.starts.length - 1;
  }

  at(item: number): Comparison {
    const { starts, places, records } = this;
    const comparison: Comparison = { episodes: [], pairs: [] };
    const found = new Map<string, number>(); // the place of each completion among the episodes
    for (const place of places.subarray(starts[item], starts[item + 1])) {
      const { prompt, completions, label, margin } = comparedOf(records.at(place));
      const at = completions.map((completion) => {
        const key = Buffer.from(completion.buffer, completion.byteOffset, completion.byteLength).toString("latin1");
        const known =
          found.get(key) ??
          comparison.episodes.push({ prompt: comparison.episodes[0]?.prompt ?? prompt, completion }) - 1;
        found.set(key, known);
        return known;
      });
      for (let i = 0; i < at.length; i++)
        for (let j = i + 1; j < at.length; j++)
          comparison.pairs.push({ chosen: at[i], rejected: at[j], margin, label });
    }
    return comparison;
  }

  /** Gives back the temporary file. */
  [Symbol.dispose](): void {
    this.records[Symbol.dispose]();
  }
}

/** Tokenises the texts of a prompt. Rows that follow one another often have the same ones, which are tokenised once. */
function memory(tokenizer: Tokenizer) {
  let known: { key: string; prompt: Int32Array; completions: Map<string, Int32Array> } | undefined;
  return (key: string, row: ComparisonRow, texts: readonly string[]): Pick<Compared, "prompt" | "completions"> => {
    if (known?.key !== key) known = { key, prompt: tokenizer.encodePrompt(row.prompt, row), completions: new Map() };
    const { prompt, completions } = known;
    if (completions.size > REMEMBERED) completions.clear();
    const open = row.rendered || row.sampled; // nothing follows its completions
    const ids = (text: string): Int32Array => {
      const name = `${open} ${text}`;
      const made = completions.get(name) ?? tokenizer.encodeCompletion(text, { open });
      completions.set(name, made);
      return made;
    };
    return { prompt, completions: texts.map(ids) };
  };
}

/**
 * The completions of a row, best first, each once. Those of a pair are in the order of its columns where labels are
 * soft. Else they are as most annotators see them, and there are none where annotators are even.
 */
function judged(row: ComparisonRow, softLabels: boolean): { texts: string[]; label?: number; margin?: number } {
  if ("ranking" in row) return { texts: [...new Set(row.ranking)] };
  const { chosen, rejected, margin, agreement } = row;
  if (softLabels) return { texts: [chosen, rejected], label: agreement, margin };
  if (agreement === 0.5) return { texts: [] };
  return (agreement ?? 1) > 0.5
    ? { texts: [chosen, rejected], margin }
    : { texts: [rejected, chosen], margin: margin === undefined ? undefined : -margin };
}

const FIGURES = 4; // words of label and margin, f64 each, NaN where there is none

/** Label and margin; how many tokens the prompt has, and how many each completion; all tokens. */
const recordOf = ({ prompt, completions, label = NaN, margin = NaN }: Compared): Int32Array[] => [
  new Int32Array(Float64Array.of(label, margin).buffer),
  Int32Array.from([completions.length, prompt.length, ...completions.map(({ length }) => length)]),
  prompt,
  ...completions,
];

function comparedOf(record: Int32Array): Compared {
  const [label, margin] = Array.from(new Float64Array(record.slice(0, FIGURES).buffer), (figure) =>
    Number.isNaN(figure) ? undefined : figure,
  );
  const count = record[FIGURES] + 1;
  let at = FIGURES + 1 + count;
  const [prompt, ...completions] = Array.from(record.subarray(FIGURES + 1, at), (length) =>
    record.subarray(at, (at += length)),
  );
  return { prompt, completions, label, margin };
}

/** The records of each of `count` items, in their order: where an item's begin, and which they are. */
function grouped(
  itemOf: Uint32Array,
  count: number,
): [starts: Uint32Array<ArrayBuffer>, places: Uint32Array<ArrayBuffer>] {
  const starts = new Uint32Array(count + 1);
  for (const item of itemOf) starts[item + 1]++;
  for (let item = 0; item < count; item++) starts[item + 1] += starts[item];
  const next = starts.slice();
  const places = new Uint32Array(itemOf.length);
  for (const [record, item] of itemOf.entries()) places[next[item]++] = record;
  return [starts, places];
}

/** Demonstrations, tokenised as `Comparisons` are. */
export class Demonstrations implements Indexed<Episode> {
  /** Tokens of the completions, as far as they are kept. */
  tokens = 0;
  /** Demonstrations that were longer than they are kept. */
  cut = 0;
  /** UTF-8 bytes of the completions, as far as they are kept. */
  bytes = 0;
  private readonly records: Records;

  /** @param options `length`: tokens at most, of which the last is predicted alone; `folder`: as of `Spool` */
  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly options: { length: number; folder?: string },
  ) {
    this.records = new Records(options.folder);
  }

  /**
   * Tokenises a row and keeps it.
   * @throws RangeError `CONTEXT` for a prompt that leaves no room for its completion, TypeError `TOKENIZER`, `WRITE`
   */
  add(row: DemonstrationRow): void {
    const { tokenizer, options } = this;
    const prompt = tokenizer.encodePrompt(row.prompt, row);
    if (prompt.length > options.length)
      throw rangeError(
        "CONTEXT",
        `demonstration ${this.length}: the prompt has ${prompt.length} tokens, ` +
          `which leaves no room for its completion in ${options.length}`,
      );
    const whole = tokenizer.encodeCompletion(row.completion, { open: row.rendered || row.sampled });
    const completion = whole.subarray(0, options.length + 1 - prompt.length);
    const isCut = completion.length < whole.length;
    this.cut += Number(isCut);
    this.tokens += completion.length;
    this.bytes += Buffer.byteLength(isCut ? tokenizer.decode(completion) : row.completion);
    this.records.add([Int32Array.of(prompt.length), prompt, completion]);
  }

  get length(): number {
    return this.records.length;
  }

  at(place: number): Episode {
    const record = this.records.at(place);
    const begin = 1 + record[0];
    return { prompt: record.subarray(1, begin), completion: record.subarray(begin) };
  }

  /** Gives back the temporary file. */
  [Symbol.dispose](): void {
    this.records[Symbol.dispose]();
  }
}

/**
 * Documents end to end. Before each stands the token that ends a document, and what the tokenizer puts before a text.
 * The first one has the latter alone, where there is any.
 */
export class Documents implements Tokens {
  /** UTF-8 bytes of the documents. */
  bytes = 0;
  private readonly spool: Spool;

  /** @param folder as of `Spool` */
  constructor(
    private readonly tokenizer: Tokenizer,
    folder?: string,
  ) {
    this.spool = new Spool(folder);
  }

  /** Reads all documents. @throws what reading them throws, TypeError `TOKENIZER`, `WRITE` */
  static async read(documents: Source<string>, tokenizer: Tokenizer, folder?: string): Promise<Documents> {
    return filled(new Documents(tokenizer, folder), async (all) => {
      for await (const text of documents) all.add(text);
    });
  }

  /** @throws TypeError `TOKENIZER`, `WRITE` */
  add(text: string): void {
    const { prefix, eosId } = this.tokenizer;
    if (eosId !== undefined && (this.length > 0 || prefix.length === 0)) this.spool.push(Int32Array.of(eosId));
    this.spool.push(Int32Array.from(prefix));
    this.spool.push(this.tokenizer.encode(text));
    this.bytes += Buffer.byteLength(text);
  }

  get length(): number {
    return this.spool.length;
  }

  slice(begin: number, end: number): Int32Array {
    return this.spool.slice(begin, end);
  }

  /** Gives back the temporary file. */
  [Symbol.dispose](): void {
    this.spool[Symbol.dispose]();
  }
}

/** A prompt as a text and as ids. */
export interface Prompt {
  /** The text, with what a chat template put around it. */
  text: string;
  /** The token ids, int32. */
  ids: Int32Array;
  /** A chat template made it. */
  rendered?: true;
}

/** Prompts, tokenised. */
export class Prompts implements Indexed<Prompt> {
  private readonly records: Records;

  private constructor(folder?: string) {
    this.records = new Records(folder);
  }

  /** @param folder as of `Spool` @throws what reading the rows throws, TypeError `TOKENIZER`, `WRITE` */
  static async read(rows: Source<PromptRow>, tokenizer: Tokenizer, folder?: string): Promise<Prompts> {
    return filled(new Prompts(folder), async ({ records }) => {
      for await (const row of rows) {
        const ids = tokenizer.encodePrompt(row.prompt, row);
        const units = Int32Array.from({ length: row.prompt.length }, (_, i) => row.prompt.charCodeAt(i));
        records.add([Int32Array.of(Number(row.rendered ?? false), ids.length), ids, units]);
      }
    });
  }

  get length(): number {
    return this.records.length;
  }

  at(place: number): Prompt {
    const record = this.records.at(place);
    const end = 2 + record[1];
    let text = "";
    for (const unit of record.subarray(end)) text += String.fromCharCode(unit);
    return { text, ids: record.subarray(2, end), ...(record[0] ? { rendered: true } : {}) };
  }

  /** Gives back the temporary file. */
  [Symbol.dispose](): void {
    this.records[Symbol.dispose]();
  }
}
