import { grid, type Call, type Run } from "../call.js";
import { f32, read, u32, write, type Scalar } from "../queue.js";
import type { Region } from "../memory.js";

const files = ["math", "reduce", "elementwise"];
const BLOCK = 4096; // elements of a sum

/** The parts of equally long regions that a binding holds, and their elements. */
function* parts(call: Call, regions: readonly Region[]): Generator<[Region[], number]> {
  const [{ bytes }] = regions;
  const step = Math.floor(call.maxBinding / (4 * BLOCK)) * 4 * BLOCK;
  for (let at = 0; at < bytes; at += step) {
    const size = Math.min(step, bytes - at);
    yield [regions.map(({ buffer, offset }) => ({ buffer, offset: offset + at, bytes: size })), size / 4];
  }
}

/** An entry point over inputs a, b (bindings 0, 1) and the output (2). */
const map = (
  entry: string,
  inputs: readonly string[],
  scalars: (call: Call) => number[] = () => [],
  output = "y",
): Run => {
  return (call) => {
    for (const [[y, ...from], n] of parts(
      call,
      [output, ...inputs].map((name) => call.region(name)),
    )) {
      const given = Object.fromEntries(from.map((region, i) => [i, read(region)]));
      const numbers: Scalar[] = [u32(n), ...scalars(call).map(f32)];
      call.queue.dispatch({ files, entry }, { ...given, 2: write(y) }, numbers, grid(n));
    }
  };
};

export const elementwise: Record<string, Run> = {
  add: map("add", ["a", "b"]),
  sub: map("sub", ["a", "b"]),
  mul: map("mul", ["a", "b"]),
  scale: map("scale", ["x"], (call) => [call.number("factor"), call.number("shift")]),
  clamp: map("clamp_all", ["x"], (call) => [call.number("low"), call.number("high")]),
  clampGrad: map("clamp_grad", ["dy", "x"], (call) => [call.number("low"), call.number("high")], "dx"),
  accumulate: map("accumulate", ["x"]),
  fill: map("fill", [], (call) => [call.number("value")]),
  sum(call) {
    const sums = call.scratch((Math.ceil(call.region("x").bytes / (4 * BLOCK)) + 1) * 8);
    let blocks = 0;
    for (const [[x], n] of parts(call, [call.region("x")])) {
      const to = { ...sums, offset: sums.offset + 8 * blocks, bytes: sums.bytes - 8 * blocks };
      call.queue.dispatch({ files, entry: "sum_blocks" }, { 0: read(x), 3: write(to) }, [u32(n)], grid(n, BLOCK));
      blocks += Math.ceil(n / BLOCK);
    }
    call.queue.dispatch({ files, entry: "sum_sums" }, { 0: read(sums), 2: call.out("y") }, [u32(blocks)], [1]);
  },
};
