import { createHash } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { rangeError, typeError } from "../device/errors.js";
import { Random } from "../device/philox.js";
import { Agreement } from "./agreement.js";
import { answerFrom, type Answer } from "./answers.js";
import type { LabelEntry, LabelLog } from "./label_log.js";
import { pairsOf } from "./labels.js";
import { Positions } from "./positions.js";
import type { CompletedRow } from "./preferences.js";
import type { Text } from "./texts.js";
import { OVERALL, votesOn } from "./votes.js";

/**
 * Completions of one prompt that people compare: a pair, or more for a ranking (Ouyang et al.
 * 2022).
 */
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
  /** The completions in the order in which they are shown. */
  completions: Text[];
}

export interface LabellingProgress {
  /** Labels, skips and flags of this annotator. */
  mine: number;
  /** Labels there are of those wanted. */
  labels: number;
  wanted: number;
  /** Krippendorff's alpha of each criterion; null where nothing was labelled twice. */
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

/** What an annotator sees. */
export interface View {
  /**
   * How often this annotator has answered or undone: an answer or an undo names it, so that each
   * counts once.
   */
  turn: number;
  /** Null when there is nothing left for this one. */
  shown: Shown | null;
  progress: LabellingProgress;
}

const STREAMS = { order: 41, twice: 42, shown: 43 };
const LEASE = 15 * 60; // seconds for which a task that was shown waits for its answer
const MOST_ANNOTATORS = 1000;

/** A task and what has been said of it. */
interface Judged {
  readonly task: Task;
  /** In the order in which tasks are handed out. */
  readonly position: number;
  /** Labels wanted. */
  readonly wanted: number;
  /** The standing answers, one of each annotator. */
  readonly given: LabelEntry[];
  labels: number;
  flags: number;
  /** Who has been shown it and not answered. */
  readonly holders: string[];
}

interface Person {
  turn: number;
  /** What was done last. */
  last?: LabelEntry;
  /** Standing answers. */
  mine: number;
  /** Answers in their order; those that do not stand are passed over. */
  readonly answered: LabelEntry[];
  lease?: { of: Judged; at: number };
}

/**
 * Hands tasks out to annotators and keeps what they say. Tasks come in an order drawn from the
 * seed; which of them two annotators label, and in which order each sees the completions, depend on
 * the seed and the texts alone.
 *
 * Calls are done one after the other: each sees what the one before has changed. Their cost does
 * not grow with the number of tasks or labels, since counts are kept of everything that progress
 * tells.
 */
export class Labelling {
  private readonly tasks: readonly Task[];
  private readonly judged = new Map<string, Judged>();
  private readonly order: Judged[] = [];
  private readonly people = new Map<string, Person>();
  private readonly needy: Positions; // tasks that want labels
  // annotator who asked: tasks that want labels and have none of this one
  private readonly open = new Map<string, Positions>();
  private readonly agreements: ReadonlyMap<string, Agreement>; // criterion
  private readonly counts = { labels: 0, wanted: 0, shared: 0 };
  private last: Promise<unknown> = Promise.resolve();

  /** @throws RangeError `EMPTY` if there is nothing to compare */
  constructor(
    tasks: readonly Task[],
    private readonly log: LabelLog,
    private readonly options: LabellingOptions,
  ) {
    const byId = new Map(tasks.map((one) => [one.id, one]));
    this.tasks = [...byId.values()];
    if (byId.size === 0)
      throw rangeError("EMPTY", "there is nothing to compare: no prompt has two completions that differ");
    this.needy = new Positions(byId.size);
    this.agreements = new Map(options.criteria.map((criterion) => [criterion, new Agreement()]));
    for (const [position, id] of new Random(options.seed, STREAMS.order).shuffle([...byId.keys()]).entries()) {
      const wanted = 1 + Number(new Random(options.seed, STREAMS.twice, word(id)).uniform() < options.twice);
      const judged: Judged = { task: byId.get(id)!, position, wanted, given: [], labels: 0, flags: 0, holders: [] };
      this.judged.set(id, judged);
      this.order.push(judged);
      this.needy.add(position);
      this.counts.wanted += wanted;
    }
    for (const entry of log.entries) this.apply(entry);
  }

  get criteria(): readonly string[] {
    return this.options.criteria;
  }

  /** Does work after all that was asked before. */
  private serial<T>(work: () => T | Promise<T>): Promise<T> {
    const done = this.last.then(work, work);
    this.last = done;
    return done;
  }

  /** Resolves when all that was asked before is done. */
  async settled(): Promise<void> {
    await this.last.catch(() => undefined);
  }

  /** @throws RangeError `LIMIT` for one more than there may be */
  private person(annotator: string): Person {
    let person = this.people.get(annotator);
    if (person) return person;
    if (this.people.size >= MOST_ANNOTATORS)
      throw rangeError("LIMIT", `annotator is new, and there are ${MOST_ANNOTATORS}, wanted one of them`);
    this.people.set(annotator, (person = { turn: 0, mine: 0, answered: [] }));
    return person;
  }

  private apply(entry: LabelEntry): void {
    const { annotator } = entry;
    const person = this.people.get(annotator) ?? { turn: 0, mine: 0, answered: [] };
    this.people.set(annotator, person);
    person.turn++;
    person.last = entry;
    const judged = this.judged.get(entry.task);
    if (judged?.task.completions.length !== entry.shown.length) return; // of texts that are no longer compared
    const wasNeedy = isNeedy(judged);
    const { given } = judged;
    const before = given.findIndex((one) => one.annotator === annotator);
    this.count(judged, -1);
    if (before >= 0) this.tally(judged, person, given.splice(before, 1)[0], -1);
    if (entry.kind !== "undo") {
      given.push(entry);
      person.answered.push(entry);
      this.tally(judged, person, entry, 1);
    }
    this.count(judged, 1);
    this.reopen(judged, wasNeedy === isNeedy(judged) ? [annotator] : this.open.keys());
  }

  private tally(judged: Judged, person: Person, { kind }: LabelEntry, sign: 1 | -1): void {
    person.mine += sign;
    if (kind === "label") judged.labels += sign;
    if (kind === "flag") judged.flags += sign;
  }

  /** Adds what a task contributes to the counts, or takes it away before the task changes. */
  private count({ task, wanted, given, labels, flags }: Judged, sign: 1 | -1): void {
    this.counts.labels += sign * labels;
    this.counts.wanted += sign * (flags > 0 ? labels - wanted : Math.max(0, labels - wanted));
    if (labels < 2) return;
    this.counts.shared += sign;
    for (const [criterion, agreement] of this.agreements)
      for (const [i, j] of pairsOf(task.completions.length)) agreement.count(votesOn(given, criterion, i, j), sign);
  }

  /** Notes for some annotators whether a task is open to them. */
  private reopen(judged: Judged, annotators: Iterable<string>): void {
    const { position, given } = judged;
    if (isNeedy(judged)) this.needy.add(position);
    else this.needy.delete(position);
    for (const annotator of annotators) {
      const open = this.open.get(annotator);
      if (isNeedy(judged) && !given.some((one) => one.annotator === annotator)) open?.add(position);
      else open?.delete(position);
    }
  }

  private openTo(annotator: string, { answered }: Person): Positions {
    let open = this.open.get(annotator);
    if (open) return open;
    this.open.set(annotator, (open = new Positions(this.order.length, this.needy)));
    for (const entry of answered) if (this.stands(entry)) open.delete(this.judged.get(entry.task)!.position);
    return open;
  }

  private shownOf({ task: { id, prompt, completions } }: Judged, annotator: string): Shown {
    return { task: id, prompt, completions: this.placesOf(id, annotator).map((place) => completions[place]) };
  }

  private placesOf(id: string, annotator: string): number[] {
    const places = this.judged.get(id)!.task.completions.map((_, place) => place);
    return new Random(
      this.options.seed,
      STREAMS.shown,
      word(id),
      word(createHash("sha256").update(annotator).digest("hex")),
    ).shuffle(places);
  }

  /**
   * The next task of an annotator, the same until it is answered; undefined when there is nothing
   * left for this one.
   * @throws RangeError `LIMIT` for one annotator more than there may be
   */
  next(annotator: string, now = Date.now() / 1000): Promise<Shown | undefined> {
    return this.serial(() => this.handOut(annotator, now));
  }

  /** Hands out a task like `next`, with what the page shows beside it. */
  view(annotator: string): Promise<View> {
    return this.serial(() => {
      const shown = this.handOut(annotator, Date.now() / 1000) ?? null;
      return { turn: this.person(annotator).turn, shown, progress: this.progress(annotator) };
    });
  }

  private handOut(annotator: string, now: number): Shown | undefined {
    const person = this.person(annotator);
    const kept =
      person.lease && (now - person.lease.at < LEASE || isNeedy(person.lease.of)) ? person.lease.of : undefined;
    const judged = kept ?? this.firstFree(annotator, person, now);
    this.hold(annotator, person, judged, now);
    return judged && this.shownOf(judged, annotator);
  }

  private firstFree(annotator: string, person: Person, now: number): Judged | undefined {
    const open = this.openTo(annotator, person);
    for (let at = open.first(); at !== undefined; at = open.first(at + 1)) {
      const judged = this.order[at];
      const held = judged.holders.filter(
        (other) => other !== annotator && now - this.people.get(other)!.lease!.at < LEASE,
      );
      if (judged.labels + held.length < judged.wanted) return judged;
    }
    return undefined;
  }

  private hold(annotator: string, person: Person, judged: Judged | undefined, at: number): void {
    const holders = person.lease?.of.holders;
    holders?.splice(holders.indexOf(annotator), 1);
    judged?.holders.push(annotator);
    person.lease = judged && { of: judged, at };
  }

  /**
   * Keeps an answer to the task that the annotator has been shown; it is on the disk when this
   * returns. The same answer sent again counts once.
   * @param turn the annotator's turn that is answered, as `view` gave it; without it the present
   *   one
   * @throws TypeError `STALE` if that is another one, `ANSWER` for what is no answer, `FILE` if the
   *   disk does not take it
   */
  answer(annotator: string, id: string, answer: Answer, turn?: number): Promise<void> {
    return this.serial(async () => {
      const person = this.person(annotator);
      const judged = this.judged.get(id);
      if (!judged) throw typeError("STALE", `task is ${id}, and there is none of this name`);
      const entry = this.entry(annotator, id, answerFrom(answer, this.criteria, judged.task.completions.length));
      if (turn === person.turn - 1 && isSame(person.last!, entry)) return;
      if (person.lease?.of !== judged || (turn ?? person.turn) !== person.turn)
        throw typeError("STALE", `task is ${id}, which is not what ${annotator} was shown last`);
      await this.log.append(entry);
      this.hold(annotator, person, undefined, 0);
      this.apply(entry);
    });
  }

  private entry(annotator: string, id: string, { kind, seconds, reason, ranks, strength }: Answer): LabelEntry {
    const shown = this.placesOf(id, annotator);
    const hundredths = Math.round(100 * seconds) + 0; // no -0, which JSON does not keep
    const inOrder = (of: readonly number[]) => shown.map((_, place) => of[shown.indexOf(place)]);
    return {
      kind,
      task: id,
      annotator,
      at: new Date().toISOString(),
      shown,
      seconds: hundredths / 100,
      ...(ranks
        ? { ranks: Object.fromEntries(Object.entries(ranks).map(([criterion, of]) => [criterion, inOrder(of)])) }
        : {}),
      ...(strength ? { strength } : {}),
      ...(reason ? { reason } : {}),
    };
  }

  /**
   * Takes back the annotator's last answer; its task is the next one. Undefined if there is none.
   * @param turn the annotator's turn, as `view` gave it: the same undo sent again takes nothing
   *   more back. Without it the present one
   * @throws TypeError `STALE` if the annotator has done something since, `FILE` if the disk does
   *   not take it
   */
  undo(annotator: string, turn?: number): Promise<Shown | undefined> {
    return this.serial(async () => {
      const person = this.person(annotator);
      if (turn === person.turn - 1 && person.last?.kind === "undo") return this.handOut(annotator, Date.now() / 1000);
      if ((turn ?? person.turn) !== person.turn)
        throw typeError("STALE", `turn is ${turn}, and ${annotator} is at ${person.turn}`);
      while (person.answered.length > 0 && !this.stands(person.answered.at(-1)!)) person.answered.pop();
      const last = person.answered.at(-1);
      if (!last) return undefined;
      const entry: LabelEntry = {
        kind: "undo",
        task: last.task,
        annotator,
        at: new Date().toISOString(),
        shown: last.shown,
        seconds: 0,
      };
      await this.log.append(entry);
      this.apply(entry);
      const judged = this.judged.get(last.task)!;
      this.hold(annotator, person, judged, Date.now() / 1000);
      return this.shownOf(judged, annotator);
    });
  }

  private stands(entry: LabelEntry): boolean {
    return this.judged.get(entry.task)!.given.includes(entry);
  }

  progress(annotator: string): LabellingProgress {
    const alpha = Object.fromEntries(
      [...this.agreements].map(([criterion, agreement]) => [criterion, agreement.alpha ?? null]),
    );
    return { mine: this.people.get(annotator)?.mine ?? 0, ...this.counts, alpha };
  }

  /**
   * What the reward stage learns from: all pairs of every task that someone labelled and nobody
   * flagged.
   */
  preferences(): LabelledRow[] {
    return this.tasks.flatMap(({ id, prompt, completions, ends }) => {
      const { given, flags } = this.judged.get(id)!;
      if (flags > 0) return [];
      return pairsOf(completions.length).flatMap(([i, j]): LabelledRow[] => {
        const votes = this.criteria.map((criterion) => votesOn(given, criterion, i, j));
        if (votes[0].length === 0) return [];
        const firsts = mean(votes[0]) >= 0.5;
        const share = (of: number[]) => (firsts ? mean(of) : 1 - mean(of));
        const strengths = given.flatMap(({ strength = {} }) =>
          Object.hasOwn(strength, this.criteria[0]) ? strength[this.criteria[0]] : [],
        );
        const [chosen, rejected] = firsts ? [i, j] : [j, i];
        return [
          {
            prompt,
            chosen: completions[chosen],
            rejected: completions[rejected],
            agreement: share(votes[0]),
            annotators: votes[0].length,
            ...(strengths.length > 0
              ? { clearly: strengths.filter((how) => how === "clearly").length / strengths.length }
              : {}),
            ...Object.fromEntries(
              this.criteria.flatMap((name, k) =>
                name === OVERALL || votes[k].length === 0 ? [] : [[name, share(votes[k])]],
              ),
            ),
            ...ends,
          },
        ];
      });
    });
  }

  async close(): Promise<void> {
    await this.settled();
    await this.log.close();
  }
}

const isNeedy = ({ labels, flags, wanted }: Judged) => flags === 0 && labels < wanted;

/** Whether two answers say the same, whenever they were given. */
function isSame(a: LabelEntry, b: LabelEntry): boolean {
  const said = ({ kind, task: id, ranks, strength, reason }: LabelEntry) => ({ kind, id, ranks, strength, reason });
  return isDeepStrictEqual(said(a), said(b));
}

const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const word = (hex: string) => Number.parseInt(hex.slice(0, 8), 16);
