import { constant, normal, offsets, sequences, truth, type Case, type Widened } from "../truth.js";

type Round = (x: number) => number;

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
