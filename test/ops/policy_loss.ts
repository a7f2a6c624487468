import {
  constant,
  normal,
  offsets,
  sequences,
  truth,
  uniform,
  type Case,
  type Numbers,
  type Widened,
} from "../truth.js";
import type { Random } from "../random.js";

type Round = (x: number) => number;

/** Weight of each token in the loss, 0 where masked. */
function weights({ cuSeqlens, mask, aggregation, denominator }: Widened): number[] {
  return sequences(cuSeqlens).flatMap(([a, b]) => {
    const counts = Array.from({ length: b - a }, (_, i) => Number(!mask || mask[a + i] !== 0));
    const n = counts.reduce((x, y) => x + y, 0);
    return counts.map((one) => (one ? 1 / (aggregation === "seq-mean-token-mean" ? denominator * n : denominator) : 0));
  });
}

const klOf: Record<string, (d: number, f: Round) => number> = {
  k1: (d) => d,
  abs: (d) => Math.abs(d),
  k2: (d, f) => f(f(d * d) / 2),
  k3: (d, f) => Math.min(10, f(f(Math.expm1(-d)) + d)),
};

/** The loss from log-probs and entropies, and its statistics. */
export function losses(inputs: Widened, logp: ArrayLike<number>, entropy: ArrayLike<number> | undefined, f: Round) {
  const {
    oldLogp,
    advantages,
    refLogp,
    importance,
    objective,
    clipRatioLow,
    clipRatioHigh,
    clipRatioC,
    logRatioClamp,
    klCoef,
    estimator,
    entropyCoef,
    scale,
  } = inputs;
  const stats = Float64Array.from(inputs.stats);
  let loss = 0;
  weights(inputs).forEach((w, i) => {
    if (w === 0) return;
    const A = advantages[i];
    const d = Math.max(-logRatioClamp, Math.min(logRatioClamp, f(logp[i] - oldLogp[i])));
    const r = f(Math.exp(d));
    let l = -f(A * logp[i]);
    let clipped = false;
    let clippedC = false;
    if (objective === "clipped-ratio") {
      const [l1, l2] = [-f(A * r), -f(A * Math.max(f(1 - clipRatioLow), Math.min(f(1 + clipRatioHigh), r)))];
      clipped = l1 < l2;
      l = Math.max(l1, l2);
      if (A < 0 && -A * clipRatioC < l) [l, clippedC] = [-f(A * clipRatioC), true];
      if (importance) l = f(l * importance[i]);
    }
    const kl = refLogp ? klOf[estimator](f(logp[i] - refLogp[i]), f) : 0;
    const h = entropy ? entropy[i] : 0;
    loss += scale * w * (l + klCoef * kl - entropyCoef * h);
    const ratio = objective === "clipped-ratio";
    const one = [
      scale * w * (l + klCoef * kl - entropyCoef * h),
      w * l,
      w * kl,
      h,
      Number(clipped),
      Number(clippedC),
      ratio ? -d : 0,
      ratio ? Math.expm1(d) - d : 0,
      ratio ? r : 0,
      1,
      0,
    ];
    one.forEach((value, k) => (stats[k] += value));
    if (ratio && Math.fround(r) !== 1) stats[10]++;
  });
  stats[11] += sequences(inputs.cuSeqlens).filter(([a, b]) =>
    Array.from({ length: b - a }, (_, i) => !inputs.mask || inputs.mask[a + i] !== 0).some(Boolean),
  ).length;
  return { loss: [loss], stats };
}

export const options = {
  objective: "clipped-ratio",
  clipRatioLow: 0.2,
  clipRatioHigh: 0.28,
  clipRatioC: Infinity,
  logRatioClamp: 20,
  aggregation: "token-mean",
  klCoef: 0,
  estimator: "k3",
  entropyCoef: 0,
  scale: 1,
};
export const stats = (): Numbers => ({ shape: [12], data: new Float64Array(12).fill(0.5) });
const lengths = [5, 0, 37, 1, 16];
export const M = 59;

export function common(random: Random, more: Case): Case {
  return {
    oldLogp: uniform(random, [M], -3, -0.1),
    advantages: normal(random, [M]),
    cuSeqlens: offsets(lengths),
    denominator: 29,
    ...options,
    stats: stats(),
    ...more,
  };
}
export const kept = (random: Random): Numbers => ({
  shape: [M],
  data: Int32Array.from({ length: M }, () => Number(random.below(4) > 0)),
});

export const natural = { loss: 1, entropy: 1 }; // a sum of terms of order 1, which may cancel; nats

export const policyLoss = truth({
  op: "policyLoss",
  natural,
  reference: (inputs: Widened, f) => losses(inputs, inputs.logp, inputs.entropy, f),
  draw(random) {
    const near = (one: Case): Case => ({
      logp: { shape: [M], data: Float32Array.from((one.oldLogp as Numbers).data, (x) => x + 0.4 * random.normal()) },
      ...one,
    });
    return [
      near(common(random, {})),
      near(common(random, { clipRatioC: 1.1, mask: kept(random), aggregation: "seq-mean-token-mean", scale: 0.3 })),
      near(
        common(random, {
          refLogp: uniform(random, [M], -3, -0.1),
          klCoef: 0.1,
          importance: uniform(random, [M], 0.5, 2),
          aggregation: "seq-mean-token-sum",
        }),
      ),
      near(
        common(random, {
          refLogp: uniform(random, [M], -3, -0.1),
          klCoef: 0.1,
          estimator: "k2",
          entropy: uniform(random, [M], 0, 3),
          entropyCoef: 0.01,
          dentropy: true,
          aggregation: "seq-mean-token-sum-norm",
        }),
      ),
      near(common(random, { objective: "log-likelihood" })),
    ];
  },
  extremes: (random) => [
    ...["k1", "abs", "k2", "k3"].map((estimator) => {
      const refLogp = uniform(random, [M], -3, -0.1);
      refLogp.data[7] = NaN;
      return common(random, { logp: uniform(random, [M], -3, -0.1), refLogp, klCoef: 0.1, estimator });
    }),
    common(random, { logp: constant([M], -1000), oldLogp: constant([M], -0.1) }),
    common(random, { logp: constant([M], -0.1), oldLogp: constant([M], -1000) }),
  ],
  bitsOnly: ["dlogp", "dentropy"],
  gradients: { dlogp: "logp", dentropy: "entropy" },
  bench: [
    {
      shape: "1 M tokens",
      draw: (random) => {
        const N = 2 ** 20;
        const oldLogp = uniform(random, [N], -3, -0.1);
        return {
          logp: { shape: [N], data: Float32Array.from(oldLogp.data, (x) => x + 0.1 * random.normal()) },
          oldLogp,
          advantages: normal(random, [N]),
          cuSeqlens: offsets(Array<number>(1024).fill(1024)),
          denominator: N,
          ...options,
          stats: stats(),
        };
      },
    },
  ],
  cost: ({ logp }) => {
    const N = (logp as Numbers).data.length;
    return { flops: 30 * N, read: 12 * N, write: 4 * N };
  },
});
