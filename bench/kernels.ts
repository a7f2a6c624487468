import { readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { root } from "../lib/device/native.js";
import { specs, type OpSpec } from "../lib/device/ops.js";
import { ops, Tensor, type Device } from "../lib/index.js";
import { run } from "../lib/tensor/op.js";
import { Random } from "../test/random.js";
import { isNumbers, type Bench, type Case, type Numbers, type Truth } from "../test/truth.js";
import type { Cost } from "./limit.js";
import type { Timer } from "./measure.js";

/** Work that is ready to be timed. */
export interface Prepared {
  timer: Timer;
  cost: Cost;
  dispose(): void;
}

/** A benchmark that the truth of an op states, with the inputs and costs of its tests. */
export interface KernelRow {
  name: string;
  shape: string;
  /** All ops that the row runs. */
  ops: string[];
  prepare(on: Device): Prepared;
}

const COPIES = 2; // inputs in turns, so that a cache is not what is measured

export async function kernelRows(): Promise<KernelRow[]> {
  const folder = join(root, "dist/test/ops");
  const rows: KernelRow[] = [];
  for (const file of readdirSync(folder)
    .filter((name) => name.endsWith(".js"))
    .sort()) {
    const exports = (await import(pathToFileURL(join(folder, file)).href)) as Record<string, Truth>;
    for (const entry of Object.values(exports))
      for (const bench of entry.bench ?? []) {
        const { shape, packed, before } = bench;
        const used = [...(packed ? ["pack"] : []), ...(before ? [before.op] : []), entry.op];
        rows.push({ name: entry.op, shape, ops: used, prepare: (on) => prepared(entry, bench, on) });
      }
  }
  return rows;
}

/** Prepares an op with inputs that its truth draws. */
export function prepared(entry: Truth, { draw, packed, before }: Omit<Bench, "shape">, on: Device): Prepared {
  const random = new Random(entry.op, 1);
  const inputs = draw(random);
  const spec = specs.get(entry.op)!;
  const taken = new Set(spec.arguments.map(({ name }) => name));
  const copies = Array.from({ length: COPIES }, () =>
    Object.fromEntries(
      Object.entries(inputs)
        .filter(([name]) => taken.has(name))
        .map(([name, value]) => [name, isNumbers(value) ? Tensor.from(value.data, value.shape, on) : value]),
    ),
  );
  if (packed)
    for (const copy of copies) {
      const weight = copy.weight as Tensor;
      copy.weight = ops.pack(weight, packed);
      weight.dispose();
    }
  let turn = 0;
  return {
    cost: costOf(entry, spec, inputs, packed),
    async timer(runs) {
      await on.read(0, 0);
      const start = performance.now();
      for (let i = 0; i < runs; i++) {
        const args = copies[turn++ % COPIES];
        if (before)
          run(before.op, Object.fromEntries(Object.entries(before.inputs).map(([name, from]) => [name, args[from]])));
        const outputs = run(entry.op, args);
        for (const [name, tensor] of Object.entries(outputs)) if (!(args[name] instanceof Tensor)) tensor.dispose();
      }
      await on.read(0, 0);
      return performance.now() - start;
    },
    dispose() {
      for (const copy of copies) for (const value of Object.values(copy)) if (value instanceof Tensor) value.dispose();
    },
  };
}

function costOf(entry: Truth, spec: OpSpec, inputs: Case, packed: "f32" | "bf16" | undefined): Cost {
  const cost = entry.cost!(inputs);
  if (packed === "bf16") cost.read -= (inputs.weight as Numbers).data.byteLength / 2;
  const update = spec.arguments
    .filter(({ kind, name }) => kind.includes("add") && isNumbers(inputs[name]))
    .reduce((sum, { name }) => sum + (inputs[name] as Numbers).data.byteLength, 0);
  return {
    ...cost,
    update: Math.min(update, cost.read, cost.write),
    footprint: COPIES * cost.read + cost.write - update,
  };
}
