import { Random as Philox } from "../../lib/device/philox.js";
import { constant, normal, truth, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

function draw(random: Random, M: number, V: number, more: Case = {}): Case {
  return {
    logits: normal(random, [M, V], 2),
    counter: {
      shape: [M, 4],
      data: Int32Array.from({ length: 4 * M }, (_, i) => (i % 4 === 3 ? 0 : random.below(1000))),
    },
    seed: random.below(2 ** 31),
    stream: 1,
    temperature: 1,
    topK: 0,
    topP: 1,
    minP: 0,
    ...more,
  };
}

export const sample = truth({
  op: "sample",
  reference({ logits, counter, seed, stream, temperature, topK, topP, minP }: Widened) {
    const [M, V] = logits.shape;
    const made = { token: [] as number[], logp: [] as number[], truncatedLogp: [] as number[] };
    for (let i = 0; i < M; i++) {
      const T = temperature || 1;
      const x = Array.from(logits.slice(i * V, (i + 1) * V) as number[], (v) => v / T);
      const m = Math.max(...x);
      const lse = m + Math.log(x.reduce((s, v) => s + Math.exp(v - m), 0));
      const p = x.map((v) => Math.exp(v - lse));
      let order = x
        .map((_, j) => j)
        .filter((j) => p[j] > 0)
        .sort((a, b) => p[b] - p[a] || a - b);
      if (temperature === 0) order = order.slice(0, 1);
      if (topK) order = order.slice(0, topK);
      const mass = order.reduce((s, j) => s + p[j], 0);
      let sum = 0;
      order = order.filter((j) => {
        const before = sum;
        sum += p[j];
        return topP >= 1 || before < topP * mass;
      });
      order = order.filter((j) => p[j] >= minP * p[order[0]]);
      const kept = order.slice().sort((a, b) => a - b);
      const total = kept.reduce((s, j) => s + p[j], 0);
      const [c0, c1, c2] = counter.slice(4 * i, 4 * i + 3);
      const goal = new Philox(seed, stream, c0, c1, c2).uniform() * total;
      let reached = 0;
      const token = kept.find((j) => (reached += p[j]) > goal) ?? kept[kept.length - 1];
      made.token.push(token);
      made.logp.push(x[token] - lse);
      made.truncatedLogp.push(Math.log(p[token] / total));
    }
    return made;
  },
  draw: (random) => [
    draw(random, 0, 3),
    draw(random, 2, 1),
    draw(random, 40, 19),
    draw(random, 12, 700, { temperature: 0.7 }),
    draw(random, 12, 700, { temperature: 0 }),
    draw(random, 12, 700, { topK: 5 }),
    draw(random, 12, 700, { topP: 0.6 }),
    draw(random, 12, 700, { topK: 50, topP: 0.9, minP: 0.1, temperature: 1.3 }),
  ],
  extremes: (random) => [
    draw(random, 3, 600, { logits: constant([3, 600], -1e5) }),
    draw(random, 3, 600, { logits: constant([3, 600], 2), topK: 7 }),
  ],
  ulp: 8,
  bench: [
    { shape: "M 64, V 8192", draw: (random) => draw(random, 64, 8192) },
    { shape: "M 16, V 50257", draw: (random) => draw(random, 16, 50257) },
  ],
  cost: ({ logits }) => {
    const [M, V] = (logits as Numbers).shape;
    return { flops: 40 * M * V, read: 4 * M * V, write: 12 * M }; // two passes of exp
  },
});

export const normalNumbers = truth({
  op: "normal",
  reference({ seed, stream, mean, deviation, count }: Widened, f) {
    const y: number[] = [];
    for (let pair = 0; 2 * pair < count; pair++) {
      const numbers = new Philox(seed, stream, pair);
      const radius = Math.sqrt(-2 * Math.log(1 - numbers.uniform()));
      const angle = 2 * Math.PI * numbers.uniform();
      y.push(f(mean + deviation * radius * Math.cos(angle)), f(mean + deviation * radius * Math.sin(angle)));
    }
    return { y: y.slice(0, count) };
  },
  draw: () => [0, 1, 2, 9001].map((count): Case => ({ seed: 7, stream: 3, mean: 1, deviation: 0.5, count })),
  sizes: ({ count }) => ({ n: count as number }),
  ulp: 2,
});
