import { ops } from "../../lib/index.js";
import { packedSize } from "../../lib/tensor/tensor.js";
import { normal, truth, uniform, type Case, type Numbers, type Truth, type Widened } from "../truth.js";
import type { Random } from "../random.js";

type Round = (x: number) => number;

/** out[i][j] = start + sum over k of a(i, k) b(k, j), rounded as plain f32 code would. */
function product(
  m: number,
  n: number,
  k: number,
  a: (i: number, k: number) => number,
  b: (k: number, j: number) => number,
  f: Round,
  start?: ArrayLike<number>,
): Float64Array {
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = start ? start[i * n + j] : 0;
      for (let x = 0; x < k; x++) sum = f(sum + f(a(i, x) * b(x, j)));
      out[i * n + j] = sum;
    }
  return out;
}

const sizes = (random: Random): [number, number, number][] => [
  [1, 1, 1],
  [0, 5, 3],
  [3, 7, 0],
  [1, 67, 129],
  [17, 33, 31],
  [random.below(40), 1 + random.below(80), 1 + random.below(70)],
  [136, 72, 264], // of several tiles in every direction, and at 16 bytes
];

/** N, O, I of the layers that other stacks are measured at. */
const models = [
  [2048, 2048, 2048],
  [1024, 768, 768],
  [2048, 3072, 768],
  [1024, 50257, 768],
  [2560, 1024, 256], // the demo's, up and down
  [2560, 256, 1024],
];
const bench = (
  sizes: readonly number[][],
  draw: (random: Random, size: readonly number[]) => Case,
): NonNullable<Truth["bench"]> =>
  sizes.map((size) => ({ shape: `N ${size[0]}, O ${size[1]}, I ${size[2]}`, draw: (random) => draw(random, size) }));
/** Sizes of generation: few rows, with a weight that is packed once for many steps. */
const few = [...[1, 4, 16].map((N) => [N, 3072, 768]), [1, 50257, 768]];
const drawn = (random: Random, [N, O, I]: readonly number[]): Case => ({
  x: uniform(random, [N, I], -1, 1),
  weight: uniform(random, [O, I], -1, 1),
});

export const linear = truth({
  op: "linear",
  reference({ x, weight, bias }: Widened, f) {
    const [N, I] = x.shape;
    const [O] = weight.shape;
    const y = product(
      N,
      O,
      I,
      (i, k) => x[i * I + k],
      (k, j) => weight[j * I + k],
      f,
    );
    return { y: bias ? y.map((v, i) => f(v + bias[i % O])) : y };
  },
  draw: (random) =>
    sizes(random).map(([N, O, I], i): Case => ({
      x: normal(random, [N, I]),
      weight: normal(random, [O, I]),
      bias: i % 2 === 0 ? normal(random, [O]) : undefined,
    })),
  extremes: (random) => [
    { x: normal(random, [5, 40], 1e18), weight: normal(random, [9, 40], 1e18) },
    { x: normal(random, [5, 40], 1e-22), weight: normal(random, [9, 40], 1e-22) },
  ],
  gradient: {
    wrt: ["x", "weight", "bias"],
    outputs: ["y"],
    call: ({ x, weight, bias }) => ({ y: ops.linear(x, weight, bias) }),
  },
  bench: [
    ...bench(models, drawn),
    ...bench(few, drawn).map((one) => ({ ...one, shape: `${one.shape}, packed`, packed: "f32" as const })),
    ...bench(few, drawn).map((one) => ({ ...one, shape: `${one.shape}, packed in bf16`, packed: "bf16" as const })),
  ],
  cost({ x, weight }) {
    const [[N, I], [O]] = [x, weight].map((one) => (one as Numbers).shape);
    return { flops: 2 * N * O * I, read: 4 * (N * I + O * I), write: 4 * N * O };
  },
});

export const linearGradInput = truth({
  op: "linearGradInput",
  reference({ dy, weight }: Widened, f) {
    const [N, O] = dy.shape;
    const I = weight.shape[1];
    return {
      dx: product(
        N,
        I,
        O,
        (i, k) => dy[i * O + k],
        (k, j) => weight[k * I + j],
        f,
      ),
    };
  },
  draw: (random) =>
    sizes(random).map(([N, O, I]): Case => ({ dy: normal(random, [N, O]), weight: normal(random, [O, I]) })),
  bench: bench(models, (random, [N, O, I]) => ({
    dy: uniform(random, [N, O], -1, 1),
    weight: uniform(random, [O, I], -1, 1),
  })),
  cost({ dy, weight }) {
    const [[N, O], [, I]] = [dy, weight].map((one) => (one as Numbers).shape);
    return { flops: 2 * N * O * I, read: 4 * (N * O + O * I), write: 4 * N * I };
  },
});

export const linearGradWeight = truth({
  op: "linearGradWeight",
  reference({ dy, x, dweight, dbias }: Widened, f) {
    const [N, O] = dy.shape;
    const I = x.shape[1];
    const sum = (o: number) => {
      let total = dbias[o];
      for (let n = 0; n < N; n++) total = f(total + dy[n * O + o]);
      return total;
    };
    return {
      dweight: product(
        O,
        I,
        N,
        (i, k) => dy[k * O + i],
        (k, j) => x[k * I + j],
        f,
        dweight,
      ),
      ...(dbias ? { dbias: Array.from({ length: O }, (_, o) => sum(o)) } : {}),
    };
  },
  draw: (random) =>
    sizes(random).map(([N, O, I], i): Case => ({
      dy: normal(random, [N, O]),
      x: normal(random, [N, I]),
      dweight: normal(random, [O, I]),
      dbias: i % 2 === 0 ? normal(random, [O]) : undefined,
    })),
  bench: bench(models, (random, [N, O, I]) => ({
    dy: uniform(random, [N, O], -1, 1),
    x: uniform(random, [N, I], -1, 1),
    dweight: uniform(random, [O, I], -1, 1),
  })),
  cost({ dy, x }) {
    const [[N, O], [, I]] = [dy, x].map((one) => (one as Numbers).shape);
    return { flops: 2 * N * O * I, read: 4 * (N * O + N * I + O * I), write: 4 * O * I };
  },
});

// The packed form is the kernels' own; what it holds is tested through the ops that read it.
export const pack = truth({
  op: "pack",
  reference: () => ({}),
  draw: (random) =>
    [0, 1].flatMap((transposed) =>
      [
        [1, 1],
        [33, 7],
        [64, 40],
      ].map((shape): Case => ({ weight: normal(random, shape), transposed })),
    ),
  sizes: ({ weight, transposed }) => ({ P: packedSize((weight as Numbers).shape, Boolean(transposed)) }),
  bitsOnly: ["packed"],
});
