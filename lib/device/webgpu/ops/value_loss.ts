import { grid, type Run } from "../call.js";
import { pair, read, u32, write } from "../queue.js";
import { BLOCK, FAR, flag, shared, weigh } from "./token_loss.js";

const files = ["math", "reduce", "token_loss", "value_loss"];

export const valueLoss: Record<string, Run> = {
  valueLoss(call) {
    const M = call.size("values");
    const range = call.number("clipRange");
    call.require(range === Infinity || call.has("oldValues"), "clipRange is given, and oldValues is missing");
    const blocks = Math.ceil(M / BLOCK);
    const scalars = [...shared(call, M, flag(call, "oldValues")), ...pair(Math.min(range, FAR)), u32(blocks)];
    const { weights } = weigh(call, files, M, scalars);
    const partial = call.scratch(8 * 7 * blocks);
    const inputs = { 0: call.in("values"), 1: call.in("oldValues"), 2: call.in("returns"), 3: read(weights) };
    call.queue.dispatch({ files, entry: "value_loss_grad" }, { ...inputs, 4: call.out("dvalues") }, scalars, grid(M));
    call.queue.dispatch(
      { files, entry: "value_loss_sums" },
      { ...inputs, 5: write(partial) },
      scalars,
      grid(blocks, 1),
    );
    call.queue.dispatch(
      { files, entry: "value_loss_total" },
      { 0: read(partial), 2: call.out("stats"), 3: call.out("loss") },
      scalars,
      [1],
    );
  },
};
