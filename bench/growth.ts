import { attention, batch } from "../test/ops/attention.js";
import { head, linearLogprob } from "../test/ops/linear_head.js";
import type { Device } from "../lib/index.js";
import { BATCH, DATA_ROWS, epochOrder, stepData } from "./data.js";
import { prepared, type Prepared } from "./kernels.js";
import { interleaved } from "./measure.js";
import { shapes, steps, type Shape, type StepRow } from "./models.js";
import { sharingStep } from "./sharing.js";
import type { Growth } from "./result.js";

// How cost grows: the same work at sizes that double, timed in turns. Time should grow as the FLOPs
// do.

interface Row {
  name: string;
  varies: string;
  shape: string;
  sizes: number[];
  prepare(on: Device, size: number): Prepared | Promise<Prepared>;
}

const step = (
  pick: (rows: ReturnType<typeof steps>) => StepRow,
  size: (n: number) => Partial<Shape>,
): Row["prepare"] => {
  return (on, n) => {
    const row = pick(steps("demo", { ...shapes.demo, ...size(n) }));
    return { cost: row.cost, ...row.prepare(on) };
  };
};

export const growthRows: Row[] = [
  {
    name: "attention",
    varies: "T",
    shape: "B 1, H 12, D 64",
    sizes: [512, 1024, 2048, 4096],
    prepare: (on, T) => prepared(attention, { draw: (random) => batch(random, [T], [12, 12, 64]) }, on),
  },
  {
    name: "attention",
    varies: "B",
    shape: "T 512, H 12, D 64",
    sizes: [1, 2, 4, 8],
    prepare: (on, B) =>
      prepared(attention, { draw: (random) => batch(random, Array<number>(B).fill(512), [12, 12, 64]) }, on),
  },
  {
    name: "linearLogprob",
    varies: "M",
    shape: "C 768, V 16384",
    sizes: [256, 512, 1024, 2048],
    prepare: (on, M) => prepared(linearLogprob, { draw: (random) => head(random, [M, 768, 16384]) }, on),
  },
  {
    name: "linearLogprob",
    varies: "V",
    shape: "M 512, C 768",
    sizes: [8192, 16384, 32768, 65536],
    prepare: (on, V) => prepared(linearLogprob, { draw: (random) => head(random, [512, 768, V]) }, on),
  },
  {
    name: "SFT step",
    varies: "batch",
    shape: "demo",
    sizes: [16, 32, 64],
    prepare: step(
      ([, sft]) => sft,
      (batch) => ({ batch }),
    ),
  },
  {
    name: "SFT step",
    varies: "completions",
    shape: "demo, of each of 4 prompts of 40 tokens",
    sizes: [2, 4, 8, 16],
    prepare: (on, completions) =>
      sharingStep(
        on,
        "SFT step",
        { ...shapes.demo, batch: 4 * completions, prompt: 40, response: 40 },
        completions,
        true,
      ),
  },
  {
    name: "generation",
    varies: "tokens",
    shape: "demo",
    sizes: [24, 48, 96, 192],
    prepare: step(
      ([generation]) => generation,
      (response) => ({ response }),
    ),
  },
  {
    name: "data of a step",
    varies: "rows",
    shape: `${BATCH} comparisons of 4 and 2 x 8 words`,
    sizes: DATA_ROWS,
    prepare: (_, rows) => stepData(rows),
  },
  {
    name: "data: order of an epoch",
    varies: "rows",
    shape: "any",
    sizes: DATA_ROWS,
    prepare: (_, rows) => epochOrder(rows),
  },
];

export async function measureGrowth(on: Device, { name, varies, shape, sizes, prepare }: Row): Promise<Growth> {
  const all: Prepared[] = [];
  for (const size of sizes) all.push(await prepare(on, size));
  const ms = (await interleaved(all.map(({ timer }) => timer))).map((one) => one.ms);
  for (const one of all) one.dispose();
  const [first, last] = [all[0], all[all.length - 1]];
  return { name, varies, shape, threads: on.threads, sizes, ms, work: last.cost.flops / first.cost.flops };
}
