import { ops } from "../../lib/index.js";
import { constant, ids, normal, truth, uniform, widen, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

type Round = (x: number) => number;
export interface Row {
  logp: number;
  lse: number;
  entropy: number;
}

/**
 * Log-softmax of one row. Plain code keeps the target's own term out of the sum so that confident
 * tokens keep their digits; in f64 it is the largest term, so that a row that is all but certain
 * keeps them whichever its target is.
 */
export function row(x: number[], y: number, f: Round): Row {
  const m = x.reduce((a, b) => Math.max(a, b), -Infinity);
  const others = x.reduce((s, v, j) => (j === y ? s : f(s + f(Math.exp(f(v - m))))), 0);
  const own = f(Math.exp(f(x[y] - m)));
  const exact = f(Math.PI) === Math.PI;
  const top = x.indexOf(m);
  const below = exact ? x.reduce((s, v, j) => (j === top ? s : s + Math.exp(v - m)), 0) : NaN;
  const tail = x[y] === m ? Math.log1p(others) : exact && m > -Infinity ? Math.log1p(below) : Math.log(f(others + own));
  const total = f(others + own);
  const mean = f(x.reduce((s, v) => (v === -Infinity ? s : f(s + f(f(Math.exp(f(v - m))) * f(v - m)))), 0) / total);
  return { logp: x[y] === m ? -f(tail) : f(f(x[y] - m) - f(tail)), lse: f(m + f(tail)), entropy: f(f(tail) - mean) };
}

/** d(logits) of one row. */
export function rowGrad(
  x: number[],
  y: number,
  { logp, lse, entropy }: Row,
  dlogp: number,
  dentropy: number,
  T: number,
  f: Round,
): number[] {
  return x.map((v, j) => {
    const p = f(Math.exp(f(v - lse)));
    const own = j === y ? -f(dlogp * f(Math.expm1(logp))) : -f(dlogp * p);
    const spread = dentropy && p > 0 ? -f(dentropy * f(p * f(f(v - lse) + entropy))) : 0;
    return f(f(own + spread) / T);
  });
}

export function collect(rows: Row[]): Record<string, number[]> {
  return {
    logp: rows.map(({ logp }) => logp),
    lse: rows.map(({ lse }) => lse),
    entropy: rows.map(({ entropy }) => entropy),
  };
}

const given = ({ logits, temperature }: Widened, f: Round): number[][] => {
  const [M, V] = logits.shape;
  return Array.from({ length: M as number }, (_, i) =>
    Array.from(logits.slice(i * V, (i + 1) * V) as number[], (v) => f(v * f(1 / temperature))),
  );
};
const fromLogits = (inputs: Widened, f: Round) => collect(given(inputs, f).map((x, i) => row(x, inputs.y[i], f)));

const draw = (random: Random): Case[] =>
  [
    [0, 5],
    [1, 1],
    [3, 2],
    [5, 511],
    [4, 513],
    [3, 1031],
  ].map(([M, V], i): Case => ({
    logits: normal(random, [M, V], 3),
    y: ids(random, M, V),
    temperature: [1, 0.7, 1.3][i % 3],
  }));
function withNone(random: Random): Case {
  const logits = normal(random, [3, 700], 4);
  logits.data.forEach((_, j) => {
    if (random.below(2)) (logits.data as Float32Array)[j] = -Infinity;
  });
  logits.data[5] = logits.data[705] = logits.data[1405] = 1;
  return { logits, y: { shape: [3], data: Int32Array.of(5, 5, 5) }, temperature: 1 };
}
function confident(V: number): Case {
  const data = new Float32Array(2 * V).fill(-18.4);
  data[3] = 0;
  data[V + 3] = 90;
  return { logits: { shape: [2, V], data }, y: { shape: [2], data: Int32Array.of(3, 3) }, temperature: 1 };
}
/**
 * Rows with a NaN, which are NaN: alone, among others, beside nothing that is possible, in a later
 * tile, at the target.
 */
function withNan(random: Random): Case {
  const [M, V] = [6, 513];
  const logits = normal(random, [M, V]);
  logits.data.fill(NaN, 0, V);
  logits.data[V + 7] = NaN;
  logits.data.fill(-Infinity, 2 * V, 3 * V)[2 * V + 40] = NaN;
  logits.data[4 * V - 1] = NaN;
  logits.data.fill(-Infinity, 4 * V, 5 * V)[5 * V - 1] = NaN;
  return { logits, y: { shape: [M], data: Int32Array.of(3, 2, 1, 9, V - 1, 4) }, temperature: 0.9 };
}
const extremes = (random: Random): Case[] => [
  withNan(random),
  withNone(random),
  confident(600),
  { logits: constant([2, 530], -1e5), y: ids(random, 2, 530), temperature: 1 },
  { logits: normal(random, [2, 530], 1e4), y: ids(random, 2, 530), temperature: 1 },
  { logits: constant([2, 530], 3e38), y: ids(random, 2, 530), temperature: 1 },
];

export const logprob = truth({
  op: "logprob",
  reference: fromLogits,
  draw,
  extremes,
  gradient: {
    wrt: ["logits"],
    outputs: ["logp", "entropy"],
    call: ({ logits, y, temperature }) => ({
      ...ops.logprob(logits, y, { temperature: temperature as unknown as number }),
    }),
  },
  bench: [
    {
      shape: "M 1024, V 50257",
      draw: (random) => ({
        logits: uniform(random, [1024, 50257], -4, 4),
        y: ids(random, 1024, 50257),
        temperature: 1,
      }),
    },
  ],
  cost: ({ logits }) => {
    const [M, V] = (logits as Numbers).shape;
    return { flops: 20 * M * V, read: 4 * M * V, write: 12 * M };
  },
});

const kept = (values: ArrayLike<number>): Numbers => ({ shape: [values.length], data: Float32Array.from(values) });
export const rowsIn = (inputs: Case, M: number, random: Random, made: Record<string, ArrayLike<number>>): Case => ({
  ...inputs,
  logp: kept(made.logp),
  lse: kept(made.lse),
  entropy: kept(made.entropy),
  dlogp: normal(random, [M]),
  dentropy: random.below(2) ? normal(random, [M]) : undefined,
});

/** Rows of a forward pass, all as those of a model that knows little, and what flows back to their log-probs. */
export const alike = (random: Random, M: number): Case => ({
  logp: kept(new Float32Array(M).fill(-11)),
  lse: kept(new Float32Array(M).fill(11)),
  entropy: kept(new Float32Array(M).fill(10)),
  dlogp: normal(random, [M]),
});

export const logprobGrad = truth({
  op: "logprobGrad",
  reference(inputs: Widened, f) {
    const { y, logp, lse, entropy, dlogp, dentropy, temperature } = inputs;
    return {
      dlogits: given(inputs, f).flatMap((x, i) =>
        rowGrad(
          x,
          y[i],
          { logp: logp[i], lse: lse[i], entropy: entropy[i] },
          dlogp[i],
          dentropy?.[i] ?? 0,
          temperature,
          f,
        ),
      ),
    };
  },
  draw: (random) =>
    [...draw(random), withNone(random)].map((one) =>
      rowsIn(
        one,
        (one.y as Numbers).shape[0],
        random,
        fromLogits(widen(one), (x) => x),
      ),
    ),
  natural: { dlogits: 1 }, // as what flows back, of which little is left of a row that is all but certain
  bench: [
    {
      shape: "M 1024, V 50257",
      draw: (random) => ({
        logits: uniform(random, [1024, 50257], -4, 4),
        y: ids(random, 1024, 50257),
        temperature: 1,
        ...alike(random, 1024),
      }),
    },
  ],
  cost: ({ logits }) => {
    const [M, V] = (logits as Numbers).shape;
    return { flops: 10 * M * V, read: 4 * M * V, write: 4 * M * V };
  },
});

export const fullKl = truth({
  op: "fullKl",
  reference(inputs: Widened, f) {
    const p = given(inputs, f);
    const q = given({ ...inputs, logits: inputs.refLogits }, f);
    const lse = (x: number[]) => {
      const m = x.reduce((a, b) => Math.max(a, b), -Infinity);
      return f(m + f(Math.log(x.reduce((s, v) => f(s + f(Math.exp(f(v - m)))), 0))));
    };
    return {
      kl: p.map((x, i) => {
        const [a, b] = [lse(x), lse(q[i])];
        return x.reduce((total, v, j) => {
          if (v === -Infinity) return total;
          const logp = f(v - a);
          const d = f(f(q[i][j] - b) - logp);
          return f(total + f(f(Math.exp(logp)) * f(f(Math.expm1(d)) - d)));
        }, 0);
      }),
    };
  },
  draw: (random) =>
    [
      [0, 3],
      [1, 1],
      [5, 513],
      [3, 70],
    ].map(([M, V]): Case => ({
      logits: normal(random, [M, V], 2),
      refLogits: normal(random, [M, V], 2),
      temperature: 0.8,
    })),
  extremes: (random) => {
    const same = normal(random, [2, 600], 3);
    const [logits, refLogits] = [normal(random, [4, 600]), normal(random, [4, 600])];
    logits.data[3] = logits.data[600 + 599] = refLogits.data[1200] = NaN;
    return [
      { logits: same, refLogits: { shape: same.shape, data: same.data.slice() as Float32Array }, temperature: 1 },
      { logits, refLogits, temperature: 1 },
    ];
  },
  ulp: 8,
});
