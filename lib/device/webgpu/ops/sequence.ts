import { grid, type Call, type Run } from "../call.js";
import { SLOTS } from "../faults.js";
import type { Region } from "../memory.js";
import { f32, read, u32, write } from "../queue.js";

const files = ["math", "reduce", "sequence"];
const MOMENTS = ["math", "reduce", "moments"];
const BLOCK = 4096; // tokens of a partial sum
const B = (call: Call) => call.size("cuSeqlens") - 1;

const numbers = (call: Call, more: number[]) =>
  [call.size("x"), Number(call.has("mask")), Math.ceil(call.size("x") / BLOCK), ...more].map(u32);

/** Moments about 0, or about the mean of those before. */
function moments(call: Call, to: Region, about?: Region): void {
  const blocks = Math.ceil(call.size("x") / BLOCK);
  const partial = call.scratch(40 * blocks);
  const bound = { 0: call.in("x"), 1: call.in("mask"), 2: about && read(about), 3: write(partial) };
  call.queue.dispatch(
    { files: MOMENTS, entry: "moments_blocks" },
    bound,
    numbers(call, [Number(about !== undefined)]),
    grid(blocks, 1),
  );
  call.queue.dispatch(
    { files: MOMENTS, entry: "moments_total" },
    { 2: read(partial), 3: write(to) },
    numbers(call, [0]),
    [1],
  );
}

export const sequence: Record<string, Run> = {
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
    const scalars = [...[N, B(call), 0, call.number("estimator")].map(u32), f32(call.number("klCoef"))];
    call.queue.dispatch({ files, entry: "token_rewards" }, bound, scalars, grid(N));
  },
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
  moments(call) {
    moments(call, call.region("moments"));
  },
  whiten(call) {
    const [first, squares] = [call.scratch(40), call.scratch(40)];
    moments(call, first);
    moments(call, squares, first);
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
    call.queue.dispatch({ files: MOMENTS, entry: "whiten" }, bound, scalars, grid(call.size("x")));
  },
};
