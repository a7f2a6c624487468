import { constant, ids, normal, truth, uniform, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

const softplus = (x: number) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

function draw(random: Random, form: string, more: Case = {}): Case {
  return {
    scores: normal(random, [11], 2),
    chosen: ids(random, 17, 11),
    rejected: ids(random, 17, 11),
    form,
    beta: 0.3,
    labelSmoothing: 0,
    centerCoef: 0,
    denominator: 13,
    scale: 1,
    ...(form === "bradley-terry" ? {} : { refScores: normal(random, [11], 2) }),
    stats: { shape: [8], data: new Float64Array(8).fill(0.5) },
    ...more,
  };
}

export const preferenceLoss = truth({
  op: "preferenceLoss",
  reference({
    scores,
    refScores,
    chosen,
    rejected,
    margin,
    label,
    weight,
    form,
    beta,
    labelSmoothing,
    centerCoef,
    denominator,
    scale,
    stats: before,
  }: Widened) {
    const stats = Float64Array.from(before);
    let loss = 0;
    (chosen as Float64Array).forEach((c, p) => {
      const r = rejected[p];
      const [a, b] = refScores ? [scores[c] - refScores[c], scores[r] - refScores[r]] : [scores[c], scores[r]];
      const z = form === "ipo" ? a - b : (form === "dpo" ? beta : 1) * (a - b) - (margin?.[p] ?? 0);
      const q = (label?.[p] ?? 1) * (1 - labelSmoothing) + (1 - (label?.[p] ?? 1)) * labelSmoothing;
      const l = form === "ipo" ? (z - 1 / (2 * beta)) ** 2 : q * softplus(-z) + (1 - q) * softplus(z);
      const w = ((weight?.[p] ?? 1) * scale) / denominator;
      const all = w * (l + centerCoef * (scores[c] + scores[r]) ** 2);
      loss += all;
      [all, z > 0 ? 1 : z === 0 ? 0.5 : 0, z, a, b, 1, 1 / (1 + Math.exp(-z))].forEach((x, k) => (stats[k] += x));
    });
    return { loss: [loss], stats };
  },
  draw: (random) => [
    ...["bradley-terry", "dpo", "ipo"].map((form) => draw(random, form)),
    draw(random, "bradley-terry", {
      margin: uniform(random, [17], 0, 2),
      label: uniform(random, [17], 0, 1),
      weight: uniform(random, [17], 0, 1),
      labelSmoothing: 0.1,
      centerCoef: 0.01,
      scale: 0.7,
    }),
    draw(random, "dpo", { chosen: ids(random, 0, 11), rejected: ids(random, 0, 11) }),
  ],
  extremes: (random) => [
    draw(random, "bradley-terry", { scores: normal(random, [11], 1e4) }),
    draw(random, "bradley-terry", { scores: constant([11], 1e30) }),
  ],
  bitsOnly: ["dscores"],
  gradients: { dscores: "scores" },
  ulp: 4,
  bench: [
    {
      shape: "1 M pairs",
      draw: (random) => {
        const P = 2 ** 20;
        const every = (first: number): Numbers => ({
          shape: [P],
          data: Int32Array.from({ length: P }, (_, i) => 2 * i + first),
        });
        return draw(random, "bradley-terry", {
          scores: normal(random, [2 * P]),
          chosen: every(0),
          rejected: every(1),
          denominator: P,
        });
      },
    },
  ],
  cost: ({ chosen }) => {
    const P = (chosen as Numbers).data.length;
    return { flops: 30 * P, read: 16 * P, write: 8 * P };
  },
});
