import type { Transformer } from "../../model/transformer.js";
import { AdamW, learningRateAt, type AdamWOptions, type Schedule } from "./optimizer.js";
import { stepOn } from "./update.js";

/** What a loop remembers from one round to the next: objects of numbers, by name. */
export type Carried = Record<string, object>;

/** What every round of a loop tells, beside its own figures. */
export interface Round {
  /** Counted from 1. */
  step: number;
}

/** What a checkpoint keeps of a learner, beside the optimizers. */
export interface LearnerState {
  /** Rounds done. */
  round: number;
  /** The numbers that the loop carries from round to round. */
  carried: Carried;
}

/**
 * What a training loop keeps beside the weights: an optimizer per model, the rounds done, and carried numbers.
 * A checkpoint holds it together with the weights. A loop that is given one goes on where it stands.
 */
export class Learner implements Disposable {
  /** Rounds done: optimizer steps, or updates of a policy. */
  round = 0;
  /** AdamW of each trained model, by the model's role. */
  readonly optimizers: Record<string, AdamW>;
  private carried: Carried = {};

  /**
   * @param trained the models that learn, by role
   * @param options AdamW's options and the learning rate over `steps` rounds
   * @param rates   the highest learning rate of a role that has its own
   */
  constructor(
    readonly trained: Record<string, Transformer>,
    private readonly options: Schedule & AdamWOptions,
    private readonly rates: Record<string, number | undefined> = {},
  ) {
    const roles = Object.entries(trained);
    this.optimizers = Object.fromEntries(roles.map(([role, model]) => [role, new AdamW(model.trained, options)]));
  }

  /** The rounds that are left, counted from 0. A round ends with `endRound`. */
  *rounds(): Generator<number> {
    while (this.round < this.options.steps) yield this.round;
  }

  /** The learning rate of a role in this round. */
  learningRate(role: string): number {
    const learningRate = this.rates[role] ?? this.options.learningRate;
    return learningRateAt(this.round, { ...this.options, learningRate });
  }

  /**
   * Steps with the gradients that the role's weights hold.
   * @param batch what the gradients came from: an error carries it
   * @returns the gradient norm before clipping
   */
  step(role: string, batch: readonly unknown[]): Promise<number> {
    return stepOn(batch, this.optimizers[role].step(this.learningRate(role)));
  }

  /** Takes numbers over from the checkpoint, if it has them, and keeps them for the next one. */
  carry<T extends Carried>(carried: T): T {
    for (const [name, numbers] of Object.entries(carried)) Object.assign(numbers, this.carried[name]);
    this.carried = carried;
    return carried;
  }

  /** Ends the round: its metrics, with its number counted from 1. */
  endRound<T extends object>(metrics: T): Round & T {
    return { step: ++this.round, ...metrics };
  }

  /** The rounds done and the carried numbers, for a checkpoint. */
  state(): LearnerState {
    return { round: this.round, carried: this.carried };
  }

  /** Goes on from what `state` gave. The optimizers are restored one by one. */
  restore({ round, carried }: LearnerState): void {
    this.round = round;
    for (const [name, numbers] of Object.entries(carried)) Object.assign((this.carried[name] ??= {}), numbers);
  }

  /** Frees the optimizers' moments. */
  [Symbol.dispose](): void {
    for (const optimizer of Object.values(this.optimizers)) optimizer.dispose();
  }
}
