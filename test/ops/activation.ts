import { ops } from "../../lib/index.js";
import { bytes, largest, normal, truth, uniform, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

const K = Math.sqrt(2 / Math.PI);

/** erf by its series, and by the continued fraction of erfc where that converges fast. */
export function erf(x: number): number {
  const a = Math.abs(x);
  if (a > 6) return Math.sign(x);
  if (a < 2.5) {
    let term = a;
    let sum = a;
    for (let n = 1; Math.abs(term) > 1e-18 * sum; n++) {
      term *= (-a * a) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 80; n > 0; n--) fraction = n / 2 / (a + fraction);
  return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + fraction));
}

type Round = (x: number) => number;
const cumulative = (x: number, form: string, f: Round) =>
  form === "erf"
    ? f(0.5 * f(1 + f(erf(f(x * f(Math.SQRT1_2))))))
    : f(1 / f(1 + f(Math.exp(f(-2 * K * f(x + 0.044715 * x ** 3))))));
function slope(x: number, form: string, f: Round): number {
  const s = cumulative(x, form, f);
  if (form === "erf") return f(s + f(x * f(Math.exp(f((-x * x) / 2)) / Math.sqrt(2 * Math.PI))));
  return Math.abs(x) > 16 ? s : f(s + f(f(x * s * f(1 - s)) * f(2 * K * (1 + 3 * 0.044715 * x * x))));
}
/** Tokens and width of an MLP of 3,072. */
const wide = [2048, 3072];
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

const sizes = [[0], [1], [17], [3, 5, 7]];
const forms = ["tanh", "erf"];
const draw = (random: Random): Case[] =>
  forms.flatMap((form) => sizes.map((shape) => ({ x: normal(random, shape, 2), form })));
const extremes = (random: Random): Case[] =>
  forms.map((form) => ({
    x: { shape: [40], data: Float32Array.from({ length: 40 }, (_, i) => (i - 20) * random.pick([1, 5, 1e4, 1e-25])) },
    form,
  }));

// A function of one number errs by an ulp of what it is computed from, 1 + tanh and the like, which may cancel.
export const gelu = truth({
  op: "gelu",
  reference: ({ x, form }: Widened, f) => ({ y: Array.from(x as number[], (v) => f(v * cumulative(v, form, f))) }),
  draw,
  extremes,
  natural: ({ x }) => ({ y: largest(x) }),
  gradient: { wrt: ["x"], outputs: ["y"], call: ({ x, form }) => ({ y: ops.gelu(x, form) }) },
  bench: forms.map((form) => ({
    shape: `2048 x 3072, ${form}`,
    draw: (random) => ({ x: normal(random, wide), form }),
  })),
  cost: ({ x }) => ({ flops: 0, read: bytes(x), write: bytes(x) }),
});
export const geluGrad = truth({
  op: "geluGrad",
  reference: ({ dy, x, form }: Widened, f) => ({
    dx: Array.from(x as number[], (v, i) => f(dy[i] * slope(v, form, f))),
  }),
  draw: (random) => draw(random).map((one) => ({ ...one, dy: normal(random, (one.x as Numbers).shape) })),
  natural: ({ dy }) => ({ dx: largest(dy) }),
  bench: forms.map((form) => ({
    shape: `2048 x 3072, ${form}`,
    draw: (random) => ({ x: normal(random, wide), form, dy: normal(random, wide) }),
  })),
  cost: ({ x, dy }) => ({ flops: 0, read: bytes(x, dy), write: bytes(x) }),
});
export const swiglu = truth({
  op: "swiglu",
  reference: ({ gate, up }: Widened, f) => ({
    y: Array.from(gate as number[], (g, i) => f(f(g * f(sigmoid(g))) * up[i])),
  }),
  draw: (random) => sizes.map((shape): Case => ({ gate: normal(random, shape, 2), up: normal(random, shape) })),
  extremes: (random) => [{ gate: uniform(random, [40], -120, 120), up: normal(random, [40]) }],
  ulp: 4,
  gradient: { wrt: ["gate", "up"], outputs: ["y"], call: ({ gate, up }) => ({ y: ops.swiglu(gate, up) }) },
  bench: [{ shape: "2048 x 3072", draw: (random) => ({ gate: normal(random, wide), up: normal(random, wide) }) }],
  cost: ({ gate, up }) => ({ flops: 0, read: bytes(gate, up), write: bytes(up) }),
});
export const swigluGrad = truth({
  op: "swigluGrad",
  reference: ({ dy, gate, up }: Widened, f) => ({
    dgate: Array.from(gate as number[], (g, i) =>
      f(f(dy[i] * up[i]) * f(f(sigmoid(g)) * f(1 + f(g * f(1 - sigmoid(g)))))),
    ),
    dup: Array.from(gate as number[], (g, i) => f(dy[i] * f(g * f(sigmoid(g))))),
  }),
  draw: (random) =>
    sizes.map((shape): Case => ({
      dy: normal(random, shape),
      gate: normal(random, shape, 2),
      up: normal(random, shape),
    })),
  ulp: 4,
  bench: [
    {
      shape: "2048 x 3072",
      draw: (random) => ({ dy: normal(random, wide), gate: normal(random, wide), up: normal(random, wide) }),
    },
  ],
  cost: ({ dy, gate, up }) => ({ flops: 0, read: bytes(dy, gate, up), write: bytes(gate, up) }),
});
