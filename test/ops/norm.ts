import { ops } from "../../lib/index.js";
import {
  bytes,
  constant,
  largest,
  normal,
  truth,
  type Case,
  type Numbers,
  type Truth,
  type Widened,
  widen,
} from "../truth.js";
import type { Random } from "../random.js";

type Round = (x: number) => number;
const sum = (values: number[], f: Round) => values.reduce((a, b) => f(a + b), 0);

function statistics(x: number[], eps: number, centred: boolean, f: Round): { mean: number; rstd: number } {
  const mean = centred ? f(sum(x, f) / x.length) : 0;
  const variance = f(
    sum(
      x.map((v) => f(f(v - mean) * f(v - mean))),
      f,
    ) / x.length,
  );
  return { mean, rstd: f(1 / f(Math.sqrt(f(variance + eps)))) };
}

function forward(centred: boolean): Truth["reference"] {
  return ({ x, gain, bias, eps }: Widened, f) => {
    const [N, C] = x.shape;
    const rows = Array.from({ length: N as number }, (_, n) => Array.from(x.slice(n * C, (n + 1) * C) as number[]));
    const all = rows.map((row) => statistics(row, eps, centred, f));
    return {
      y: rows.flatMap((row, n) =>
        row.map((v, c) => f(f(f(f(v - all[n].mean) * all[n].rstd) * gain[c]) + (bias ? bias[c] : 0))),
      ),
      rstd: all.map(({ rstd }) => rstd),
      ...(centred ? { mean: all.map(({ mean }) => mean) } : {}),
    };
  };
}

function backward(centred: boolean): Truth["reference"] {
  return ({ dy, x, gain, mean, rstd, dgain, dbias }: Widened, f) => {
    const [N, C] = x.shape;
    const dx = new Float64Array(N * C);
    const sums = { dgain: Float64Array.from(dgain), dbias: dbias && Float64Array.from(dbias) };
    for (let n = 0; n < N; n++) {
      const unit = Array.from({ length: C }, (_, c) => f(f(x[n * C + c] - (centred ? mean[n] : 0)) * rstd[n]));
      const g = Array.from({ length: C }, (_, c) => f(dy[n * C + c] * gain[c]));
      const along = f(
        sum(
          unit.map((u, c) => f(u * g[c])),
          f,
        ) / C,
      );
      const level = centred ? f(sum(g, f) / C) : 0;
      unit.forEach((u, c) => {
        dx[n * C + c] = f(rstd[n] * f(f(g[c] - level) - f(u * along)));
        sums.dgain[c] = f(sums.dgain[c] + f(dy[n * C + c] * u));
        if (sums.dbias) sums.dbias[c] = f(sums.dbias[c] + dy[n * C + c]);
      });
    }
    return { dx, dgain: sums.dgain, ...(sums.dbias ? { dbias: sums.dbias } : {}) };
  };
}

const sizes: [number, number][] = [
  [0, 4],
  [1, 1],
  [3, 19],
  [33, 64],
  [2, 300],
];
const inputs = (random: Random, centred: boolean, all = sizes): Case[] =>
  all.map(([N, C], i) => ({
    x: normal(random, [N, C]),
    gain: normal(random, [C]),
    ...(centred ? { bias: i % 2 ? normal(random, [C]) : undefined } : {}),
    eps: 1e-5,
  }));
const extremes = (random: Random): Case[] => [
  { x: normal(random, [2, 40], 1e15), gain: constant([40], 1), eps: 1e-5 },
  { x: normal(random, [2, 40], 1e-20), gain: constant([40], 1), eps: 1e-5 },
  { x: constant([2, 33], 3), gain: constant([33], 1), eps: 1e-5 }, // no variance
];
const backwardInputs = (random: Random, centred: boolean, all = sizes): Case[] =>
  inputs(random, centred, all).map(({ bias, eps, x, gain }) => {
    const made = forward(centred)(widen({ x, gain, eps }), (v) => v);
    const { shape } = x as Numbers;
    const kept = (name: string): Numbers => ({ shape: [shape[0]], data: Float32Array.from(made[name]) });
    return {
      dy: normal(random, shape),
      x,
      gain,
      rstd: kept("rstd"),
      ...(centred ? { mean: kept("mean"), dbias: bias && normal(random, [shape[1]]) } : {}),
      dgain: normal(random, [shape[1]]),
    };
  });

const WIDE: [number, number] = [2048, 768];
const bench = (
  draw: (random: Random, centred: boolean, all: [number, number][]) => Case[],
  centred: boolean,
): Truth["bench"] => [{ shape: `N ${WIDE[0]}, C ${WIDE[1]}`, draw: (random) => draw(random, centred, [WIDE])[0] }];
const forwardCost: Truth["cost"] = ({ x }) => ({ flops: 0, read: bytes(x), write: bytes(x) });
const backwardCost: Truth["cost"] = ({ x, dy }) => ({ flops: 0, read: bytes(x, dy), write: bytes(x) });

export const layerNorm = truth({
  op: "layerNorm",
  reference: forward(true),
  draw: (random) => inputs(random, true),
  extremes,
  natural: ({ x }) => ({ mean: largest(x) }),
  bench: bench(inputs, true),
  cost: forwardCost,
  gradient: {
    wrt: ["x", "gain", "bias"],
    outputs: ["y"],
    call: ({ x, gain, bias }) => ({ y: ops.layerNorm(x, gain, bias) }),
  },
});
export const rmsNorm = truth({
  op: "rmsNorm",
  reference: forward(false),
  draw: (random) => inputs(random, false),
  extremes,
  bench: bench(inputs, false),
  cost: forwardCost,
  gradient: { wrt: ["x", "gain"], outputs: ["y"], call: ({ x, gain }) => ({ y: ops.rmsNorm(x, gain, { eps: 1e-5 }) }) },
});

// What is along the row and its level are taken out of dx, which may leave little.
const natural: Truth["natural"] = ({ dy, gain, rstd }) => ({ dx: largest(dy) * largest(gain) * largest(rstd) });
const gradient = (centred: boolean) => ({
  reference: backward(centred),
  draw: (random: Random) => backwardInputs(random, centred),
  natural,
  bench: bench(backwardInputs, centred),
  cost: backwardCost,
});
export const layerNormGrad = truth({ op: "layerNormGrad", ...gradient(true) });
export const rmsNormGrad = truth({ op: "rmsNormGrad", ...gradient(false) });
