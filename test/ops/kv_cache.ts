import { ids, ints, normal, truth, type Case, type Numbers, type Truth } from "../truth.js";
import type { Random } from "../random.js";

/** Where a key lies in the cache of a slot and head: keys as panels [T/64][D][64], values as rows [T][D]. */
export const keyAt = (token: number, d: number, D: number): number =>
  (Math.floor(token / 64) * D + d) * 64 + (token % 64);

export function cache(random: Random, [S, G, T, D]: number[], rubbish?: number): Case {
  const tensor = (): Numbers =>
    rubbish === undefined
      ? normal(random, [S, G, T, D])
      : { shape: [S, G, T, D], data: new Float32Array(S * G * T * D).fill(rubbish) };
  return { kCache: tensor(), vCache: tensor() };
}

export const kvWrite: Truth = truth({
  op: "kvWrite",
  reference: ({ k, v, slots, positions, kCache, vCache }) => {
    const [, G, T, D] = kCache.shape;
    const [keys, values] = [Float64Array.from(kCache), Float64Array.from(vCache)];
    for (let n = 0; n < slots.length; n++)
      for (let g = 0; g < G; g++)
        for (let d = 0; d < D; d++) {
          const head = (slots[n] * G + g) * T * D;
          keys[head + keyAt(positions[n], d, D)] = k[(n * G + g) * D + d];
          values[head + positions[n] * D + d] = v[(n * G + g) * D + d];
        }
    return { kCache: keys, vCache: values };
  },
  draw: (random) =>
    [0, 1, 5, 150].flatMap((N) =>
      [8, 19].map((D) => ({
        k: normal(random, [N, 2, D]),
        v: normal(random, [N, 2, D]),
        slots: N === 150 ? ints(Array.from({ length: N }, (_, n) => (n < 100 ? 2 : 0))) : ids(random, N, 3),
        positions: N === 150 ? ints(Array.from({ length: N }, (_, n) => (n + 7) % 128)) : ids(random, N, 128), // a place may be written twice
        ...cache(random, [3, 2, 128, D]),
      })),
    ),
});

export const kvCopy: Truth = truth({
  op: "kvCopy",
  reference: ({ from, to, kCache, vCache }) => {
    const [S, G, T, D] = kCache.shape;
    const out = { kCache: Float64Array.from(kCache), vCache: Float64Array.from(vCache) };
    for (const tensor of S > 0 ? Object.values(out) : [])
      for (let m = 0; m < from.length; m++)
        tensor.copyWithin(to[m] * G * T * D, from[m] * G * T * D, (from[m] + 1) * G * T * D);
    return out;
  },
  draw: (random) =>
    [0, 1, 6].map((M) => ({ from: ids(random, M, 4), to: ids(random, M, 4), ...cache(random, [4, 1, 64, 5]) })),
});
