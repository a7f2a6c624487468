import { ops } from "../../lib/index.js";
import { ids, normal, truth, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

const draw = (random: Random): Case[] =>
  [
    [1, 1, 1],
    [4, 19, 0],
    [9, 33, 30],
    [5, 64, 3],
  ].map(([N, C, M], i) => ({
    h: normal(random, [N, C]),
    weight: normal(random, [1, C]),
    bias: i % 2 === 0 ? normal(random, [1]) : undefined,
    rows: ids(random, M, N),
  }));

export const score = truth({
  op: "score",
  reference({ h, weight, bias, rows }: Widened, f) {
    const C = h.shape[1];
    return {
      value: Array.from(rows as number[], (row) => {
        let sum = 0;
        for (let c = 0; c < C; c++) sum = f(sum + f(h[row * C + c] * weight[c]));
        return bias ? f(sum + bias[0]) : sum;
      }),
    };
  },
  draw,
  gradient: {
    wrt: ["h", "weight", "bias"],
    outputs: ["value"],
    call: ({ h, weight, rows, bias }) => ({ value: ops.score(h, weight, rows, bias) }),
  },
});

export const scoreGrad = truth({
  op: "scoreGrad",
  reference({ dvalue, h, weight, rows, dweight, dbias }: Widened, f) {
    const [N, C] = h.shape;
    const dh = new Float64Array(N * C);
    const dw = Float64Array.from(dweight);
    let db = dbias?.[0] ?? 0;
    (rows as Float64Array).forEach((row, m) => {
      for (let c = 0; c < C; c++) {
        dh[row * C + c] = f(dh[row * C + c] + f(dvalue[m] * weight[c]));
        dw[c] = f(dw[c] + f(dvalue[m] * h[row * C + c]));
      }
      db = f(db + dvalue[m]);
    });
    return { dh, dweight: dw, dbias: [db] };
  },
  draw: (random) =>
    draw(random).map((one) => ({
      ...one,
      bias: undefined,
      dvalue: normal(random, (one.rows as Numbers).shape),
      dh: true,
      dweight: normal(random, [1, (one.h as Numbers).shape[1]]),
      dbias: one.bias,
    })),
});
