import { grid, type Run } from "../call.js";
import { f32, u32 } from "../queue.js";

export const advantage: Record<string, Run> = {
  gae(call) {
    const B = call.size("cuSeqlens") - 1;
    const gamma = call.number("gamma");
    const scalars = [
      ...[call.size("rewards"), B, 0, 0, 0, Number(call.has("mask"))].map(u32),
      f32(gamma),
      f32(gamma * call.number("lambda")),
    ];
    const bound = {
      0: call.in("rewards"),
      1: call.in("values"),
      2: call.in("mask"),
      3: call.in("cuSeqlens"),
      4: call.out("advantages"),
      5: call.out("returns"),
    };
    call.queue.dispatch({ files: ["advantage"], entry: "gae" }, bound, scalars, grid(B, 1));
  },
  gaePadded(call) {
    const [B, T] = call.shape("mask");
    const gamma = call.number("gamma");
    const sizes = [B * T, B, T, call.tensor("rewards").stride, call.tensor("values").stride, 1];
    const scalars = [...sizes.map(u32), f32(gamma), f32(gamma * call.number("lambda"))];
    const bound = {
      0: call.in("rewards"),
      1: call.in("values"),
      2: call.in("mask"),
      4: call.out("advantages"),
      5: call.out("returns"),
    };
    call.queue.dispatch({ files: ["advantage"], entry: "gae_padded" }, bound, scalars, grid(B, 1));
  },
};
