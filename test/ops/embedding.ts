import { ops } from "../../lib/index.js";
import { bytes, ids, normal, truth, type Case, type Numbers, type Widened } from "../truth.js";
import type { Random } from "../random.js";

const sizes: [N: number, V: number, C: number][] = [
  [0, 3, 4],
  [1, 1, 1],
  [37, 5, 19],
  [20, 131, 40],
];

export const embedding = truth({
  op: "embedding",
  reference: ({ ids: rows, table }: Widened) => ({
    y: Array.from(rows as number[]).flatMap((row) =>
      Array.from(table.slice(row * table.shape[1], (row + 1) * table.shape[1]) as number[]),
    ),
  }),
  draw: (random) => sizes.map(([N, V, C]): Case => ({ ids: ids(random, N, V), table: normal(random, [V, C]) })),
  gradient: { wrt: ["table"], outputs: ["y"], call: ({ ids: rows, table }) => ({ y: ops.embedding(rows, table) }) },
  bench: [
    {
      shape: "N 2048, V 50257, C 768",
      draw: (random) => ({ ids: ids(random, 2048, 50257), table: normal(random, [50257, 768]) }),
    },
  ],
  cost: ({ ids: rows, table }) => {
    const moved = bytes(rows) * (table as Numbers).shape[1];
    return { flops: 0, read: moved, write: moved };
  },
});

export const embeddingGrad = truth({
  op: "embeddingGrad",
  reference({ ids: rows, dy, dtable }: Widened, f) {
    const C = dy.shape[1];
    const sum = Float64Array.from(dtable);
    (rows as Float64Array).forEach((row, n) => {
      for (let c = 0; c < C; c++) sum[row * C + c] = f(sum[row * C + c] + dy[n * C + c]);
    });
    return { dtable: sum };
  },
  draw: (random: Random) =>
    sizes.map(([N, V, C]): Case => ({
      ids: ids(random, N, V),
      dy: normal(random, [N, C]),
      dtable: normal(random, [V, C]),
    })),
  bench: [
    {
      shape: "N 2048, V 50257, C 768",
      draw: (random) => ({
        ids: ids(random, 2048, 50257),
        dy: normal(random, [2048, 768]),
        dtable: normal(random, [50257, 768]),
      }),
    },
  ],
  cost: ({ dy }) => ({ flops: 0, read: 2 * bytes(dy), write: bytes(dy) }),
});
