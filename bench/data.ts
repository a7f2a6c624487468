import { itemBatches, Random, Tokenizer, trainBpe } from "../lib/index.js";
import type { PreferenceRow } from "../lib/data/preferences.js";
import { orders } from "../lib/data/order.js";
import { Comparisons } from "../lib/rlhf/batch/rows.js";
import type { Prepared } from "./kernels.js";

// The cost of a step's data and of an epoch's order, as the data grows.

export const DATA_ROWS = [1e3, 1e4, 1e5, 1e6];
export const BATCH = 64;

/** Comparisons whose prompts have 4 words and whose completions have 8. */
export function* comparisonRows(count: number): Generator<PreferenceRow> {
  const random = new Random(0, 0);
  const words = Array.from({ length: 500 }, () =>
    Array.from({ length: 2 + random.below(6) }, () => String.fromCharCode(97 + random.below(26))).join(""),
  );
  const said = (length: number) => Array.from({ length }, () => words[random.below(words.length)]).join(" ");
  for (let i = 0; i < count; i++) yield { prompt: said(4), chosen: said(8), rejected: said(8) };
}

export async function readComparisonRows(count: number): Promise<Comparisons> {
  const texts = [...comparisonRows(200)].map(({ prompt }) => prompt);
  return Comparisons.read(comparisonRows(count), new Tokenizer(trainBpe(texts, { vocabulary: 600 })));
}

const repeated = (work: (run: number) => unknown) => {
  let runs = 0;
  return async (times: number) => {
    const start = performance.now();
    for (let i = 0; i < times; i++) work(runs++);
    return performance.now() - start;
  };
};

/** Reads the rows of one step after another. */
export async function stepData(rows: number): Promise<Prepared> {
  const all = await readComparisonRows(rows);
  return {
    timer: repeated(itemBatches(all, { batch: BATCH, seed: 0 })),
    cost: { flops: 1, read: 0, write: 0 }, // the same at every size
    dispose: () => all[Symbol.dispose](),
  };
}

/** Draws the order of one epoch after another. */
export function epochOrder(rows: number): Prepared {
  const timer = repeated(orders(rows, (epoch) => new Random(0, 0).at(epoch)));
  return { timer, cost: { flops: rows, read: 0, write: 0 }, dispose: () => undefined };
}
