// An error belongs to what its op wrote and to what was computed from that, on a CPU to the last number.
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { device, ops, Tensor, type Device } from "../../lib/index.js";
import { run } from "../../lib/tensor/op.js";
import { failure } from "../hold.js";

let on: Device;
beforeAll(async () => {
  on = await device("cpu", { threads: 2 });
});
afterAll(() => on.close().catch(() => undefined)); // some tests leave an error untold

const table = () => Tensor.from(Float32Array.of(1, 2, 3, 4, 5, 6), [3, 2], on);
const ids = (...values: number[]) => Tensor.from(Int32Array.from(values), undefined, on);
const embedded = (...values: number[]) => ops.embedding(ids(...values), table());
const blamed = async (tensor: Tensor, value: number) => {
  const error = await failure(() => tensor.read());
  expect([error.name, error.code, error.message]).toEqual([
    "RangeError",
    "ID",
    `embedding: ids[0] is ${value}, wanted 0 to 2`,
  ]);
};

test("a read of what an op spoilt rejects every time, one of anything else does not", async () => {
  const [before, bad, after] = [embedded(1), embedded(7), embedded(2)];
  for (let i = 0; i < 3; i++) {
    expect(Array.from(await after.read())).toEqual([5, 6]);
    await blamed(bad, 7);
    expect(Array.from(await before.read())).toEqual([3, 4]);
  }
});

test("each of two errors is that of its own results", async () => {
  const [first, second] = [embedded(7), embedded(8)];
  await blamed(second, 8);
  await blamed(first, 7);
});

test("what is computed from spoilt numbers is spoilt, however far, by the error that came first", async () => {
  const [bad, other, good] = [embedded(7), embedded(8), embedded(1)];
  const chain = ops.sum(ops.scale(ops.add(good, bad), 2));
  const both = ops.add(bad, other);
  const y = Tensor.from(Float32Array.of(1, 1), [1, 2], on);
  run("accumulate", { x: other, y });
  run("accumulate", { x: good, y });
  await blamed(chain, 7);
  await blamed(both, 7);
  await blamed(y, 8);
  expect(Array.from(await ops.add(good, good).read())).toEqual([6, 8]);
});

test("a view of spoilt memory is spoilt too", async () => {
  const bad = embedded(7, 1);
  await blamed(bad.rows(1, 2), 7);
  await blamed(bad.reshape([4]), 7);
});

test("numbers that are fully written anew are good again; a part is not enough", async () => {
  const bad = ops.embedding(ids(7, 1), table());
  bad.rows(0, 1).write(Float32Array.of(1, 1));
  await blamed(bad, 7);
  bad.write(Float32Array.of(1, 2, 3, 4));
  expect(Array.from(await bad.read())).toEqual([1, 2, 3, 4]);
  const again = embedded(7);
  run("fill", { value: 3, y: again });
  expect(Array.from(await again.read())).toEqual([3, 3]);
  const halves = run("cast", { x: embedded(7).rows(0, 1).reshape([2]).rows(0, 1), y: Tensor.empty([1], "bf16", on) }).y; // 2 bytes in 4
  await blamed(halves, 7);
  halves.write(Uint16Array.of(0x3f80));
  expect(Array.from(await halves.read())).toEqual([0x3f80]);
});

test("memory that spoilt numbers lay in is good for the next tensor", async () => {
  for (let i = 0; i < 20; i++) {
    const bad = embedded(7);
    const { address } = bad;
    bad.dispose();
    const next = Tensor.from(Float32Array.of(1, 2), [1, 2], on);
    if (i > 2) expect(next.address).toBe(address);
    expect(Array.from(await next.read())).toEqual([1, 2]);
    next.dispose();
    const empty = Tensor.empty([1, 2], "f32", on); // whatever is there
    await empty.read();
    empty.dispose();
  }
});

test("recorded calls spoil what they write anew in every run, and mend it", async () => {
  const [which, rows] = [ids(7), table()];
  const recorded = on.record(() => ops.scale(ops.embedding(which, rows), 2));
  await blamed(recorded.result, 7);
  which.write(Int32Array.of(1));
  recorded.run();
  expect(Array.from(await recorded.result.read())).toEqual([6, 8]);
  which.write(Int32Array.of(8));
  recorded.run();
  await blamed(recorded.result, 8);
});

test("numbers that are trusted are read as they are", async () => {
  const bad = embedded(7);
  await blamed(bad, 7);
  on.trust(bad.address);
  expect(Array.from(await bad.read())).toEqual([NaN, NaN]);
});

test("closing tells the first error that no read told, and none that one did", async () => {
  const closed = async (work: (bad: (value: number) => Tensor) => Promise<unknown>) => {
    const own = await device("cpu", { threads: 1 });
    const rows = Tensor.from(Float32Array.of(1, 2, 3, 4), [2, 2], own);
    await work((value) => ops.embedding(Tensor.from(Int32Array.of(value), [1], own), rows));
    return own.close().then(
      () => "closed",
      ({ message }: Error) => message,
    );
  };
  const ignored = (tensor: Tensor) => tensor.read().catch(() => undefined);
  expect(await closed(async (bad) => ignored(bad(7)))).toBe("closed");
  expect(await closed(async (bad) => bad(7))).toContain("ids[0] is 7");
  expect(await closed(async (bad) => [bad(7), await ignored(bad(8))])).toContain("ids[0] is 7");
  expect(await closed(async (bad) => [await ignored(bad(7)), bad(8)])).toContain("ids[0] is 8");
  expect(await closed(async (bad) => [bad(7), bad(8)].map((tensor) => tensor.dispose()))).toContain("ids[0] is 7");
  expect(await closed(async (bad) => ignored(ops.scale(bad(7), 2)))).toBe("closed");
});
