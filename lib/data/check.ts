import { krippendorff } from "./agreement.js";
import { isNumber, rowsOf, type Row } from "./jsonl.js";
import { labelEntry, type LabelEntry } from "./label_log.js";
import { pairsOf } from "./labels.js";
import { wilson } from "./metrics.js";
import { textsOf, transcript, type Text } from "./texts.js";
import { alphaOf, OVERALL } from "./votes.js";

/** What a file of prompts, demonstrations, comparisons or labels holds, and what may be wrong with it. */
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
    /** Share of the pairs of different length in which the longer one is preferred, by characters, with its 95 % interval. */
    longerPreferred: number | null;
    longerInterval: [number, number] | null;
    meanLength: { chosen: number; rejected: number };
    /** Mean of the column `agreement`, how many rows have it, and in how many most prefer the rejected. */
    agreement: { rows: number; mean: number | null; against: number };
    /** Krippendorff's alpha over pairs that occur more than once. */
    alpha: number | null;
  };
  labels?: {
    annotators: Record<string, number>;
    skipped: number;
    flagged: number;
    /** Share of the decided pairs in which the one shown first is preferred, with its 95 % interval. */
    firstPreferred: number | null;
    firstInterval: [number, number] | null;
    secondsMedian: number | null;
    /** Of each criterion. */
    alpha: Record<string, number | null>;
  };
}

/** @throws TypeError `COLUMN`, `JSON`, `PARQUET`, `FILE` */
export async function checkData(file: string): Promise<DataReport> {
  const rows: Record<string, number> = {};
  const prompts = new Set<string>();
  const seen = new Set<string>();
  const pairs: { chosen: string; rejected: string; lengths: [number, number] }[] = [];
  const agreements: number[] = [];
  const entries: LabelEntry[] = [];
  const report = { emptyPrompts: 0, duplicates: 0 };
  for await (const row of rowsOf(file)) {
    const kind = kindOf(row);
    rows[kind] = (rows[kind] ?? 0) + 1;
    if (kind === "labels") {
      entries.push(labelEntry(row));
      continue;
    }
    const { prompt, completions } = textsOf(row, columns[kind], { list: kind === "rankings", implicit: kind === "preferences" });
    prompts.add(JSON.stringify(prompt));
    report.emptyPrompts += Number(prompt.length === 0);
    const key = JSON.stringify([kind, prompt, completions]);
    report.duplicates += Number(seen.has(key));
    seen.add(key);
    if (kind !== "preferences" && kind !== "rankings") continue;
    for (const [i, j] of pairsOf(completions.length)) {
      const [chosen, rejected] = [completions[i], completions[j]].map((text) => JSON.stringify([prompt, text]));
      pairs.push({ chosen, rejected, lengths: [length(completions[i]), length(completions[j])] });
    }
    const agreement = row.optional("agreement", "a number", isNumber);
    if (agreement !== undefined) agreements.push(agreement);
  }
  return {
    rows,
    prompts: prompts.size,
    ...report,
    ...(pairs.length > 0 ? { comparisons: comparisons(pairs, agreements) } : {}),
    ...(entries.length > 0 ? { labels: labels(entries) } : {}),
  };
}

const columns: Record<string, string[]> = { prompts: [], demonstrations: ["completion"], preferences: ["chosen", "rejected"], rankings: ["ranking"] };

function kindOf(row: Row): string {
  if (row.has("task") && row.has("annotator")) return "labels";
  if (row.has("ranking")) return "rankings";
  if (row.has("chosen") || row.has("rejected")) return "preferences";
  return row.has("completion") ? "demonstrations" : "prompts";
}

/** Code points. */
const length = (text: Text) => Array.from(transcript(text)).length;

function comparisons(
  pairs: readonly { chosen: string; rejected: string; lengths: [number, number] }[],
  agreements: readonly number[],
): DataReport["comparisons"] {
  const directions = new Map<string, number[]>(); // of each pair of texts, either way round: 1 or 0 for each time that it occurs
  let contradictions = 0;
  for (const { chosen, rejected } of pairs) {
    if (chosen === rejected) continue;
    const first = chosen < rejected;
    const key = first ? `${chosen}\n${rejected}` : `${rejected}\n${chosen}`;
    const before = directions.get(key);
    if (!before) directions.set(key, [Number(first)]);
    else {
      contradictions += Number(before.includes(1 - Number(first)));
      before.push(Number(first));
    }
  }
  const differ = pairs.filter(({ lengths: [a, b] }) => a !== b);
  const longer = differ.filter(({ lengths: [a, b] }) => a > b).length / differ.length;
  return {
    pairs: pairs.length,
    equal: pairs.filter(({ chosen, rejected }) => chosen === rejected).length,
    contradictions,
    longerPreferred: differ.length > 0 ? longer : null,
    longerInterval: differ.length > 0 ? wilson(longer, differ.length) : null,
    meanLength: { chosen: mean(pairs.map(({ lengths }) => lengths[0])), rejected: mean(pairs.map(({ lengths }) => lengths[1])) },
    agreement: {
      rows: agreements.length,
      mean: agreements.length > 0 ? mean(agreements) : null,
      against: agreements.filter((share) => share < 0.5).length,
    },
    alpha: krippendorff(directions.values()) ?? null,
  };
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

const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;

/** A report for people. */
export function reportLines({ rows, prompts, emptyPrompts, duplicates, comparisons: pairs, labels: given }: DataReport): [string, string][] {
  const share = (value: number | null, interval: [number, number] | null) =>
    value === null || interval === null ? "-" : `${percent(value)} (95 %: ${percent(interval[0])} to ${percent(interval[1])})`;
  const figure = (value: number | null) => (value === null ? "-" : value.toFixed(3));
  const lines: [string, string][] = Object.entries(rows).map(([kind, count]) => [kind, String(count)]);
  if (prompts > 0)
    lines.push(
      ["different prompts", `${prompts}${emptyPrompts > 0 ? `, ${emptyPrompts} rows have an empty one` : ""}`],
      ["rows that repeat another", String(duplicates)],
    );
  if (pairs) {
    lines.push(["comparisons", String(pairs.pairs)], ["of equal texts", String(pairs.equal)], ["contrary to an earlier one", String(pairs.contradictions)]);
    lines.push(["the longer one is preferred", share(pairs.longerPreferred, pairs.longerInterval)]);
    lines.push(["characters, chosen and rejected", `${pairs.meanLength.chosen.toFixed(1)} and ${pairs.meanLength.rejected.toFixed(1)}`]);
    const { agreement } = pairs;
    if (agreement.rows > 0) lines.push(["agreement with the choice", `${figure(agreement.mean)} in ${agreement.rows} rows, below 0.5 in ${agreement.against}`]);
    if (pairs.alpha !== null) lines.push(["Krippendorff's alpha of repeated comparisons", figure(pairs.alpha)]);
  }
  if (given) {
    for (const [name, count] of Object.entries(given.annotators)) lines.push([`labels of ${name}`, String(count)]);
    lines.push(["skipped", String(given.skipped)], ["flagged", String(given.flagged)]);
    lines.push(["the one shown first is preferred", share(given.firstPreferred, given.firstInterval)]);
    lines.push(["seconds to a label, median", figure(given.secondsMedian)]);
    for (const [name, alpha] of Object.entries(given.alpha)) lines.push([`Krippendorff's alpha${name === OVERALL ? "" : ` of ${name}`}`, figure(alpha)]);
  }
  return lines;
}

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
