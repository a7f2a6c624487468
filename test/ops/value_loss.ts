import { normal, offsets, sequences, truth, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

const lengths = [5, 0, 37, 1, 16];
const M = 59;

function draw(random: Random, more: Case): Case {
  return {
    values: normal(random, [M]),
    oldValues: normal(random, [M]),
    returns: normal(random, [M]),
    cuSeqlens: offsets(lengths),
    clipRange: 0.4,
    aggregation: "token-mean",
    denominator: 41,
    scale: 1,
    stats: { shape: [8], data: new Float64Array(8).fill(0.5) },
    ...more,
  };
}

export const valueLoss = truth({
  op: "valueLoss",
  reference(
    { values, oldValues, returns, mask, cuSeqlens, clipRange, aggregation, denominator, scale, stats: before }: Widened,
    f,
  ) {
    const stats = Float64Array.from(before);
    let loss = 0;
    for (const [a, b] of sequences(cuSeqlens)) {
      const counted = Array.from({ length: b - a }, (_, i) => a + i).filter((i) => !mask || mask[i] !== 0);
      const w = 1 / (aggregation === "seq-mean-token-mean" ? denominator * counted.length : denominator);
      for (const i of counted) {
        const [v, R] = [values[i], returns[i]];
        const free = f(f(v - R) * f(v - R));
        const kept = oldValues
          ? f(Math.max(f(oldValues[i] - clipRange), Math.min(f(oldValues[i] + clipRange), v)) - R)
          : 0;
        const clipped = Boolean(oldValues) && free < f(kept * kept);
        const l = f(0.5 * (clipped ? f(kept * kept) : free));
        loss += scale * w * l;
        [scale * w * l, Number(clipped), v, (v - R) ** 2, R, R * R, 1].forEach((x, k) => (stats[k] += x));
      }
    }
    return { loss: [loss], stats };
  },
  draw: (random) => [
    draw(random, {}),
    draw(random, {
      aggregation: "seq-mean-token-mean",
      scale: 0.5,
      mask: { shape: [M], data: Int32Array.from({ length: M }, () => Number(random.below(3) > 0)) },
    }),
    draw(random, { oldValues: undefined, clipRange: Infinity }),
  ],
  bitsOnly: ["dvalues"],
  gradients: { dvalues: "values" },
  bench: [
    {
      shape: "1 M tokens",
      draw: (random) => {
        const N = 2 ** 20;
        return {
          values: normal(random, [N]),
          oldValues: normal(random, [N]),
          returns: normal(random, [N]),
          cuSeqlens: offsets(Array<number>(1024).fill(1024)),
          clipRange: 0.2,
          aggregation: "token-mean",
          denominator: N,
          scale: 1,
          stats: { shape: [8], data: new Float64Array(8) },
        };
      },
    },
  ],
  cost: ({ values }) => {
    const N = (values as Numbers).data.length;
    return { flops: 12 * N, read: 12 * N, write: 4 * N };
  },
});
