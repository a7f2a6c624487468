import { ops } from "../../lib/index.js";
import {
  ids,
  largest,
  normal,
  offsets,
  truth,
  uniform,
  widen,
  type Case,
  type Numbers,
  type Truth,
  type Widened,
} from "../truth.js";
import type { Random } from "../random.js";
import { alike, collect, row, rowGrad, rowsIn } from "./logprob.js";
import { common, kept, losses, M, natural, options, stats } from "./policy_loss.js";

type Round = (x: number) => number;

const logitsOf = (h: Float64Array, C: number, weight: Float64Array, V: number, at: number, f: Round) =>
  Array.from({ length: V }, (_, j) => {
    let sum = 0;
    for (let c = 0; c < C; c++) sum = f(sum + f(h[at * C + c] * weight[j * C + c]));
    return sum;
  });

const fromHidden = ({ h, weight, rows, y, temperature }: Widened, f: Round) =>
  collect(
    Array.from(rows as number[], (at, i) =>
      row(
        logitsOf(h, h.shape[1], weight, weight.shape[0], at, f).map((v) => f(v * f(1 / temperature))),
        y[i],
        f,
      ),
    ),
  );

const hidden = (random: Random): Case[] =>
  [
    [3, 2, 5, 0],
    [1, 1, 1, 1],
    [5, 19, 67, 9],
    [6, 336, 1031, 7],
    [40, 16, 520, 300],
  ].map(([N, C, V, M], i): Case => ({
    h: normal(random, [N, C]),
    weight: normal(random, [V, C]),
    rows: ids(random, M, N),
    y: ids(random, M, V),
    temperature: [1, 0.7, 1.3][i % 3],
  }));

export const linearLogprob = truth({
  op: "linearLogprob",
  reference: fromHidden,
  draw: hidden,
  extremes: (random) => [
    oneIsNan({
      h: normal(random, [3, 20]),
      weight: normal(random, [600, 20]),
      rows: { shape: [4], data: Int32Array.of(0, 1, 2, 1) },
      y: ids(random, 4, 600),
      temperature: 1,
    }),
    {
      h: normal(random, [3, 20], 50),
      weight: normal(random, [600, 20], 50),
      rows: ids(random, 4, 3),
      y: ids(random, 4, 600),
      temperature: 1,
    },
  ],
  gradient: {
    wrt: ["h", "weight"],
    outputs: ["logp", "entropy"],
    call: ({ h, weight, rows, y, temperature }) => ({
      ...ops.linearLogprob(h, weight, rows, y, { temperature: temperature as unknown as number }),
    }),
  },
  bench: [{ shape: "M 1024, C 768, V 50257", draw: (random) => head(random) }],
  cost: headCost(1),
});

/** The hidden state of token 1 is NaN. */
export function oneIsNan(inputs: Case): Case {
  const { shape, data } = inputs.h as Numbers;
  data.fill(NaN, shape[1], 2 * shape[1]);
  return inputs;
}

/** A language model's head at the shape that other stacks are measured at. */
export const head = (random: Random, [M, C, V] = [1024, 768, 50257]): Case => {
  return {
    h: uniform(random, [M, C], -1, 1),
    weight: uniform(random, [V, C], -0.08, 0.08),
    rows: { shape: [M], data: Int32Array.from({ length: M }, (_, i) => i) },
    y: ids(random, M, V),
    temperature: 1,
  };
};
/** So many products of the head's size; inputs and their gradients once. */
export function headCost(products: number): Truth["cost"] {
  return ({ h, weight }) => {
    const [[M, C], [V]] = [h, weight].map((one) => (one as Numbers).shape);
    const bytes = 4 * (M * C + V * C);
    return { flops: 2 * products * M * C * V, read: bytes, write: products > 1 ? bytes : 12 * M };
  };
}

export const linearLogprobGrad = truth({
  op: "linearLogprobGrad",
  reference({ h, weight, rows, y, logp, lse, entropy, dlogp, dentropy, temperature, dweight }: Widened, f) {
    const [N, C] = h.shape;
    const V = weight.shape[0];
    const dh = new Float64Array(N * C);
    const dw = Float64Array.from(dweight);
    (rows as Float64Array).forEach((at, i) => {
      const x = logitsOf(h, C, weight, V, at, f).map((v) => f(v * f(1 / temperature)));
      const g = rowGrad(
        x,
        y[i],
        { logp: logp[i], lse: lse[i], entropy: entropy[i] },
        dlogp[i],
        dentropy?.[i] ?? 0,
        temperature,
        f,
      );
      for (let c = 0; c < C; c++) {
        let sum = 0;
        for (let j = 0; j < V; j++) {
          sum = f(sum + f(g[j] * weight[j * C + c]));
          dw[j * C + c] = f(dw[j * C + c] + f(g[j] * h[at * C + c]));
        }
        dh[at * C + c] = f(dh[at * C + c] + sum);
      }
    });
    return { dh, dweight: dw };
  },
  draw: (random) =>
    hidden(random).map((one) => ({
      ...rowsIn(
        one,
        (one.rows as Numbers).shape[0],
        random,
        fromHidden(widen(one), (x) => x),
      ),
      dh: true,
      dweight: normal(random, (one.weight as Numbers).shape),
    })),
  natural: ({ h, weight }) => ({ dh: largest(weight), dweight: largest(h) }), // as of dlogits
  ulp: 16, // a few probabilities make up a sum, each off by what its logit of ten to forty is
  bench: [
    {
      shape: "M 1024, C 768, V 50257",
      draw: (random) => ({ ...head(random), ...alike(random, 1024), dh: true, dweight: normal(random, [50257, 768]) }),
    },
  ],
  cost: headCost(3),
});

/** Rows of logits at the temperature. */
function rowsOf({ h, weight, rows, temperature }: Widened, f: Round): number[][] {
  const [V, C] = weight.shape;
  return Array.from(rows as number[], (at) =>
    Array.from({ length: V }, (_, j) => {
      let sum = 0;
      for (let c = 0; c < C; c++) sum = f(sum + f(h[at * C + c] * weight[j * C + c]));
      return f(sum / temperature);
    }),
  );
}

export const linearPolicyLoss = truth({
  op: "linearPolicyLoss",
  natural,
  reference(inputs: Widened, f) {
    const made = rowsOf(inputs, f).map((x, i) => {
      const m = Math.max(...x);
      const sum = x.reduce((s, v) => f(s + f(Math.exp(f(v - m)))), 0);
      const lse = f(m + f(Math.log(sum)));
      const p = x.map((v) => f(Math.exp(f(v - lse))));
      return { logp: f(x[inputs.y[i]] - lse), entropy: -p.reduce((s, q, j) => f(s + f(q * f(x[j] - lse))), 0) };
    });
    const [logp, entropy] = [made.map((one) => one.logp), made.map((one) => one.entropy)];
    return { ...losses(inputs, logp, entropy, f), logp, entropy };
  },
  draw(random) {
    const one = (C: number, V: number, more: Case): Case => ({
      h: normal(random, [23, C]),
      weight: normal(random, [V, C], 0.5),
      rows: ids(random, M, 23),
      y: ids(random, M, V),
      temperature: 0.9,
      ...common(random, { oldLogp: uniform(random, [M], -6, -1), ...more }),
      dh: true,
      dweight: { shape: [V, C], data: new Float32Array(V * C) },
    });
    return [
      one(8, 37, {}),
      one(19, 530, { entropyCoef: 0.05, mask: kept(random) }),
      one(8, 37, { objective: "log-likelihood", refLogp: uniform(random, [M], -6, -1), klCoef: 0.2, estimator: "k1" }),
    ];
  },
  extremes: (random) => [
    oneIsNan({
      h: normal(random, [3, 8]),
      weight: normal(random, [37, 8], 0.5),
      rows: { shape: [M], data: Int32Array.from({ length: M }, (_, i) => Number(i === 20)) },
      y: ids(random, M, 37),
      temperature: 1,
      ...common(random, {}),
      dh: true,
      dweight: { shape: [37, 8], data: new Float32Array(37 * 8) },
    }),
  ],
  bitsOnly: ["dh", "dweight"],
  gradients: { dh: "h", dweight: "weight" },
  ulp: 8,
  bench: [
    {
      shape: "M 1024, C 768, V 50257",
      draw(random) {
        const inputs = head(random);
        const M = (inputs.y as Numbers).shape[0];
        const { shape } = inputs.weight as Numbers;
        return {
          ...inputs,
          oldLogp: uniform(random, [M], -13, -9),
          advantages: normal(random, [M]),
          cuSeqlens: offsets(Array<number>(16).fill(M / 16)),
          denominator: M,
          ...options,
          stats: stats(),
          dh: true,
          dweight: { shape, data: new Float32Array(shape[0] * shape[1]) },
        };
      },
    },
  ],
  cost: headCost(3),
});
