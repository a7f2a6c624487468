import { grid, type Run } from "../call.js";
import { f32, u32 } from "../queue.js";

const files = ["math", "reduce", "offsets", "rewards"];

export const rewards: Record<string, Run> = {
  tokenRewards(call) {
    const N = call.size("logp");
    const bound = {
      0: call.in("logp"),
      1: call.in("refLogp"),
      2: call.in("scores"),
      3: call.in("cuSeqlens"),
      4: call.out("rewards"),
      5: call.out("kl"),
    };
    const scalars = [...[N, call.size("cuSeqlens") - 1, call.number("estimator")].map(u32), f32(call.number("klCoef"))];
    call.queue.dispatch({ files, entry: "token_rewards" }, bound, scalars, grid(N));
  },
};
