import { constant, normal, truth, uniform, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

export const normSquared = truth({
  op: "normSquared",
  reference: ({ x, total }: Widened, f) => ({
    total: [(x as Float64Array).reduce((a, b) => f(a + f(b * b)), total[0])],
  }),
  draw: (random) =>
    [[0], [1], [3, 1500], [20001]].map((shape): Case => ({
      x: normal(random, shape),
      total: { shape: [1], data: Float64Array.of(random.uniform()) },
    })),
  extremes: () => [{ x: constant([5], 3e38), total: { shape: [1], data: Float64Array.of(0) } }],
});

function draw(random: Random, shape: number[], more: Case = {}): Case {
  return {
    weight: normal(random, shape),
    grad: normal(random, shape),
    m: normal(random, shape, 0.1),
    v: uniform(random, shape, 0, 0.1),
    normSquared: { shape: [1], data: Float64Array.of(6.25) },
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weightDecay: 0.1,
    maxNorm: 1,
    step: 3,
    ...more,
  };
}

function large(random: Random): Case {
  const shape = [2 ** 23];
  const one: Numbers = uniform(random, shape, -1, 1);
  return draw(random, [1], {
    weight: one,
    grad: uniform(random, shape, -1, 1),
    m: uniform(random, shape, -0.1, 0.1),
    v: uniform(random, shape, 0, 0.1),
  });
}

export const adamw = truth({
  op: "adamw",
  reference(
    { weight, grad, m, v, normSquared: squared, lr, beta1, beta2, eps, weightDecay, maxNorm, step }: Widened,
    f,
  ) {
    const clip = Math.min(1, maxNorm / (Math.sqrt(squared[0]) + 1e-6));
    const out = { weight: Float64Array.from(weight), m: Float64Array.from(m), v: Float64Array.from(v) };
    for (let i = 0; i < weight.length; i++) {
      const g = f(grad[i] * f(clip));
      out.m[i] = f(m[i] + f(f(1 - beta1) * f(g - m[i])));
      out.v[i] = f(f(v[i] * f(beta2)) + f(f(f(1 - beta2) * g) * g));
      const denominator = f(f(f(Math.sqrt(out.v[i])) / f(Math.sqrt(1 - beta2 ** step))) + f(eps));
      out.weight[i] = f(
        f(weight[i] * f(1 - lr * weightDecay)) - f(f(lr / (1 - beta1 ** step)) * f(out.m[i] / denominator)),
      );
    }
    return out;
  },
  draw: (random) => [
    draw(random, [0]),
    draw(random, [1]),
    draw(random, [7, 33]),
    draw(random, [50], { maxNorm: Infinity, weightDecay: 0, step: 100000 }),
  ],
  extremes: (random) => [draw(random, [9], { grad: constant([9], 0), m: constant([9], 0), v: constant([9], 0) })],
  bench: [
    { shape: "8 M weights, norm known", draw: large },
    {
      shape: "8 M weights, clipped",
      draw: large,
      before: { op: "normSquared", inputs: { x: "grad", total: "normSquared" } },
    },
  ],
  // also of the row with the norm, whose second reading of the gradient a large enough cache would spare
  cost: ({ weight }) => {
    const N = (weight as Numbers).data.length;
    return { flops: 14 * N, read: 16 * N, write: 12 * N };
  },
});
