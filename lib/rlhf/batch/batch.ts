import type { Device } from "../../device/device.js";
import { rangeError } from "../../device/errors.js";
import type { Completion } from "../../model/generate.js";
import { run } from "../../tensor/op.js";
import * as ops from "../../tensor/ops/index.js";
import { scope, Tensor } from "../../tensor/tensor.js";
import { promptGroups } from "./episode.js";
import { joinPacked, packEpisodes, type Scored } from "./pack.js";
import { forwardParts, microBatches, tokensIn } from "./units.js";

/** One number per token of a batch's completions. */
export type Column = "logp" | "refLogp" | "values" | "rewards" | "kl" | "advantages" | "returns";

/** Micro-batches of a forward pass, unless said otherwise: episodes at once. */
const EPISODES_AT_ONCE = 64;

/**
 * The completions that an update learns from. Their tokens are packed once. Micro-batches join what is packed.
 * What is known of each token is a column on the device: f32 [M], in the order of the completions.
 * Columns never leave the device.
 */
export class Batch implements Disposable {
  /** int32 [B+1]: the tokens of each completion. */
  readonly cuRows: Int32Array;
  private readonly columns = new Map<Column, Tensor>();
  private packed?: Part[];
  private readonly pieces = new Map<string, Scored>();

  /**
   * @param completions in the order of their requests
   * @param scores      f32 [B]: what the reward gave each
   * @param options     `masked`: completions that were sampled and had no score
   */
  constructor(
    readonly completions: readonly Completion[],
    readonly scores: Float32Array,
    private readonly device: Device,
    private readonly options: { microBatch?: number; sharePrompts?: boolean; masked?: number } = {},
  ) {
    this.cuRows = new Int32Array(completions.length + 1);
    completions.forEach(({ completion }, b) => (this.cuRows[b + 1] = this.cuRows[b] + completion.length));
    const logp = new Float32Array(this.tokens);
    completions.forEach((one, b) => logp.set(one.logp, this.cuRows[b]));
    this.set("logp", Tensor.from(logp, [this.tokens], device));
  }

  /** Completions there are. */
  get size(): number {
    return this.completions.length;
  }
  /** Tokens of all completions. */
  get tokens(): number {
    return this.cuRows[this.cuRows.length - 1];
  }

  /** What is told of the completions. */
  get metrics(): RolloutMetrics {
    return {
      reward: this.scores.reduce((a, b) => a + b, 0) / this.size,
      length: this.tokens / this.size,
      stopped: this.completions.filter(({ stopped }) => stopped).length / this.size,
      masked: this.options.masked ?? 0,
      tokens: this.tokens,
    };
  }

  /** A column, f32 [M]. */
  get(name: Column): Tensor {
    return this.columns.get(name)!;
  }
  /** Puts a column in its place. The batch frees it. */
  set(name: Column, column: Tensor): void {
    this.columns.get(name)?.dispose();
    this.columns.set(name, column);
  }

  /** The micro-batches of a forward pass over all completions, in their order. They are packed once. */
  get parts(): Part[] {
    const { microBatch = EPISODES_AT_ONCE, sharePrompts = true } = this.options;
    const placed = () => this.completions.map((_, b) => this.place(b));
    return (this.packed ??= forwardParts(placed(), microBatch, sharePrompts).map((part) => new Part(this, part)));
  }

  /** Sets a column to what a model says of each token, micro-batch by micro-batch. */
  measure(name: Column, of: (part: Part, into: Tensor) => void): void {
    const column = Tensor.empty([this.tokens], "f32", this.device);
    let at = 0;
    for (const part of this.parts) {
      const into = column.rows(at, (at += part.tokens));
      scope(() => of(part, into));
      into.dispose();
    }
    this.set(name, column);
  }

  /** Sets a column to one number per completion, for each of its tokens. */
  spread(name: Column, numbers: Float32Array): void {
    const ids = new Int32Array(this.tokens);
    for (let b = 0; b < this.size; b++) ids.fill(b, this.cuRows[b], this.cuRows[b + 1]);
    this.set(
      name,
      scope(() => gathered(Tensor.from(numbers, [this.size], this.device), ids)),
    );
  }

  /** Count, sum and sum of squares of a column, or of another tensor f32 [M]. */
  async moments(column: Tensor): Promise<Moments> {
    using moments = scope(() => run("moments", { x: column, cuSeqlens: this.cuRows }).moments);
    const [count, sum, squares] = await moments.read();
    return { count, sum, squares };
  }

  /**
   * Checks that all numbers of a column are finite.
   * @throws RangeError `NAN` naming the completion and the token of the first one that is not. The
   *   error has its `batch`
   */
  async finite(name: Column, step: number): Promise<void> {
    const { sum } = await this.moments(this.get(name));
    if (Number.isFinite(sum)) return;
    const all = (await this.get(name).read()) as Float32Array;
    const at = all.findIndex((value) => !Number.isFinite(value));
    const b = this.cuRows.findIndex((end) => end > at) - 1;
    const [begin, end] = [this.cuRows[b], this.cuRows[b + 1]];
    const what = `step ${step}: ${name} of completion ${b}, at token ${at - begin},`;
    const batch = [{ ...this.completions[b], [name]: all.slice(begin, end) }];
    throw Object.assign(rangeError("NAN", `${what} is ${all[at]}`), { batch });
  }

  /** Completions with what the columns hold of their tokens: an error of a step carries them. */
  async described(completions: readonly PlacedCompletion[]): Promise<object[]> {
    const columns = await Promise.all(
      [...this.columns].map(async ([name, column]) => [name, await column.read()] as const),
    );
    return completions.map(({ place, ...completion }) => {
      const [begin, end] = [this.cuRows[place], this.cuRows[place + 1]];
      const told = columns.map(([name, all]) => [name, all.slice(begin, end)] as const);
      return { ...completion, ...Object.fromEntries(told) };
    });
  }

  /** Groups of one request index that follow one another: an equal prompt that was asked again is another group. */
  get groups(): PlacedCompletion[][] {
    return promptGroups(this.completions.map((_, b) => this.place(b))).flatMap((same) => {
      const starts = same.flatMap(({ index }, i) => (i === 0 || index !== same[i - 1].index ? [i] : []));
      return starts.map((start, i) => same.slice(start, starts[i + 1]));
    });
  }

  /** What is learnt from in one optimizer step: some groups, in micro-batches. */
  minibatch(groups: readonly PlacedCompletion[][], isFirst = false): Minibatch {
    const { microBatch, sharePrompts = true } = this.options;
    const units = sharePrompts ? groups : promptGroups(groups.flat(), false);
    return new Minibatch(
      microBatches(units, microBatch).map((part) => new Part(this, part)),
      isFirst,
    );
  }

  /** @internal The packed tokens of a unit, which is a run of completions. They are packed once. */
  piece(unit: readonly PlacedCompletion[]): Scored {
    const key = `${unit[0].place} ${unit.length}`;
    const packed = this.pieces.get(key) ?? packEpisodes([unit]);
    this.pieces.set(key, packed);
    return packed;
  }

  private place(b: number): PlacedCompletion {
    return { ...this.completions[b], place: b };
  }

  /** Frees the columns. */
  [Symbol.dispose](): void {
    for (const column of this.columns.values()) column.dispose();
  }
}

/** Moments of the numbers of a column. */
export interface Moments {
  /** How many numbers there are. */
  count: number;
  /** The sum of the numbers. */
  sum: number;
  /** The sum of their squares. */
  squares: number;
}

/** What an update tells of its completions. */
export interface RolloutMetrics {
  /** Mean score of the reward. */
  reward: number;
  /** Mean tokens of a completion. */
  length: number;
  /** Share of the completions that ended with a stop id. */
  stopped: number;
  /** Completions that had no score and were left out. */
  masked: number;
  /** Tokens of the completions. */
  tokens: number;
}

/** A completion and its place in the batch. */
export interface PlacedCompletion extends Completion {
  /** The place in the batch, from 0. */
  place: number;
}

/** A micro-batch: packed tokens, and what the columns hold of them. */
export class Part {
  /** The packed tokens, with the rows that predict them. */
  readonly packed: Scored;
  /** The completions, in the order of their tokens. */
  readonly completions: PlacedCompletion[];
  private places?: Int32Array;

  constructor(
    private readonly batch: Batch,
    units: readonly PlacedCompletion[][],
  ) {
    this.completions = units.flat();
    this.packed = joinPacked(units.map((unit) => batch.piece(unit)));
  }

  /** Tokens of its completions. */
  get tokens(): number {
    return this.packed.y.length;
  }

  /** What a column holds of these tokens, f32 [m]. */
  column(name: Column): Tensor {
    return gathered(this.batch.get(name), (this.places ??= this.rows()));
  }

  private rows(): Int32Array {
    const rows = new Int32Array(this.tokens);
    let at = 0;
    for (const { place, completion } of this.completions)
      for (let t = 0; t < completion.length; t++) rows[at++] = this.batch.cuRows[place] + t;
    return rows;
  }
}

/** What one optimizer step learns from. */
export class Minibatch {
  /** @param isFirst whether no step has been made since its completions were sampled */
  constructor(
    /** The micro-batches. */
    readonly parts: readonly Part[],
    /** No step has been made since the completions were sampled. */
    readonly isFirst: boolean,
  ) {}

  /** All its completions. */
  get completions(): PlacedCompletion[] {
    return this.parts.flatMap((part) => part.completions);
  }
  /** Tokens of its completions. */
  get tokens(): number {
    return tokensIn(this.completions);
  }
}

/** column[ids], f32 [ids]. */
const gathered = (column: Tensor, ids: Int32Array): Tensor =>
  ops.embedding(ids, column.reshape([column.size, 1])).reshape([ids.length]);
