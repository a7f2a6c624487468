import { createHash } from "node:crypto";
import { rangeError, typeError } from "../device/errors.js";
import { Random } from "../device/philox.js";
import { krippendorff } from "./agreement.js";
import type { LabelEntry, LabelLog, Strength } from "./label_log.js";
import { pairsOf } from "./labels.js";
import type { CompletedRow } from "./preferences.js";
import type { Text } from "./texts.js";

/** Completions of one prompt that people compare: a pair, or more for a ranking (Ouyang et al. 2022). */
export interface Task {
  /** Hash of the texts: a label belongs to them, not to a place in a file. */
  id: string;
  prompt: Text;
  completions: Text[];
  /** How the texts begin and end, as a preference has it. */
  ends?: Pick<CompletedRow, "rendered" | "sampled">;
}

export function task(prompt: Text, completions: readonly Text[], ends?: Task["ends"]): Task {
  const id = createHash("sha256")
    .update(JSON.stringify([prompt, completions]))
    .digest("hex")
    .slice(0, 16);
  return { id, prompt, completions: [...completions], ends };
}

/** A task as one annotator sees it. */
export interface Shown {
  task: string;
  prompt: Text;
  /** In the order shown. */
  completions: Text[];
}

export interface Answer {
  kind: "label" | "skip" | "flag";
  /** For each criterion the rank of each completion, in the order shown: 1 is best, equal ranks are a tie. */
  ranks?: Record<string, number[]>;
  strength?: Record<string, Strength>;
  reason?: string;
  seconds: number;
}

export interface LabellingProgress {
  /** Labels, skips and flags of this annotator. */
  mine: number;
  /** Labels there are of those wanted. */
  labels: number;
  wanted: number;
  /** Of each criterion, where something was labelled twice. */
  alpha: Record<string, number | null>;
  /** Tasks labelled by more than one. */
  shared: number;
}

export interface LabellingOptions {
  criteria: readonly string[];
  /** Share of the tasks that is labelled by two annotators. */
  twice: number;
  seed: number;
}

/** A preference as people gave it, by TRL's names; each criterion has a column of its own. */
export interface LabelledRow {
  prompt: Text;
  chosen: Text;
  rejected: Text;
  /** Share who prefer `chosen` by the first criterion, ties as half. */
  agreement: number;
  annotators: number;
  /** Share of those who saw a difference and called it clear. */
  clearly?: number;
  [criterion: string]: unknown;
}

const STREAMS = { order: 41, twice: 42, shown: 43 };
const LEASE = 15 * 60; // seconds for which a task that was shown waits for its answer

/**
 * Hands tasks out to annotators and keeps what they say. Tasks come in an order drawn from the seed; which of them two
 * annotators label, and in which order each sees the completions, depend on the seed and the texts alone.
 */
export class Labelling {
  private readonly tasks = new Map<string, Task>();
  private readonly order: string[];
  private readonly wanted = new Map<string, number>();
  private least = 0; // labels wanted, before flags and extra ones
  private readonly touched = new Set<string>(); // tasks that someone has answered
  private readonly given = new Map<string, Map<string, LabelEntry>>(); // task, annotator
  private readonly history = new Map<string, LabelEntry[]>(); // annotator
  private readonly leases = new Map<string, { task: string; at: number }>(); // annotator

  /** @throws RangeError `EMPTY` if there is nothing to compare */
  constructor(
    tasks: readonly Task[],
    private readonly log: LabelLog,
    private readonly options: LabellingOptions,
  ) {
    for (const one of tasks) this.tasks.set(one.id, one);
    if (this.tasks.size === 0) throw rangeError("EMPTY", "there is nothing to compare: no prompt has two completions that differ");
    this.order = new Random(options.seed, STREAMS.order).shuffle([...this.tasks.keys()]);
    for (const id of this.order) {
      this.wanted.set(id, 1 + Number(new Random(options.seed, STREAMS.twice, word(id)).uniform() < options.twice));
      this.least += this.wanted.get(id)!;
      this.given.set(id, new Map());
    }
    for (const entry of log.entries) this.apply(entry);
  }

  get criteria(): readonly string[] {
    return this.options.criteria;
  }

  private apply(entry: LabelEntry): void {
    const given = this.given.get(entry.task);
    if (!given) return; // of texts that are no longer compared
    this.touched.add(entry.task);
    let history = this.history.get(entry.annotator);
    if (!history) this.history.set(entry.annotator, (history = []));
    if (entry.kind === "undo") {
      given.delete(entry.annotator);
      this.history.set(
        entry.annotator,
        history.filter(({ task }) => task !== entry.task),
      );
    } else {
      given.set(entry.annotator, entry);
      history.push(entry);
    }
  }

  private show(id: string, annotator: string): Shown {
    const { prompt, completions } = this.tasks.get(id)!;
    return { task: id, prompt, completions: this.shown(id, annotator).map((place) => completions[place]) };
  }

  private shown(id: string, annotator: string): number[] {
    const places = this.tasks.get(id)!.completions.map((_, place) => place);
    return new Random(this.options.seed, STREAMS.shown, word(id), word(createHash("sha256").update(annotator).digest("hex"))).shuffle(places);
  }

  /** The next task of an annotator, the same until it is answered; undefined when there is nothing left for this one. */
  next(annotator: string, now = Date.now() / 1000): Shown | undefined {
    const lease = this.leases.get(annotator);
    const id = lease?.task ?? this.order.find((one) => this.isOpen(one, annotator, now));
    if (id === undefined) return undefined;
    this.leases.set(annotator, { task: id, at: now });
    return this.show(id, annotator);
  }

  private isOpen(id: string, annotator: string, now: number): boolean {
    const given = this.given.get(id)!;
    if (given.has(annotator)) return false;
    let taken = 0;
    for (const { kind } of given.values()) {
      if (kind === "flag") return false;
      taken += Number(kind === "label");
    }
    const wanted = this.wanted.get(id)!;
    if (taken >= wanted) return false;
    for (const [other, lease] of this.leases) taken += Number(other !== annotator && lease.task === id && now - lease.at < LEASE);
    return taken < wanted;
  }

  /**
   * Keeps an answer to the task that the annotator has been shown; it is on the disk when this returns.
   * @throws TypeError `STALE` if that is another one, `ANSWER` for what is no answer
   */
  async answer(annotator: string, id: string, answer: Answer): Promise<void> {
    if (this.leases.get(annotator)?.task !== id) throw typeError("STALE", `task is ${id}, which is not what ${annotator} was shown last`);
    const shown = this.shown(id, annotator);
    const { kind, seconds, reason } = answer;
    if (!["label", "skip", "flag"].includes(kind)) throw typeError("ANSWER", `kind is ${String(kind)}, wanted label, skip or flag`);
    if (!(typeof seconds === "number" && seconds >= 0)) throw typeError("ANSWER", `seconds is ${String(seconds)}, wanted a number from 0`);
    if (reason !== undefined && typeof reason !== "string") throw typeError("ANSWER", `reason is ${typeof reason}, wanted a string`);
    const entry: LabelEntry = { kind, task: id, annotator, at: new Date().toISOString(), shown, seconds: Math.round(100 * seconds) / 100 };
    if (kind === "label") Object.assign(entry, this.judged(answer, shown));
    if (reason) entry.reason = reason;
    this.leases.delete(annotator); // a second answer to the same task is stale while the first is being written
    try {
      await this.log.append(entry);
    } catch (error) {
      this.leases.set(annotator, { task: id, at: Date.now() / 1000 });
      throw error;
    }
    this.apply(entry);
  }

  private judged({ ranks, strength }: Answer, shown: readonly number[]): Pick<LabelEntry, "ranks" | "strength"> {
    const inOrder: Record<string, number[]> = {};
    const strengths: Record<string, Strength> = {};
    for (const criterion of this.criteria) {
      const given: unknown = ranks?.[criterion];
      if (!Array.isArray(given) || given.length !== shown.length || !given.every((rank) => Number.isInteger(rank) && rank >= 1 && rank <= shown.length))
        throw typeError("ANSWER", `ranks.${criterion} is ${JSON.stringify(given)}, wanted ${shown.length} whole numbers from 1 to ${shown.length}`);
      inOrder[criterion] = [];
      shown.forEach((place, i) => (inOrder[criterion][place] = (given as number[])[i]));
      const how: unknown = strength?.[criterion];
      if (how === undefined || shown.length > 2 || given[0] === given[1]) continue;
      if (how !== "slightly" && how !== "clearly") throw typeError("ANSWER", `strength.${criterion} is ${JSON.stringify(how)}, wanted slightly or clearly`);
      strengths[criterion] = how;
    }
    return { ranks: inOrder, ...(Object.keys(strengths).length > 0 ? { strength: strengths } : {}) };
  }

  /** Takes back the annotator's last answer; its task is the next one. Undefined if there is none. */
  async undo(annotator: string): Promise<Shown | undefined> {
    const last = this.history.get(annotator)?.at(-1);
    if (!last) return undefined;
    const entry: LabelEntry = { kind: "undo", task: last.task, annotator, at: new Date().toISOString(), shown: last.shown, seconds: 0 };
    await this.log.append(entry);
    this.apply(entry);
    this.leases.set(annotator, { task: last.task, at: Date.now() / 1000 });
    return this.show(last.task, annotator);
  }

  progress(annotator: string): LabellingProgress {
    let labels = 0;
    let wanted = this.least;
    const shared: LabelEntry[][] = [];
    for (const id of this.touched) {
      const entries = [...this.given.get(id)!.values()];
      const least = this.wanted.get(id)!;
      const count = entries.filter(({ kind }) => kind === "label").length;
      labels += count;
      wanted += entries.some(({ kind }) => kind === "flag") ? count - least : Math.max(0, count - least);
      if (count > 1) shared.push(entries);
    }
    const alpha = Object.fromEntries(this.criteria.map((criterion) => [criterion, alphaOf(shared, criterion) ?? null]));
    return { mine: this.history.get(annotator)?.length ?? 0, labels, wanted, alpha, shared: shared.length };
  }

  /** What the reward stage learns from: all pairs of every task that someone labelled and nobody flagged. */
  preferences(): LabelledRow[] {
    return [...this.tasks.values()].flatMap(({ id, prompt, completions, ends }) => {
      const entries = [...this.given.get(id)!.values()];
      if (entries.some(({ kind }) => kind === "flag")) return [];
      return pairsOf(completions.length).flatMap(([i, j]): LabelledRow[] => {
        const votes = this.criteria.map((criterion) => votesOn(entries, criterion, i, j));
        if (votes[0].length === 0) return [];
        const firsts = mean(votes[0]) >= 0.5;
        const share = (of: number[]) => (firsts ? mean(of) : 1 - mean(of));
        const strengths = entries.flatMap(({ strength }) => strength?.[this.criteria[0]] ?? []);
        const [chosen, rejected] = firsts ? [i, j] : [j, i];
        return [
          {
            prompt,
            chosen: completions[chosen],
            rejected: completions[rejected],
            agreement: share(votes[0]),
            annotators: votes[0].length,
            ...(strengths.length > 0 ? { clearly: strengths.filter((how) => how === "clearly").length / strengths.length } : {}),
            ...Object.fromEntries(this.criteria.flatMap((name, k) => (name === OVERALL || votes[k].length === 0 ? [] : [[name, share(votes[k])]]))),
            ...ends,
          },
        ];
      });
    });
  }

  close(): Promise<void> {
    return this.log.close();
  }
}

/** The one question where no criteria are named: which is better? It is `agreement` and has no column of its own. */
export const OVERALL = "overall";

/** Krippendorff's alpha of the labels of each task, pair by pair. */
export function alphaOf(tasks: readonly (readonly LabelEntry[])[], criterion: string): number | undefined {
  return krippendorff(
    tasks.flatMap((entries) => {
      const count = entries.find(({ ranks }) => ranks?.[criterion])?.ranks?.[criterion].length ?? 0;
      return pairsOf(count).map(([i, j]) => votesOn(entries, criterion, i, j));
    }),
  );
}

/** For each label: 1 if i is ranked before j, 0 if after, 1/2 for a tie. */
function votesOn(entries: readonly LabelEntry[], criterion: string, i: number, j: number): number[] {
  return entries.flatMap(({ ranks }) => {
    const of = ranks?.[criterion];
    return of ? [of[i] === of[j] ? 0.5 : Number(of[i] < of[j])] : [];
  });
}

const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const word = (hex: string) => Number.parseInt(hex.slice(0, 8), 16);
