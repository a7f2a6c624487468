import { krippendorff } from "./agreement.js";
import { isNumber, type Row } from "./row.js";
import { Keys } from "./keys.js";
import { labelEntry, type LabelEntry } from "./label_log.js";
import { pairsOf } from "./labels.js";
import { wilson } from "./metrics.js";
import { rowFile } from "./rows.js";
import { Grown } from "./spool.js";
import { textsOf, transcript, type Text } from "./texts.js";
import { alphaOf, OVERALL } from "./votes.js";

/**
 * What a file of prompts, demonstrations, comparisons or labels holds, and what may be wrong with
 * it.
 */
export interface DataReport {
  /** Rows of each kind. */
  rows: Record<string, number>;
  prompts: number;
  emptyPrompts: number;
  /** Rows whose texts stand in the file before. */
  duplicates: number;
  comparisons?: {
    /** Pairs; a ranking holds several. */
    pairs: number;
    /** Two equal texts: nothing to learn. */
    equal: number;
    /** Pairs of which an earlier row says the contrary. */
    contradictions: number;
    /**
     * Share of the pairs of different length in which the longer one is preferred, by characters,
     * with its 95 % interval.
     */
    longerPreferred: number | null;
    longerInterval: [number, number] | null;
    meanLength: { chosen: number; rejected: number };
    /**
     * Mean of the column `agreement`, how many rows have it, and in how many most prefer the
     * rejected.
     */
    agreement: { rows: number; mean: number | null; against: number };
    /** Krippendorff's alpha over pairs that occur more than once. */
    alpha: number | null;
  };
  labels?: {
    annotators: Record<string, number>;
    skipped: number;
    flagged: number;
    /**
     * Share of the decided pairs in which the one shown first is preferred, with its 95 % interval.
     */
    firstPreferred: number | null;
    firstInterval: [number, number] | null;
    secondsMedian: number | null;
    /** Krippendorff's alpha of each criterion. */
    alpha: Record<string, number | null>;
  };
}

/** @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE`, `CHANGED` */
export async function checkData(file: string): Promise<DataReport> {
  const rows: Record<string, number> = {};
  const [prompts, seen] = [new Keys(), new Keys()];
  const pairs = new Pairs();
  const entries: LabelEntry[] = [];
  const report = { emptyPrompts: 0, duplicates: 0 };
  let place = 0;
  for await (const row of rowFile(file, (one) => one)) {
    place++;
    const kind = kindOf(row);
    rows[kind] = (rows[kind] ?? 0) + 1;
    if (kind === "labels") {
      entries.push(labelEntry(row));
      continue;
    }
    const { prompt, completions } = textsOf(row, columns[kind], {
      list: kind === "rankings",
      implicit: kind === "preferences",
    });
    prompts.number(JSON.stringify(prompt), place);
    report.emptyPrompts += Number(prompt.length === 0);
    report.duplicates += Number(seen.number(JSON.stringify([kind, prompt, completions]), place) !== place);
    if (kind !== "preferences" && kind !== "rankings") continue;
    for (const [i, j] of pairsOf(completions.length)) pairs.add(prompt, completions[i], completions[j]);
    const agreement = row.optional("agreement", "a number", isNumber);
    if (agreement !== undefined) pairs.agree(agreement);
  }
  return {
    rows,
    prompts: prompts.size,
    ...report,
    ...(pairs.count > 0 ? { comparisons: pairs.report() } : {}),
    ...(entries.length > 0 ? { labels: labels(entries) } : {}),
  };
}

const columns: Record<string, string[]> = {
  prompts: [],
  demonstrations: ["completion"],
  preferences: ["chosen", "rejected"],
  rankings: ["ranking"],
};

function kindOf(row: Row): string {
  if (row.has("task") && row.has("annotator")) return "labels";
  if (row.has("ranking")) return "rankings";
  if (row.has("chosen") || row.has("rejected")) return "preferences";
  return row.has("completion") ? "demonstrations" : "prompts";
}

/** Code points. */
const length = (text: Text) => Array.from(transcript(text)).length;

/** Figures of pairs, which are told one by one: 8 bytes a pair are kept, and its key. */
class Pairs {
  count = 0;
  private readonly keys = new Keys();
  private readonly times = new Grown(new Uint32Array(0)); // that a pair of texts occurs, either way round
  private readonly firsts = new Grown(new Uint32Array(0)); // of these, with the first of its texts preferred
  private equal = 0;
  private contradictions = 0;
  private differ = 0;
  private longer = 0;
  private readonly lengths = { chosen: 0, rejected: 0 };
  private readonly agreement = { rows: 0, sum: 0, against: 0 };

  add(prompt: Text, ...pair: [chosen: Text, rejected: Text]): void {
    this.count++;
    const [a, b] = pair.map(length);
    this.lengths.chosen += a;
    this.lengths.rejected += b;
    this.differ += Number(a !== b);
    this.longer += Number(a > b);
    const [chosen, rejected] = pair.map((text) => JSON.stringify([prompt, text]));
    if (chosen === rejected) this.equal++;
    else this.prefer(chosen < rejected, [chosen, rejected].sort().join("\n"));
  }

  private prefer(first: boolean, key: string): void {
    const { keys, times, firsts } = this;
    const pair = keys.number(key, times.length);
    if (pair === times.length) for (const counts of [times, firsts]) counts.push(0);
    const contrary = first ? times.values[pair] - firsts.values[pair] : firsts.values[pair];
    this.contradictions += Number(contrary > 0);
    times.values[pair]++;
    firsts.values[pair] += Number(first);
  }

  agree(share: number): void {
    this.agreement.rows++;
    this.agreement.sum += share;
    this.agreement.against += Number(share < 0.5);
  }

  report(): DataReport["comparisons"] {
    const { count, equal, contradictions, differ, lengths, agreement } = this;
    const longer = this.longer / differ;
    return {
      pairs: count,
      equal,
      contradictions,
      longerPreferred: differ > 0 ? longer : null,
      longerInterval: differ > 0 ? wilson(longer, differ) : null,
      meanLength: { chosen: lengths.chosen / count, rejected: lengths.rejected / count },
      agreement: {
        rows: agreement.rows,
        mean: agreement.rows > 0 ? agreement.sum / agreement.rows : null,
        against: agreement.against,
      },
      alpha: krippendorff(this.repeated()) ?? null,
    };
  }

  /**
   * What was said of each pair that occurs more than once: 1 where the first of its texts is
   * preferred, or 0.
   */
  private *repeated(): Generator<number[]> {
    for (let pair = 0; pair < this.times.length; pair++) {
      const [times, firsts] = [this.times.values[pair], this.firsts.values[pair]];
      if (times > 1) yield Array.from({ length: times }, (_, i) => Number(i < firsts));
    }
  }
}

function labels(log: readonly LabelEntry[]): DataReport["labels"] {
  const standing = new Map<string, LabelEntry>(); // without what was taken back
  for (const entry of log) {
    const key = JSON.stringify([entry.task, entry.annotator]);
    if (entry.kind === "undo") standing.delete(key);
    else standing.set(key, entry);
  }
  const entries = [...standing.values()];
  const labelled = entries.filter(({ kind }) => kind === "label");
  const annotators = new Map<string, number>();
  const tasks = new Map<string, LabelEntry[]>();
  for (const entry of labelled) {
    annotators.set(entry.annotator, (annotators.get(entry.annotator) ?? 0) + 1);
    const before = tasks.get(entry.task);
    if (before) before.push(entry);
    else tasks.set(entry.task, [entry]);
  }
  const decided = labelled.flatMap(({ ranks = {}, shown }) =>
    Object.values(ranks).flatMap((of) => (of.length === 2 && of[0] !== of[1] ? of[shown[0]] === 1 : [])),
  );
  const first = decided.filter(Boolean).length / decided.length;
  const criteria = [...new Set(labelled.flatMap(({ ranks = {} }) => Object.keys(ranks)))];
  const seconds = labelled.map((entry) => entry.seconds).sort((a, b) => a - b);
  return {
    annotators: Object.fromEntries(annotators),
    skipped: entries.filter(({ kind }) => kind === "skip").length,
    flagged: entries.filter(({ kind }) => kind === "flag").length,
    firstPreferred: decided.length > 0 ? first : null,
    firstInterval: decided.length > 0 ? wilson(first, decided.length) : null,
    secondsMedian: seconds.length > 0 ? seconds[seconds.length >> 1] : null,
    alpha: Object.fromEntries(criteria.map((name) => [name, alphaOf([...tasks.values()], name) ?? null])),
  };
}

/** A report for people. */
export function reportLines({
  rows,
  prompts,
  emptyPrompts,
  duplicates,
  comparisons: pairs,
  labels: given,
}: DataReport): [string, string][] {
  const share = (value: number | null, interval: [number, number] | null) =>
    value === null || interval === null
      ? "-"
      : `${percent(value)} (95 %: ${percent(interval[0])} to ${percent(interval[1])})`;
  const figure = (value: number | null) => (value === null ? "-" : value.toFixed(3));
  const lines: [string, string][] = Object.entries(rows).map(([kind, count]) => [kind, String(count)]);
  if (prompts > 0)
    lines.push(
      ["different prompts", `${prompts}${emptyPrompts > 0 ? `, ${emptyPrompts} rows have an empty one` : ""}`],
      ["rows that repeat another", String(duplicates)],
    );
  if (pairs) {
    lines.push(
      ["comparisons", String(pairs.pairs)],
      ["of equal texts", String(pairs.equal)],
      ["contrary to an earlier one", String(pairs.contradictions)],
    );
    lines.push(["the longer one is preferred", share(pairs.longerPreferred, pairs.longerInterval)]);
    lines.push([
      "characters, chosen and rejected",
      `${pairs.meanLength.chosen.toFixed(1)} and ${pairs.meanLength.rejected.toFixed(1)}`,
    ]);
    const { agreement } = pairs;
    if (agreement.rows > 0)
      lines.push([
        "agreement with the choice",
        `${figure(agreement.mean)} in ${agreement.rows} rows, below 0.5 in ${agreement.against}`,
      ]);
    if (pairs.alpha !== null) lines.push(["Krippendorff's alpha of repeated comparisons", figure(pairs.alpha)]);
  }
  if (given) {
    for (const [name, count] of Object.entries(given.annotators)) lines.push([`labels of ${name}`, String(count)]);
    lines.push(["skipped", String(given.skipped)], ["flagged", String(given.flagged)]);
    lines.push(["the one shown first is preferred", share(given.firstPreferred, given.firstInterval)]);
    lines.push(["seconds to a label, median", figure(given.secondsMedian)]);
    for (const [name, alpha] of Object.entries(given.alpha))
      lines.push([`Krippendorff's alpha${name === OVERALL ? "" : ` of ${name}`}`, figure(alpha)]);
  }
  return lines;
}

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
