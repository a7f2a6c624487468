import { ops } from "../../lib/index.js";
import { constant, normal, offsets, sequences, truth, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

type Round = (x: number) => number;

function chain(
  rewards: number[],
  values: number[],
  mask: number[] | undefined,
  gamma: number,
  lambda: number,
  f: Round,
) {
  const advantages = rewards.map(() => 0);
  const returns = rewards.map(() => 0);
  let next = 0;
  let last = 0;
  for (let t = rewards.length - 1; t >= 0; t--) {
    if (mask && !mask[t]) continue;
    last = f(f(f(f(rewards[t] + f(f(gamma) * next)) - values[t])) + f(f(f(gamma) * f(lambda)) * last));
    advantages[t] = last;
    returns[t] = f(last + values[t]);
    next = values[t];
  }
  return { advantages, returns };
}

const mask = (random: Random, shape: readonly number[]): Numbers => ({
  shape,
  data: Int32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Number(random.below(4) > 0)),
});
/** Masked slots hold anything. */
function poisoned(values: Numbers, { data }: Numbers, random: Random): Numbers {
  return {
    shape: values.shape,
    data: Float32Array.from(values.data, (x, i) => (data[i] ? x : random.pick([NaN, Infinity, 1e30]))),
  };
}

export const gae = truth({
  op: "gae",
  ulp: 8, // a chain of up to fifty roundings, where the naive one may be lucky
  reference({ rewards, values, mask, cuSeqlens, gamma, lambda }: Widened, f) {
    const parts = sequences(cuSeqlens).map(([a, b]) =>
      chain(
        Array.from(rewards.slice(a, b)),
        Array.from(values.slice(a, b)),
        mask && Array.from(mask.slice(a, b)),
        gamma,
        lambda,
        f,
      ),
    );
    return {
      advantages: parts.flatMap(({ advantages }) => advantages),
      returns: parts.flatMap(({ returns }) => returns),
    };
  },
  draw: (random) =>
    [[], [0], [1], [5, 0, 1, 40, 16, 15, 17], Array.from({ length: 37 }, () => random.below(50))].map(
      (lengths, i): Case => {
        const N = lengths.reduce((a, b) => a + b, 0);
        const kept = i % 2 ? mask(random, [N]) : undefined;
        const of = (values: Numbers) => (kept ? poisoned(values, kept, random) : values);
        return {
          rewards: of(normal(random, [N])),
          values: of(normal(random, [N])),
          mask: kept,
          cuSeqlens: offsets(lengths),
          gamma: i % 3 ? 1 : 0.99,
          lambda: i % 2 ? 1 : 0.95,
        };
      },
    ),
  extremes: (random) => [
    { rewards: constant([20], 1e30), values: constant([20], 1e30), cuSeqlens: offsets([20]), gamma: 1, lambda: 1 },
    { rewards: normal(random, [20]), values: normal(random, [20]), cuSeqlens: offsets([20]), gamma: 0, lambda: 0 },
  ],
  bench: [
    {
      shape: "64 x 1024",
      draw: (random) => ({
        rewards: normal(random, [65536]),
        values: normal(random, [65536]),
        cuSeqlens: offsets(Array<number>(64).fill(1024)),
        gamma: 1,
        lambda: 0.95,
      }),
    },
    {
      shape: "1024 x 4096",
      draw: (random) => ({
        rewards: normal(random, [2 ** 22]),
        values: normal(random, [2 ** 22]),
        cuSeqlens: offsets(Array<number>(1024).fill(4096)),
        gamma: 1,
        lambda: 0.95,
      }),
    },
    {
      shape: "512 of 1 to 600 tokens", // in no order, the same that the peers draw
      draw(random) {
        const cuSeqlens = offsets(Array.from({ length: 512 }, (_, i) => 1 + ((389 * i) % 600)));
        const N = cuSeqlens.data[512];
        return { rewards: normal(random, [N]), values: normal(random, [N]), cuSeqlens, gamma: 1, lambda: 0.95 };
      },
    },
  ],
  cost: ({ rewards }) => {
    const N = (rewards as Numbers).data.length;
    return { flops: 6 * N, read: 8 * N, write: 8 * N };
  },
});

export const gaePadded = truth({
  op: "gaePadded",
  ulp: 8,
  reference({ rewards, values, mask, gamma, lambda }: Widened, f) {
    const [B, T] = rewards.shape;
    const parts = Array.from({ length: B as number }, (_, b) =>
      chain(
        ...([rewards, values, mask].map((x) => Array.from(x.slice(b * T, (b + 1) * T))) as [
          number[],
          number[],
          number[],
        ]),
        gamma,
        lambda,
        f,
      ),
    );
    return {
      advantages: parts.flatMap(({ advantages }) => advantages),
      returns: parts.flatMap(({ returns }) => returns),
    };
  },
  draw: (random) =>
    [
      [0, 5],
      [1, 1],
      [3, 40],
      [33, 16],
    ].map((shape): Case => {
      const kept = mask(random, shape);
      return {
        rewards: poisoned(normal(random, shape), kept, random),
        values: poisoned(normal(random, shape), kept, random),
        mask: kept,
        gamma: 0.99,
        lambda: 0.95,
      };
    }),
});

const estimators: Record<string, (d: number, f: Round) => number> = {
  k1: (d) => d,
  abs: (d) => Math.abs(d),
  k2: (d, f) => f(f(d * d) / 2),
  k3: (d, f) => Math.min(f(f(Math.expm1(-d)) + d), 10),
};
export const tokenRewards = truth({
  op: "tokenRewards",
  reference({ logp, refLogp, scores, cuSeqlens, klCoef, estimator }: Widened, f) {
    const kl = Array.from(logp as number[], (v, i) => estimators[estimator](f(v - refLogp[i]), f));
    const rewards = kl.map((v) => f(-f(klCoef) * v));
    sequences(cuSeqlens).forEach(([a, b], i) => {
      if (b > a) rewards[b - 1] = f(rewards[b - 1] + scores[i]);
    });
    return { rewards, kl };
  },
  draw: (random) =>
    Object.keys(estimators).map((estimator): Case => ({
      logp: normal(random, [41]),
      refLogp: normal(random, [41]),
      scores: normal(random, [4]),
      cuSeqlens: offsets([3, 0, 37, 1]),
      klCoef: 0.25,
      estimator,
    })),
  extremes: () => [
    {
      logp: constant([3], -50),
      refLogp: constant([3], 0),
      scores: constant([1], 1),
      cuSeqlens: offsets([3]),
      klCoef: 1,
      estimator: "k3",
    },
  ],
});

export const whiten = truth({
  op: "whiten",
  reference({ x, mask, shiftMean, form }: Widened, f) {
    const kept = Array.from(x as number[]).filter((_, i) => !mask || mask[i]);
    const mean = kept.reduce((a, b) => f(a + b), 0) / kept.length;
    const squares = kept.reduce((a, b) => f(a + f((b - mean) * (b - mean))), 0);
    const biased = form === "openrlhf";
    const variance = squares / (biased ? kept.length : kept.length - 1);
    const factor = 1 / Math.sqrt(biased ? Math.max(variance, 1e-8) : variance + 1e-8);
    return {
      y: Array.from(x as number[], (v, i) =>
        mask && !mask[i] ? 0 : f(f(f(v - mean) * factor) + (shiftMean ? 0 : mean)),
      ),
    };
  },
  draw: (random) =>
    ["verl", "trl", "openrlhf"].flatMap((form) =>
      [1, 0].map((shiftMean): Case => {
        const kept = mask(random, [4200]);
        kept.data[0] = kept.data[1] = 1;
        return {
          x: poisoned(normal(random, [4200]), kept, random),
          mask: kept,
          cuSeqlens: offsets([100, 0, 4100]),
          shiftMean,
          form,
        };
      }),
    ),
  extremes: () => [{ x: constant([5], 3), cuSeqlens: offsets([5]), shiftMean: 1, form: "verl" }],
});

export const moments = truth({
  op: "moments",
  reference({ x, mask }: Widened, f) {
    const kept = Array.from(x as number[]).filter((_, i) => !mask || mask[i]);
    const sum = (values: number[]) => values.reduce((a, b) => f(a + b), 0);
    return { moments: [kept.length, sum(kept), sum(kept.map((v) => f(v * v))), Math.min(...kept), Math.max(...kept)] };
  },
  draw: (random) =>
    [[0], [1], [3, 5000]].map((lengths, i): Case => {
      const N = lengths.reduce((a, b) => a + b, 0);
      const kept = i === 2 ? mask(random, [N]) : undefined;
      return {
        x: kept ? poisoned(normal(random, [N]), kept, random) : normal(random, [N]),
        mask: kept,
        cuSeqlens: offsets(lengths),
      };
    }),
});

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
