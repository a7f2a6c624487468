import { ops } from "../../lib/index.js";
import { bytes, normal, truth, type Case, type Truth, type Widened } from "../truth.js";
import type { Random } from "../random.js";

const sizes = [[0], [1], [33], [4, 5, 6], [40000]];
const pairs = (random: Random): Case[] =>
  sizes.map((shape) => ({ a: normal(random, shape), b: normal(random, shape) }));
const two = (op: "add" | "sub" | "mul", of: (a: number, b: number) => number): Truth =>
  truth({
    op,
    reference: ({ a, b }: Widened, f) => ({ y: Array.from(a as number[], (x, i) => f(of(x, b[i]))) }),
    draw: pairs,
    gradient: { wrt: ["a", "b"], outputs: ["y"], call: ({ a, b }) => ({ y: ops[op](a, b) }) },
    bench:
      op === "add"
        ? [{ shape: "8 M numbers", draw: (random) => ({ a: normal(random, [2 ** 23]), b: normal(random, [2 ** 23]) }) }]
        : [],
    cost: ({ a, b }) => ({ flops: 0, read: bytes(a, b), write: bytes(a) }),
  });

export const add = two("add", (a, b) => a + b);
export const sub = two("sub", (a, b) => a - b);
export const mul = two("mul", (a, b) => a * b);

// What it does to each number is test/half.test.ts's.
export const cast = truth({
  op: "cast",
  reference: ({ x }: Widened) => ({ y: x as Float64Array }),
  draw: (random) => sizes.map((shape): Case => ({ x: normal(random, shape) })),
});
export const scale = truth({
  op: "scale",
  reference: ({ x, factor, shift }: Widened, f) => ({
    y: Array.from(x as number[], (v) => f(f(v * f(factor)) + f(shift))),
  }),
  draw: (random) => sizes.map((shape): Case => ({ x: normal(random, shape), factor: 0.375, shift: -2.5 })),
  gradient: { wrt: ["x"], outputs: ["y"], call: ({ x, factor, shift }) => ({ y: ops.scale(x, factor, shift) }) },
});
export const clamp = truth({
  op: "clamp",
  reference: ({ x, low, high }: Widened, f) => ({
    y: Array.from(x as number[], (v) => Math.max(f(low), Math.min(f(high), v))),
  }),
  draw: (random) => sizes.map((shape): Case => ({ x: normal(random, shape), low: -0.5, high: 1.5 })),
  gradient: { wrt: ["x"], outputs: ["y"], call: ({ x, low, high }) => ({ y: ops.clamp(x, low, high) }) },
});
export const clampGrad = truth({
  op: "clampGrad",
  reference: ({ dy, x, low, high }: Widened, f) => ({
    dx: Array.from(x as number[], (v, i) => (f(low) <= v && v <= f(high) ? dy[i] : 0)),
  }),
  draw: (random) =>
    sizes.map((shape): Case => ({ dy: normal(random, shape), x: normal(random, shape), low: -0.5, high: 1.5 })),
  // at the bounds, which pass the gradient; beyond them by an ulp; where no bound is; where nothing is
  extremes: (random) => {
    const x = Float32Array.of(-0.5, 1.5, -0.5 - 2 ** -24, 1.5 + 2 ** -23, Infinity, -Infinity, 0, -0, 2 ** -149, NaN);
    const bounds = [
      [-0.5, 1.5],
      [-Infinity, 1.5],
      [-0.5, Infinity],
      [0, 0],
      [1, -1],
    ];
    const shape = [x.length];
    return bounds.map(([low, high]): Case => ({ dy: normal(random, shape), x: { shape, data: x }, low, high }));
  },
});
export const accumulate = truth({
  op: "accumulate",
  reference: ({ x, y }: Widened, f) => ({ y: Array.from(x as number[], (v, i) => f(y[i] + v)) }),
  draw: (random) => sizes.map((shape): Case => ({ x: normal(random, shape), y: normal(random, shape) })),
});
export const fill = truth({
  op: "fill",
  reference: ({ value, count }: Widened, f) => ({ y: new Array<number>(count).fill(f(value)) }),
  draw: () => [0, 1, 37].map((count): Case => ({ value: 1.1, count })),
  sizes: ({ count }) => ({ n: count as number }),
});
export const sum = truth({
  op: "sum",
  reference: ({ x }: Widened, f) => ({ y: [(x as Float64Array).reduce((a, b) => f(a + b), 0)] }),
  draw: (random) => [[0], [1], [17], [5, 7], [9001]].map((shape): Case => ({ x: normal(random, shape) })),
  gradient: { wrt: ["x"], outputs: ["y"], call: ({ x }) => ({ y: ops.sum(x) }) },
});
