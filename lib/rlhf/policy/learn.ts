import { Random } from "../../device/philox.js";
import type { Batch, Minibatch } from "../batch/batch.js";

/** The stream of random numbers that orders minibatches. */
const SHUFFLE_STREAM = 2;

/** What a step on a minibatch tells. */
export interface StepFigures {
  /** Figures that are means over completions. */
  perCompletion: Record<string, number>;
  /** Figures that are means over tokens. */
  perToken: Record<string, number>;
  /** Figures of the last step alone. */
  last: Record<string, number>;
}

/** How an update goes through its completions. */
export interface EpochOptions {
  seed: number;
  /** Passes over the completions. */
  epochs: number;
  /** Optimizer steps of a pass, as far as there are prompts. A prompt's completions stay in one. */
  minibatches: number;
  /** No further pass is made once the mean of `approxKl` over a pass exceeds this. */
  targetKl: number;
}

/**
 * Goes through a batch, epoch by epoch, in minibatches of whole prompts whose order is drawn anew each time.
 * @param step learns from a minibatch
 * @returns the figures of the last epoch, each the mean over the batch, and how many epochs were made
 */
export async function epochs(
  batch: Batch,
  update: number,
  { seed, epochs: most, minibatches, targetKl }: EpochOptions,
  step: (minibatch: Minibatch) => Promise<StepFigures>,
): Promise<Record<string, number>> {
  const { groups } = batch;
  let figures: Record<string, number> = { epochs: 0 };
  for (let epoch = 0; epoch < most && !(figures.approxKl > targetKl); epoch++) {
    figures = { epochs: epoch + 1 };
    const order = new Random(seed, SHUFFLE_STREAM, update, epoch).shuffle(groups.map((_, i) => i));
    for (let i = 0, first = true; i < minibatches; i++) {
      const [begin, end] = [i, i + 1].map((k) => Math.floor((k * order.length) / minibatches));
      if (begin === end) continue; // more minibatches than prompts
      const minibatch = batch.minibatch(
        order.slice(begin, end).map((group) => groups[group]),
        first && epoch === 0,
      );
      first = false;
      const { perCompletion, perToken, last } = await step(minibatch).catch(async (error: unknown) => {
        if ((error as { batch?: object }).batch)
          // the offending completions, with what was known of their tokens
          (error as { batch: object[] }).batch = await batch.described(minibatch.completions);
        throw error;
      });
      add(figures, perCompletion, minibatch.completions.length / batch.size);
      add(figures, perToken, minibatch.tokens / batch.tokens);
      Object.assign(figures, last);
    }
  }
  return figures;
}

function add(total: Record<string, number>, figures: Record<string, number>, weight: number): void {
  for (const [name, value] of Object.entries(figures)) total[name] = (total[name] ?? 0) + value * weight;
}

/** The figures of two steps on one minibatch. */
export const joined = (a: StepFigures, b: StepFigures): StepFigures => ({
  perCompletion: { ...a.perCompletion, ...b.perCompletion },
  perToken: { ...a.perToken, ...b.perToken },
  last: { ...a.last, ...b.last },
});
