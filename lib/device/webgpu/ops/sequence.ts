import { grid, type Call, type Run } from "../call.js";
import { u32 } from "../queue.js";

const files = ["math", "reduce", "offsets", "sequence"];
const B = (call: Call) => call.size("cuSeqlens") - 1;

export const sequence: Record<string, Run> = {
  sequenceSum(call) {
    const scalars = [call.size("x"), B(call), call.number("mean")].map(u32);
    call.queue.dispatch(
      { files, entry: "sequence_sum" },
      { 0: call.in("x"), 3: call.in("cuSeqlens"), 4: call.out("y") },
      scalars,
      grid(B(call), 1),
    );
  },
  sequenceSumGrad(call) {
    const N = call.size("dx");
    const scalars = [N, B(call), call.number("mean")].map(u32);
    call.queue.dispatch(
      { files, entry: "sequence_sum_grad" },
      { 0: call.in("dy"), 3: call.in("cuSeqlens"), 4: call.out("dx") },
      scalars,
      grid(N),
    );
  },
};
