import { constant, normal, offsets, truth, type Case, type Widened } from "../truth.js";
import { mask, poisoned } from "./advantage.js";

export const whiten = truth({
  op: "whiten",
  reference({ x, mask, shiftMean, form }: Widened, f) {
    const kept = Array.from(x as number[]).filter((_, i) => !mask || mask[i]);
    const mean = kept.reduce((a, b) => f(a + b), 0) / kept.length;
    const squares = kept.reduce((a, b) => f(a + f((b - mean) * (b - mean))), 0);
    const biased = form === "openrlhf";
    const variance = squares / (biased ? kept.length : kept.length - 1);
    const factor = 1 / Math.sqrt(biased ? Math.max(variance, 1e-8) : variance + 1e-8);
    return {
      y: Array.from(x as number[], (v, i) =>
        mask && !mask[i] ? 0 : f(f(f(v - mean) * factor) + (shiftMean ? 0 : mean)),
      ),
    };
  },
  draw: (random) =>
    ["verl", "trl", "openrlhf"].flatMap((form) =>
      [1, 0].map((shiftMean): Case => {
        const kept = mask(random, [4200]);
        kept.data[0] = kept.data[1] = 1;
        return {
          x: poisoned(normal(random, [4200]), kept, random),
          mask: kept,
          cuSeqlens: offsets([100, 0, 4100]),
          shiftMean,
          form,
        };
      }),
    ),
  extremes: () => [{ x: constant([5], 3), cuSeqlens: offsets([5]), shiftMean: 1, form: "verl" }],
});

export const moments = truth({
  op: "moments",
  reference({ x, mask }: Widened, f) {
    const kept = Array.from(x as number[]).filter((_, i) => !mask || mask[i]);
    const sum = (values: number[]) => values.reduce((a, b) => f(a + b), 0);
    return { moments: [kept.length, sum(kept), sum(kept.map((v) => f(v * v))), Math.min(...kept), Math.max(...kept)] };
  },
  draw: (random) =>
    [[0], [1], [3, 5000]].map((lengths, i): Case => {
      const N = lengths.reduce((a, b) => a + b, 0);
      const kept = i === 2 ? mask(random, [N]) : undefined;
      return {
        x: kept ? poisoned(normal(random, [N]), kept, random) : normal(random, [N]),
        mask: kept,
        cuSeqlens: offsets(lengths),
      };
    }),
});
