import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { native } from "../lib/device/native.js";
import { device, ops, Tensor, type Device } from "../lib/index.js";
import { run } from "../lib/tensor/op.js";
import { Random } from "./random.js";
import { normal } from "./truth.js";

// 16-bit weights: what a cast does to a number, and that a packed weight in bf16 is the widened one (law of arithmetic, 9).

const devices: Device[] = [];
beforeAll(async () => {
  for (const isa of native.isaAvailable.split(" ")) for (const threads of [1, 3]) devices.push(await device("cpu", { isa, threads }));
});
afterAll(() => Promise.all(devices.map((on) => on.close())));

const bytes = async (tensor: Tensor) => Buffer.from((await tensor.read()).buffer).toString("hex");

test("a cast to bf16 takes the nearest, ties to the even one; infinities, zeros and denormals stay, and so does a NaN", async () => {
  const uppers = Array.from({ length: 2 ** 16 }, (_, i) => i);
  const words = Uint32Array.from(uppers.flatMap((upper) => [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map((lower) => (upper << 16) | lower)));
  const given = new Float32Array(words.buffer);
  const exact = new Float32Array(1);
  const value = (half: number) => ((new Uint32Array(exact.buffer)[0] = half << 16), exact[0]);
  const beyond = 2 ** 128; // what the largest of them would be followed by
  for (const on of devices) {
    const halves = (await ops.cast(Tensor.from(given, undefined, on), "bf16").read()) as Uint16Array;
    given.forEach((x, i) => {
      const [got, down] = [halves[i], words[i] >>> 16];
      if (Number.isNaN(x)) return Number.isNaN(value(got)) || expect([x, got]).toBe("a NaN");
      if (!Number.isFinite(x)) return got === down || expect([x, got]).toBe(down);
      const next = Number.isFinite(value(down + 1)) ? value(down + 1) : Math.sign(x) * beyond;
      const [below, above] = [Math.abs(x - value(down)), Math.abs(next - x)];
      const wanted = below < above || (below === above && down % 2 === 0) ? down : down + 1;
      return got === wanted || expect([x, got]).toBe(wanted);
    });
    const back = await ops.cast(Tensor.from(Uint16Array.from(uppers), undefined, on), "f32").read();
    expect(Buffer.from(back.buffer).equals(Buffer.from(Uint32Array.from(uppers, (upper) => upper << 16).buffer))).toBe(true);
  }
});

test("a product with panels has the bits of the row-major one, in f32 and bf16, on every instruction set, number of threads and rows", async () => {
  const random = new Random("panels");
  for (const [O, I] of [
    [1, 1],
    [33, 70],
    [200, 401],
    [1031, 67],
  ]) {
    const weight = normal(random, [O, I]).data as Float32Array;
    const bias = normal(random, [O]).data as Float32Array;
    const x = normal(random, [37, I]).data as Float32Array;
    let wanted: string[] | undefined;
    for (const on of devices) {
      const narrow = ops.cast(Tensor.from(weight, [O, I], on), "bf16");
      const wide = ops.cast(narrow, "f32");
      const all = Tensor.from(x, [37, I], on);
      for (const form of [wide, narrow, ops.pack(wide), ops.pack(narrow), ops.pack(Tensor.from(weight, [O, I], on), "bf16"), ops.pack(narrow, "f32")]) {
        const whole = await bytes(ops.linear(all, form, bias));
        wanted ??= [whole];
        expect(whole).toBe(wanted[0]);
        for (const rows of [1, 2, 7, 16, 17]) expect(await bytes(ops.linear(all.rows(0, rows), form, bias))).toBe(whole.slice(0, rows * O * 8));
      }
      const backward = [0, 1].map((bf16) => {
        const packed = Tensor.empty([Math.ceil(I / 32) * 32 * O], bf16 ? "bf16" : "f32", on);
        run("pack", { weight: narrow, transposed: 1, packed });
        return packed.withLayout("panels-transposed", [O, I]);
      });
      const dy = ops.linear(all, wide);
      const grads = await Promise.all([wide, narrow, ...backward].map((weight) => bytes(run("linearGradInput", { dy, weight }).dx)));
      expect(new Set(grads).size).toBe(1);
    }
  }
});

test("what takes bf16 by itself says so, and what does not refuses it by name", async () => {
  const [on] = devices;
  const half = Tensor.from(new Uint16Array(6), [2, 3], on);
  const x = Tensor.from(new Float32Array(6), [2, 3], on);
  expect(() => ops.linear(half, x)).toThrow(expect.objectContaining({ code: "DTYPE", message: "linear: x is bf16, wanted f32" }));
  expect(() => ops.linear(x, Tensor.from(new Int32Array(6), [2, 3], on))).toThrow("linear: weight is int32, wanted f32 or bf16");
  expect(() => ops.add(half, half)).toThrow("add: a is bf16, wanted f32");
  expect(() => ops.cast(ops.pack(half), "f32")).toThrow(expect.objectContaining({ code: "LAYOUT" }));
});
