import { ops } from "../../lib/index.js";
import { bytes, ints, normal, truth, type Case, type Numbers, type Widened } from "../truth.js";

const frequencies = (R: number): Numbers => ({
  shape: [R],
  data: Float32Array.from({ length: R }, (_, d) => 10000 ** (-d / R)),
});

export const rope = truth({
  op: "rope",
  reference({ x, positions, inverseFrequency, inverse }: Widened, f) {
    const [N, H, D] = x.shape;
    const R = inverseFrequency.length;
    const y = Float64Array.from(x);
    for (let n = 0; n < N; n++)
      for (let d = 0; d < R; d++) {
        // the angle is the product of two f32, so its rounding is part of the definition
        const angle = Math.fround(positions[n] * inverseFrequency[d]);
        const [c, s] = [f(Math.cos(angle)), f(inverse ? -Math.sin(angle) : Math.sin(angle))];
        for (let h = 0; h < H; h++) {
          const at = (n * H + h) * D + d;
          y[at] = f(f(x[at] * c) - f(x[at + R] * s));
          y[at + R] = f(f(x[at + R] * c) + f(x[at] * s));
        }
      }
    return { y };
  },
  draw: (random) =>
    [
      [0, 1, 2, 1],
      [1, 1, 2, 1],
      [7, 3, 10, 5],
      [5, 2, 64, 32],
      [4, 1, 40, 11],
    ].map(([N, H, D, R]): Case => ({
      x: normal(random, [N, H, D]),
      positions: ints(Array.from({ length: N }, () => random.below(2000))),
      inverseFrequency: frequencies(R),
      inverse: 0,
    })),
  extremes: (random) => [
    {
      x: normal(random, [3, 1, 8], 1e30),
      positions: ints([0, 1, 131071]),
      inverseFrequency: frequencies(4),
      inverse: 0,
    },
    {
      x: normal(random, [6, 2, 40]),
      positions: ints([0, 5, 7, 900, 1, 2]),
      inverseFrequency: frequencies(17),
      inverse: 1,
    },
  ],
  gradient: {
    wrt: ["x"],
    outputs: ["y"],
    call: ({ x, positions, inverseFrequency }) => ({ y: ops.rope(x, positions, inverseFrequency) }),
  },
  bench: [
    {
      shape: "N 2048, H 12, D 64",
      draw: (random) => ({
        x: normal(random, [2048, 12, 64]),
        positions: ints(Array.from({ length: 2048 }, (_, n) => n)),
        inverseFrequency: frequencies(32),
        inverse: 0,
      }),
    },
  ],
  cost: ({ x }) => ({ flops: 0, read: bytes(x), write: bytes(x) }),
});
