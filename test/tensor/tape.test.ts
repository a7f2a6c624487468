import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { device, ops, Parameter, Tape, Tensor, type Device } from "../../lib/index.js";
import { forget, recomputed } from "../../lib/tensor/tape.js";
import { Random, seed } from "../random.js";

let on: Device;
beforeAll(async () => {
  console.log(`seed ${seed}`);
  on = await device("cpu", { threads: 1 });
});
afterAll(() => on.close());

const tensor = (values: readonly number[], shape: readonly number[] = [values.length]) =>
  Tensor.from(Float32Array.from(values), shape, on);
const gradientOf = async (weight: Parameter) => Array.from(await weight.gradient()!.read());

/** The gradient of the sum of `f` for a weight of these values. */
async function gradient(values: readonly number[], f: (weight: Parameter) => Tensor): Promise<number[]> {
  const weight = new Parameter("weight", tensor(values));
  const tape = new Tape();
  tape.backward(tape.record(() => ops.sum(f(weight))));
  return gradientOf(weight);
}

describe("clamp", () => {
  test("passes the gradient where no bound binds, the bounds included, and stops it beyond", async () => {
    const values = [-2, -1, -0.5, 0, 1, 1 + 2 ** -23, 3, NaN];
    expect(await gradient(values, (w) => ops.clamp(w, -1, 1))).toEqual([0, 1, 1, 1, 1, 0, 0, 0]);
    expect(await gradient(values, (w) => ops.scale(ops.clamp(w, -1, 1), 3))).toEqual([0, 3, 3, 3, 3, 0, 0, 0]);
  });

  test("has the same gradient when it is computed again, and when its input is forgotten", async () => {
    const random = new Random("clamp");
    const values = Array.from({ length: 1001 }, () => 2 * random.normal());
    const wanted = await gradient(values, (w) => ops.clamp(ops.scale(w, 0.7), -0.5, 1.5));
    expect(new Set(wanted)).toEqual(new Set([0, Math.fround(0.7)]));
    const again = await gradient(values, (w) => recomputed(ops.scale(w, 0.7), (x) => ops.clamp(x, -0.5, 1.5)));
    expect(again).toEqual(wanted);
    const forgotten = await gradient(values, (w) => {
      const x = ops.scale(w, 0.7);
      const y = ops.clamp(x, -0.5, 1.5);
      forget(x);
      expect(x.disposed).toBe(true);
      return y;
    });
    expect(forgotten).toEqual(wanted);
  });
});

describe("cast", () => {
  test("passes the gradient as it is, in f32, there and back", async () => {
    const values = [1, -2.7, 3.14159];
    const there = (w: Parameter) => ops.cast(ops.cast(ops.scale(w, 1), "bf16"), "f32");
    expect(await gradient(values, (w) => ops.scale(there(w), 1 + 2 ** -20))).toEqual(Array(3).fill(1 + 2 ** -20));
  });

  test("of a weight that a layer reads in bf16 gives the f32 weight its gradient", async () => {
    const random = new Random("cast");
    const draw = (length: number) => Array.from({ length }, () => random.normal());
    const x = tensor(draw(15), [5, 3]);
    const value = tensor(draw(6), [2, 3]);
    const through = async (weight: (w: Tensor) => Tensor) => {
      const parameter = new Parameter("weight", value.reshape([2, 3]));
      const tape = new Tape();
      tape.backward(tape.record(() => ops.sum(ops.linear(x, weight(ops.scale(parameter, 1))))));
      return gradientOf(parameter);
    };
    const wanted = await through((w) => w);
    expect(wanted.some((one) => one !== 0)).toBe(true);
    expect(await through((w) => ops.cast(w, "bf16"))).toEqual(wanted);
  });
});

test.each([
  ["gae", (x: Tensor) => ops.gae(x, x, [0, 3]).advantages],
  ["gaePadded", (x: Tensor) => ops.gaePadded(x.reshape([1, 3]), x.reshape([1, 3]), onesOf([1, 3])).returns],
  ["whiten", (x: Tensor) => ops.whiten(x, [0, 3])],
  ["tokenRewards", (x: Tensor) => ops.tokenRewards(x, x, [1], [0, 3], { klCoef: 0.1 }).rewards],
] as const)("no gradient flows through %s, whose results are targets", (_, f) => {
  const weight = new Parameter("weight", tensor([1, 2, 3]));
  const tape = new Tape();
  const loss = tape.record(() => ops.sum(f(ops.scale(weight, 1))));
  expect(() => tape.backward(loss)).toThrow(expect.objectContaining({ code: "TAPE" }));
});
const onesOf = (shape: readonly number[]) => Tensor.from(new Int32Array(3).fill(1), shape, on);

// 1.5 added to 2^25 is lost, 3 is not: only one order and one accumulator per use give 2^25.
test("the gradients of a weight's uses are added in their order, by term, then by use, however many there are", async () => {
  const weight = new Parameter("weight", tensor([1]));
  const factors = [0, 1].map((term) => Array.from({ length: 1203 }, (_, use) => (term + use === 0 ? 2 ** 25 : 1.5)));
  for (const term of [1, 0]) {
    const tape = new Tape(term);
    const scaled = () => factors[term].map((factor) => ops.scale(weight, factor));
    tape.backward(tape.record(() => scaled().reduce((a, b) => ops.add(a, b))));
  }
  expect(await gradientOf(weight)).toEqual([2 ** 25]);
});
