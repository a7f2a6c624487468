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

/** Tokens that count: three of four. */
export const mask = (random: Random, shape: readonly number[]): Numbers => ({
  shape,
  data: Int32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Number(random.below(4) > 0)),
});
/** Masked slots hold anything. */
export function poisoned(values: Numbers, { data }: Numbers, random: Random): Numbers {
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
