import { ops } from "../../lib/index.js";
import { Random } from "../random.js";
import {
  bytes,
  ids,
  ints,
  normal,
  offsets,
  sequences,
  truth,
  widen,
  type Case,
  type Numbers,
  type Truth,
  type Wide,
  type Widened,
} from "../truth.js";
import { cache, keyAt } from "./kv_cache.js";

type Round = (x: number) => number;

/** Token rows that each token sees, in order of position: its prefixes' first, its own sequence up to itself. */
function visible(cuSeqlens: ArrayLike<number>, prefix: ArrayLike<number> | undefined): number[][] {
  const whole: number[][] = [];
  const seen: number[][] = [];
  sequences(cuSeqlens).forEach(([start, end], b) => {
    const before = prefix && prefix[b] >= 0 ? whole[prefix[b]] : [];
    whole.push([...before, ...Array.from({ length: end - start }, (_, i) => start + i)]);
    for (let i = start; i < end; i++) seen.push(whole[b].slice(0, before.length + i - start + 1));
  });
  return seen;
}

function dot(a: Wide, i: number, b: Wide, j: number, D: number, f: Round): number {
  let sum = 0;
  for (let d = 0; d < D; d++) sum = f(sum + f(a[i + d] * b[j + d]));
  return sum;
}

/** softmax(scores) values, and the log of its denominator. */
function attend(
  scores: number[],
  value: (j: number, d: number) => number,
  D: number,
  f: Round,
): { o: number[]; lse: number } {
  const m = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const p = scores.map((s) => f(Math.exp(f(s - m))));
  const l = p.reduce((a, b) => f(a + b), 0);
  const o = Array.from({ length: D }, (_, d) => f(p.reduce((sum, x, j) => f(sum + f(x * value(j, d))), 0) / l));
  return { o, lse: f(m + f(Math.log(l))) };
}

function forward({ q, k, v, cuSeqlens, prefix, scale }: Widened, f: Round): { o: number[]; lse: number[] } {
  const [, H, D] = q.shape;
  const G = k.shape[1];
  const c = f(scale);
  const o: number[] = [];
  const lse: number[] = [];
  visible(cuSeqlens, prefix).forEach((keys, i) => {
    for (let h = 0; h < H; h++) {
      const g = Math.floor((h * G) / H);
      const at = (row: number) => (row * G + g) * D;
      const scores = keys.map((row) => f(dot(q, (i * H + h) * D, k, at(row), D, f) * c));
      const result = attend(scores, (j, d) => v[at(keys[j]) + d], D, f);
      o.push(...result.o);
      lse.push(result.lse);
    }
  });
  return { o, lse };
}

function backward({ dO, q, k, v, o, lse, cuSeqlens, prefix, scale }: Widened, f: Round): Record<string, Float64Array> {
  const [N, H, D] = q.shape;
  const G = k.shape[1];
  const c = f(scale);
  const dq = new Float64Array(N * H * D);
  const dk = new Float64Array(N * G * D);
  const dv = new Float64Array(N * G * D);
  visible(cuSeqlens, prefix).forEach((keys, i) => {
    for (let h = 0; h < H; h++) {
      const query = (i * H + h) * D;
      const delta = dot(dO, query, o, query, D, f);
      for (const row of keys) {
        const key = (row * G + Math.floor((h * G) / H)) * D;
        const p = f(Math.exp(f(f(dot(q, query, k, key, D, f) * c) - lse[i * H + h])));
        const ds = f(f(p * f(dot(dO, query, v, key, D, f) - delta)) * c);
        for (let d = 0; d < D; d++) {
          dq[query + d] = f(dq[query + d] + f(ds * k[key + d]));
          dk[key + d] = f(dk[key + d] + f(ds * q[query + d]));
          dv[key + d] = f(dv[key + d] + f(p * dO[query + d]));
        }
      }
    }
  });
  return { dq, dk, dv };
}

export function batch(random: Random, lengths: number[], [H, G, D]: number[], prefix?: number[], deviation = 1): Case {
  const N = lengths.reduce((a, b) => a + b, 0);
  return {
    q: normal(random, [N, H, D], deviation),
    k: normal(random, [N, G, D], deviation),
    v: normal(random, [N, G, D]),
    cuSeqlens: offsets(lengths),
    prefix: prefix && ints(prefix),
    scale: 1 / Math.sqrt(D),
  };
}

const draw = (random: Random): Case[] => [
  batch(random, [1], [1, 1, 1]),
  batch(random, [0, 0], [2, 1, 4]),
  batch(random, [], [2, 2, 8]),
  batch(random, [1, 0, 65, 2, 30], [4, 2, 19]),
  batch(random, [random.below(70), random.below(40)], [3, 3, 1 + random.below(24)]),
  batch(random, [70, 5, 1, 0, 9], [4, 1, 8], [-1, 0, 1, 0, 3]),
];
const extremes = (random: Random): Case[] => [
  batch(random, [1, 130], [2, 1, 16], undefined, 6), // scores up to some hundred: one key takes all
  batch(random, [67], [2, 1, 4], undefined, 1e-20),
  { ...batch(random, [40], [1, 1, 8]), q: { shape: [40, 1, 8], data: new Float32Array(320) } }, // uniform
];

/** Sequences over several tiles of a GPU, with heads of the sizes that models have. */
export const wideHeads = (random: Random): Case[] => [
  batch(random, [300, 5, 131], [2, 1, 64]),
  batch(random, [150, 1, 0, 128, 70], [2, 1, 128], [-1, 0, 1, 1, 3]),
  { ...batch(random, [140], [1, 1, 64]), scale: -0.3 },
];

/** What the forward pass leaves for the backward. */
function withOutputs(random: Random, inputs: Case): Case {
  const { shape } = inputs.q as Numbers;
  const { o, lse } = forward(widen(inputs), (x) => x);
  return {
    dO: normal(random, shape),
    ...inputs,
    o: { shape, data: Float32Array.from(o) },
    lse: { shape: shape.slice(0, 2), data: Float32Array.from(lse) },
  };
}

export const wideHeadsGrad = (random: Random): Case[] => wideHeads(random).map((inputs) => withOutputs(random, inputs));

const shapes = [
  { shape: "B 1, T 512, H 12, D 64", lengths: [512], heads: [12, 12, 64] },
  { shape: "B 1, T 1024, H 12, D 64", lengths: [1024], heads: [12, 12, 64] },
  { shape: "B 1, T 2048, H 12, D 64", lengths: [2048], heads: [12, 12, 64] },
  { shape: "B 1, T 4096, H 12, D 64", lengths: [4096], heads: [12, 12, 64] },
  { shape: "B 16, T 128, H 12, D 64", lengths: Array<number>(16).fill(128), heads: [12, 12, 64] },
  { shape: "B 4, T 512, H 14, G 2, D 64", lengths: Array<number>(4).fill(512), heads: [14, 2, 64] },
  { shape: "B 1, T 2048, H 12, G 4, D 128", lengths: [2048], heads: [12, 4, 128] },
];
const pairs = (inputs: Case): number =>
  sequences((inputs.cuSeqlens as Numbers).data).reduce(
    (sum, [start, end]) => sum + ((end - start) * (end - start + 1)) / 2,
    0,
  );

export const attention: Truth = truth({
  op: "attention",
  reference: forward,
  draw,
  extremes,
  gradient: {
    wrt: ["q", "k", "v"],
    outputs: ["o"],
    call: ({ q, k, v, cuSeqlens, prefix, scale }: Record<string, never>) => ({
      o: ops.attention(q, k, v, cuSeqlens, { prefix, scale }),
    }),
  },
  bench: shapes.map(({ shape, lengths, heads }) => ({ shape, draw: (random) => batch(random, lengths, heads) })),
  cost: (inputs) => {
    const [N, H, D] = (inputs.q as Numbers).shape;
    return {
      flops: 4 * D * H * pairs(inputs),
      read: bytes(inputs.q, inputs.k, inputs.v),
      write: bytes(inputs.q) + 4 * N * H,
    };
  },
});

export const attentionGrad: Truth = truth({
  op: "attentionGrad",
  reference: backward,
  draw: (random) => draw(random).map((inputs) => withOutputs(random, inputs)),
  extremes: (random) => extremes(random).map((inputs) => withOutputs(random, inputs)),
  bench: shapes.map(({ shape, lengths, heads }) => ({
    shape,
    draw: (random) => {
      const inputs = batch(random, lengths, heads);
      const { q } = inputs as Record<string, Numbers>;
      const [N, H] = q.shape;
      const lse: Numbers = { shape: [N, H], data: new Float32Array(N * H).fill(Math.log(N) + 0.5) };
      return { dO: normal(random, q.shape), ...inputs, o: normal(random, q.shape, 0.1), lse };
    },
  })),
  cost: (inputs) => {
    const [, H, D] = (inputs.q as Numbers).shape;
    const { dO, q, k, v, o, lse } = inputs;
    return { flops: 10 * D * H * pairs(inputs), read: bytes(dO, q, k, v, o, lse), write: bytes(q, k, v) };
  },
});

export const attentionDecode: Truth = truth({
  op: "attentionDecode",
  reference: ({ q, kCache, vCache, slots, lengths, scale }, f) => {
    const [B, H, D] = q.shape;
    const [, G, T] = kCache.shape;
    const o: number[] = [];
    for (let b = 0; b < B; b++)
      for (let h = 0; h < H; h++) {
        const head = (slots[b] * G + Math.floor((h * G) / H)) * T * D;
        const scores = Array.from({ length: lengths[b] }, (_, j) => {
          let s = 0;
          for (let d = 0; d < D; d++) s = f(s + f(q[(b * H + h) * D + d] * kCache[head + keyAt(j, d, D)]));
          return f(s * f(scale));
        });
        o.push(...attend(scores, (j, d) => vCache[head + j * D + d], D, f).o);
      }
    return { o };
  },
  draw: (random) =>
    [
      { heads: [1, 1, 1], lengths: [1] },
      { heads: [2, 1, 16], lengths: [] },
      { heads: [4, 2, 19], lengths: [1, 64, 65, 128] },
      { heads: [8, 1, 32], lengths: [1 + random.below(128), 100] },
    ].map(({ heads: [H, G, D], lengths }) => ({
      q: normal(random, [lengths.length, H, D]),
      ...cache(random, [3, G, 128, D]),
      slots: ids(random, lengths.length, 3),
      lengths: ints(lengths),
      scale: 1 / Math.sqrt(D),
    })),
  extremes: (random) => {
    // what the cache holds beyond the length enters nothing
    const q = normal(random, [1, 2, 8]);
    const rubbish = cache(random, [1, 1, 64, 8], NaN) as Record<string, Numbers>;
    for (let j = 0; j < 10; j++)
      for (let d = 0; d < 8; d++) {
        rubbish.kCache.data[keyAt(j, d, 8)] = random.normal();
        rubbish.vCache.data[j * 8 + d] = random.normal();
      }
    return [{ q, ...rubbish, slots: ints([0]), lengths: ints([10]), scale: 1 }];
  },
  bench: [
    { shape: "B 32, T 1024, H 12, D 64", heads: [12, 12, 64], B: 32, T: 1024 },
    { shape: "B 32, T 1024, H 14, G 2, D 64", heads: [14, 2, 64], B: 32, T: 1024 },
  ].map(({ shape, heads: [H, G, D], B, T }) => ({
    shape,
    draw: (random) => ({
      q: normal(random, [B, H, D]),
      ...cache(random, [B, G, T, D]),
      slots: ints(Array.from({ length: B }, (_, b) => b)),
      lengths: ints(Array<number>(B).fill(T)),
      scale: 1 / Math.sqrt(D),
    }),
  })),
  cost: (inputs) => {
    const [, H, D] = (inputs.q as Numbers).shape;
    const G = (inputs.kCache as Numbers).shape[1];
    const tokens = ((inputs.lengths as Numbers).data as Int32Array).reduce((a, b) => a + b, 0);
    return { flops: 4 * H * D * tokens, read: bytes(inputs.q) + 8 * G * D * tokens, write: bytes(inputs.q) };
  },
});
