import { attention } from "../test/ops/attention.js";
import { linear } from "../test/ops/linear.js";
import type { Truth } from "../test/truth.js";
import type { Device } from "../lib/index.js";
import { prepared } from "./kernels.js";
import { interleaved } from "./measure.js";
import type { Order } from "./result.js";

// What the law of arithmetic costs: ops in its order beside kernels that add in any order
// (kernels/cpu/limit_unordered.cc).

const unordered: Record<string, string> = { linear: "limitLinear", attention: "limitAttention" };

export interface OrderRow {
  name: string;
  shape: string;
  measure(on: Device): Promise<Order>;
}

export const orderRows: OrderRow[] = [linear, attention].flatMap((entry: Truth) =>
  entry
    .bench!.filter(({ packed }) => !packed)
    .map(({ shape, draw }) => ({
      name: entry.op,
      shape,
      async measure(on) {
        const both = [entry, { ...entry, op: unordered[entry.op] }].map((one) => prepared(one, { draw }, on));
        const [ours, free] = await interleaved(both.map(({ timer }) => timer));
        for (const one of both) one.dispose();
        return { name: entry.op, shape, threads: on.threads, ms: ours.ms, unordered: free.ms };
      },
    })),
);
