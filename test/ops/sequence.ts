import { ops } from "../../lib/index.js";
import { normal, offsets, sequences, truth, type Case, type Widened } from "../truth.js";

const lengths = [3, 0, 41, 1];
export const sequenceSum = truth({
  op: "sequenceSum",
  reference: ({ x, cuSeqlens, mean }: Widened, f) => ({
    y: sequences(cuSeqlens).map(([a, b]) => {
      const sum = Array.from(x.slice(a, b) as number[]).reduce((s, v) => f(s + v), 0);
      return mean && b > a ? f(sum / (b - a)) : sum;
    }),
  }),
  draw: (random) => [0, 1].map((mean): Case => ({ x: normal(random, [45]), cuSeqlens: offsets(lengths), mean })),
  gradient: {
    wrt: ["x"],
    outputs: ["y"],
    call: ({ x, cuSeqlens, mean }) => ({ y: ops.sequenceSum(x, cuSeqlens, { mean: Boolean(mean) }) }),
  },
});
export const sequenceSumGrad = truth({
  op: "sequenceSumGrad",
  reference: ({ dy, cuSeqlens, mean }: Widened, f) => ({
    dx: sequences(cuSeqlens).flatMap(([a, b], i) => new Array<number>(b - a).fill(mean ? f(dy[i] / (b - a)) : dy[i])),
  }),
  draw: (random) => [0, 1].map((mean): Case => ({ dy: normal(random, [4]), cuSeqlens: offsets(lengths), mean })),
  sizes: () => ({ N: 45 }),
});
