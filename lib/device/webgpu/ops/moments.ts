import { grid, type Call, type Run } from "../call.js";
import { SLOTS } from "../faults.js";
import type { Region } from "../memory.js";
import { read, u32, write } from "../queue.js";

const files = ["math", "reduce", "moments"];
const BLOCK = 4096; // tokens of a partial sum

const numbers = (call: Call, more: number[]) =>
  [call.size("x"), Number(call.has("mask")), Math.ceil(call.size("x") / BLOCK), ...more].map(u32);

/** Moments about 0, or about the mean of those before. */
function momentsOf(call: Call, to: Region, about?: Region): void {
  const blocks = Math.ceil(call.size("x") / BLOCK);
  const partial = call.scratch(40 * blocks);
  const bound = { 0: call.in("x"), 1: call.in("mask"), 2: about && read(about), 3: write(partial) };
  call.queue.dispatch(
    { files, entry: "moments_blocks" },
    bound,
    numbers(call, [Number(about !== undefined)]),
    grid(blocks, 1),
  );
  call.queue.dispatch({ files, entry: "moments_total" }, { 2: read(partial), 3: write(to) }, numbers(call, [0]), [1]);
}

export const moments: Record<string, Run> = {
  moments(call) {
    momentsOf(call, call.region("moments"));
  },
  whiten(call) {
    const [first, squares] = [call.scratch(40), call.scratch(40)];
    momentsOf(call, first);
    momentsOf(call, squares, first);
    const bound = {
      0: call.in("x"),
      1: call.in("mask"),
      2: read(first),
      4: read(squares),
      5: call.out("y"),
      6: write(call.faults),
    };
    const scalars = numbers(call, [
      0,
      call.number("shiftMean"),
      Number(call.choice("form") === "openrlhf"),
      call.op.index,
      call.checked % SLOTS,
    ]);
    call.queue.dispatch({ files, entry: "whiten" }, bound, scalars, grid(call.size("x")));
  },
};
