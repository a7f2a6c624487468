import { grid, type Call } from "../call.js";
import { f32, u32 } from "../queue.js";
import type { Run } from "./index.js";

const files = ["math", "reduce", "sequence"];
const B = (call: Call) => call.size("cuSeqlens") - 1;

export const sequence: Record<string, Run> = {
  tokenRewards(call) {
    const N = call.size("logp");
    const bound = { 0: call.in("logp"), 1: call.in("refLogp"), 2: call.in("scores"), 3: call.in("cuSeqlens"), 4: call.out("rewards"), 5: call.out("kl") };
    const scalars = [...[N, B(call), 0, call.number("estimator")].map(u32), f32(call.number("klCoef"))];
    call.queue.dispatch({ files, entry: "token_rewards" }, bound, scalars, grid(N));
  },
  sequenceSum(call) {
    const scalars = [call.size("x"), B(call), call.number("mean")].map(u32);
    call.queue.dispatch({ files, entry: "sequence_sum" }, { 0: call.in("x"), 3: call.in("cuSeqlens"), 4: call.out("y") }, scalars, grid(B(call), 1));
  },
  sequenceSumGrad(call) {
    const N = call.size("dx");
    const scalars = [N, B(call), call.number("mean")].map(u32);
    call.queue.dispatch({ files, entry: "sequence_sum_grad" }, { 0: call.in("dy"), 3: call.in("cuSeqlens"), 4: call.out("dx") }, scalars, grid(N));
  },
};
