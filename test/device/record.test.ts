import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { PlannedDevice } from "../../lib/device/planned.js";
import { device, generate, ops, scope, Tensor, Transformer, type Device } from "../../lib/index.js";
import { gpt2 } from "../models.js";

let on: Device;
beforeAll(async () => {
  on = await device("cpu", { threads: 2 });
});
afterAll(() => on.close());

test("recorded calls run again on what was written since, keep their memory to themselves and give it back", async () => {
  const { current } = on.memory();
  const x = Tensor.from(Float32Array.of(1, 2, 3));
  const { result, run, ...recorded } = on.record(() =>
    scope(() => {
      const square = ops.mul(x, x);
      return { cube: ops.mul(square, x), sum: ops.add(square, x) };
    }),
  );
  expect(Array.from(await result.cube.read())).toEqual([1, 8, 27]);
  for (const n of [2, 5]) {
    const other = Tensor.from(Float32Array.of(7, 7, 7)); // where the square would lie, were its memory free
    x.write(Float32Array.of(n, n + 1, n + 2));
    run();
    expect(Array.from(await result.cube.read())).toEqual([n ** 3, (n + 1) ** 3, (n + 2) ** 3]);
    expect(Array.from(await result.sum.read())).toEqual([n * n + n, (n + 1) * (n + 2), (n + 2) * (n + 3)]);
    expect(Array.from(await other.read())).toEqual([7, 7, 7]);
    other.dispose();
  }
  for (const tensor of [x, result.cube, result.sum]) tensor.dispose();
  recorded[Symbol.dispose]();
  expect(on.memory().current).toBe(current);
});

test("recorded calls that were disposed do not run, and give their memory back once", async () => {
  const x = Tensor.from(new Float32Array(999).fill(3));
  const recorded = on.record(() => scope(() => ops.mul(ops.mul(x, x), x)));
  recorded[Symbol.dispose]();
  const mine = Tensor.from(new Float32Array(999).fill(7)); // where the square lay
  expect(() => recorded.run()).toThrow(expect.objectContaining({ code: "DISPOSED" }));
  recorded[Symbol.dispose]();
  const other = Tensor.from(new Float32Array(999).fill(8));
  expect(new Set(await mine.read())).toEqual(new Set([7]));
  for (const tensor of [x, mine, other, recorded.result]) tensor.dispose();
});

test("a device that is open is the default once those before it are closed", async () => {
  const first = await device("cpu", { threads: 1 });
  await using second = await device("cpu", { threads: 1 });
  await first.close();
  using among = Tensor.from([1]);
  expect(among.device).toBe(on);
  await on.close();
  using now = Tensor.from([1]);
  expect(now.device).toBe(second);
  on = await device("cpu", { threads: 2 });
});

test("numbers that only the first run would see are refused, as is a recording within one, and a recording that failed leaves the device as it was", async () => {
  const x = Tensor.from(Float32Array.of(1, 2, 3));
  expect(() => on.record(() => scope(() => ops.add(ops.mul(x, x), Float32Array.of(1, 1, 1))))).toThrow(
    expect.objectContaining({ code: "RECORD" }),
  );
  expect(Array.from(await ops.add(x, Float32Array.of(1, 1, 1)).read())).toEqual([2, 3, 4]);
  const nested = () => on.record(() => on.record(() => scope(() => ops.mul(x, x))));
  expect(nested).toThrow(expect.objectContaining({ code: "RECORD" }));
  expect(Array.from(await ops.mul(x, x).read())).toEqual([1, 4, 9]);
  x.dispose();
});

test("an error of a recorded call is that of the next read, in every run", async () => {
  const ids = Tensor.from(Int32Array.of(5));
  const table = Tensor.from(new Float32Array(6), [3, 2]);
  const recorded = on.record(() => ops.embedding(ids, table));
  await expect(recorded.result.read()).rejects.toThrow("embedding: ids[0] is 5");
  ids.write(Int32Array.of(1));
  recorded.run();
  expect(Array.from(await recorded.result.read())).toEqual([0, 0]);
  ids.write(Int32Array.of(-1));
  recorded.run();
  await expect(recorded.result.read()).rejects.toThrow("embedding: ids[0] is -1");
  for (const tensor of [ids, table, recorded.result]) tensor.dispose();
  recorded[Symbol.dispose]();
});

test("a planned run counts every step of a generation", async () => {
  await using planned = new PlannedDevice(1, { flops: 1, bandwidth: 1, call: 0 });
  const model = Transformer.random(gpt2, "logits", planned, 0);
  const work = async (maxTokens: number) => {
    planned.workDone();
    await generate(model, [{ prompt: [1, 2, 3], index: 0, sample: 0 }], { maxTokens, seed: 0 });
    return planned.workDone();
  };
  const [one, two, three, four] = [await work(1), await work(2), await work(3), await work(4)];
  const key = 4 * gpt2.layers * gpt2.heads * gpt2.headSize; // FLOPs of one more key
  expect(three.flops - two.flops).toBe(two.flops - one.flops + key);
  expect(four.flops - three.flops).toBe(three.flops - two.flops + key);
  expect(four.calls - three.calls).toBe(three.calls - two.calls);
  model.dispose();
});

test("a planned recording is counted in every run, until it is disposed", async () => {
  await using planned = new PlannedDevice(1, { flops: 1, bandwidth: 1, call: 0 });
  const x = Tensor.from(new Float32Array(8), [2, 4], planned);
  const recorded = planned.record(() => ops.linear(x, x));
  const first = planned.workDone();
  recorded.run();
  expect(planned.workDone()).toEqual(first);
  recorded[Symbol.dispose]();
  expect(() => recorded.run()).toThrow(expect.objectContaining({ code: "DISPOSED" }));
  expect(planned.workDone().calls).toBe(0);
});
