import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { root } from "../../lib/device/native.js";
import { specs } from "../../lib/device/ops.js";
import { device, ops, Parameter, Random as Numbers, scope, Tape, Tensor, type Device } from "../../lib/index.js";
import { addon } from "../child.js";
import { failure } from "../hold.js";
import { seed } from "../random.js";

let on: Device;
beforeAll(async () => {
  on = await device("cpu", { threads: 1 });
});
afterAll(() => on.close().catch(() => undefined)); // nobody reads what strange calls left
const six = Float32Array.of(1, 2, 3, 4, 5, 6);

test("no value that the addon is called with ends the process", () => {
  const calls = 10 * Number(process.env.RLHF_FUZZ_RUNS ?? 500);
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    [join(root, "dist/test/device/hostile.js"), addon, `${seed}`, `${calls}`],
    {
      encoding: "utf8",
      timeout: 120_000,
    },
  );
  expect({ seed, status, signal, stderr }).toEqual({ seed, status: 0, signal: null, stderr: "" });
  const { last, counts } = JSON.parse(stdout) as { last: number; counts: Record<string, number> };
  expect(last).toBe(7);
  for (const code of ["done", "ARGUMENT"]) expect([code, counts[code] > calls / 20]).toEqual([code, true]);
});

describe("a tensor", () => {
  test("has a shape of its own, which nobody changes", async () => {
    const s = [2, 3];
    const a = Tensor.from(six, s, on);
    const b = a.reshape(s);
    const c = Tensor.empty(s, "f32", on);
    s[0] = 100;
    s.reverse();
    for (const tensor of [a, b, c]) expect(tensor.shape).toEqual([2, 3]);
    for (const tensor of [a, b, c, a.rows(0, 1)]) expect(Object.isFrozen(tensor.shape)).toBe(true);
    expect(await a.read()).toEqual(six);
    expect(Array.from(await ops.scale(b, 2).read())).toEqual([2, 4, 6, 8, 10, 12]);
  });

  test("whose properties were changed reaches no memory beyond its own", async () => {
    const a = Tensor.from(six, [2, 3], on);
    for (const shape of [[100], [1e8], [2 ** 50], [-1], [NaN]]) {
      const forged = Object.create(a, { shape: { value: shape } }) as Tensor;
      expect((await failure(() => forged.read())).code).toMatch(/^(ARGUMENT|SHAPE)$/);
      expect((await failure(() => ops.scale(forged, 2).read())).code).toMatch(/^(ARGUMENT|SHAPE|MEMORY)$/);
    }
    for (const offset of [4, 1e9, -64, NaN]) {
      const forged = Object.create(a, { address: { value: a.address + offset } }) as Tensor;
      expect((await failure(() => forged.read())).code).toBe("ARGUMENT");
      expect((await failure(() => ops.scale(forged, 2))).code).toBe("ARGUMENT");
    }
    expect(await a.read()).toEqual(six);
  });

  test("takes an array for what it is, whatever its properties say", async () => {
    class Liar extends Float32Array {
      override get length(): number {
        return 3;
      }
    }
    const liar = new Liar(six);
    expect(await Tensor.from(liar, [6], on).read()).toEqual(six);
    expect((await failure(() => Tensor.from(liar, [3], on))).code).toBe("SHAPE");
    const tagged = Object.defineProperty(new Uint8Array(24), Symbol.toStringTag, {
      value: "Float32Array",
    }) as unknown as Float32Array;
    const made = {
      [Symbol.toStringTag]: "Float32Array",
      length: 6,
      byteLength: 24,
      buffer: six.buffer,
      byteOffset: 0,
    } as unknown as Float32Array;
    const hidden = new Proxy(six, {});
    for (const data of [tagged, made, hidden]) {
      expect((await failure(() => Tensor.from(data, [6], on))).code).toBe("DTYPE");
      expect((await failure(() => Tensor.empty([6], "f32", on).write(data))).code).toBe("DTYPE");
      expect((await failure(() => ops.scale(data, 2))).code).toMatch(/^(DTYPE|ARGUMENT)$/);
    }
    const wide = Object.defineProperty(new Float32Array(six), "byteLength", { value: 1e9 });
    expect(await Tensor.from(wide, [6], on).read()).toEqual(six);
    const ids = Object.defineProperty(Int32Array.of(0, 1), "length", { value: 0 }); // none of which is looked at
    expect(
      (
        await failure(() =>
          ops.embedding(
            Object.defineProperty(Int32Array.of(0, 9), "length", { value: 1 }),
            Tensor.from(six, [3, 2], on),
          ),
        )
      ).code,
    ).toBe("ID");
    expect(ops.embedding(ids, Tensor.from(six, [3, 2], on)).shape).toEqual([2, 2]);
    const buffer = new ArrayBuffer(24);
    const gone = new Float32Array(buffer);
    structuredClone(buffer, { transfer: [buffer] });
    expect((await failure(() => Tensor.from(gone, [6], on))).code).toBe("SHAPE");
    let reads = 0;
    const changing = Object.defineProperty([1, 2], 0, { get: () => (reads++ === 0 ? 1 : "x") });
    expect(Array.from(await Tensor.from(changing, [2], on).read())).toEqual([1, 2]);
  });

  test("checks ids where no other thread writes them", async () => {
    const shared = new SharedArrayBuffer(4 * 1024);
    const ids = new Int32Array(shared);
    const code =
      "const ids = new Int32Array(require('node:worker_threads').workerData); for (;;) { ids[512] = 1e9; ids[512] = 0; }";
    const worker = new Worker(code, { eval: true, workerData: shared });
    await new Promise((resolve) => worker.once("online", resolve));
    const table = Tensor.from(six, [3, 2], on);
    try {
      for (let i = 0; i < 300; i++) {
        const error = await failure(async () => {
          using rows = ops.embedding(ids, table); // refused by the check, or good
          await rows.read().catch(() => expect("told by the read").toBe("refused at once"));
          throw Object.assign(new Error(), { code: "GOOD" });
        });
        expect(error.code).toMatch(/^(GOOD|ID)$/);
      }
    } finally {
      await worker.terminate();
    }
  });
});

test("a device refuses addresses that it did not give, and more bytes than it gave", async () => {
  const address = on.allocate(100);
  const placed = (more: object) =>
    ({ address, dtype: "f32", layout: "rows", shape: [25], stride: 1, ...more }) as const;
  const fill = specs.get("fill")!;
  on.call(fill, [1, placed({})]);
  for (const more of [
    { shape: [26] },
    { address: address + 4 },
    { address: address - 4 },
    { address: 0 },
    { address: 2 ** 52 },
    { address: NaN },
    { shape: [2 ** 52] },
  ])
    expect([more, (await failure(() => on.call(fill, [1, placed(more)]))).code]).toEqual([more, "ARGUMENT"]);
  for (const more of [
    { shape: [1, 1, 1, 1, 1] },
    { dtype: "i8" },
    { layout: "columns" },
    { shape: [0.5] },
    { shape: [-25] },
    { stride: -1 },
    { shape: undefined },
  ])
    expect([more, (await failure(() => on.call(fill, [1, placed(more) as never]))).code]).toEqual([more, "ARGUMENT"]);
  for (const [at, bytes] of [
    [address, 101],
    [address + 100, 1],
    [address - 1, 2],
    [12345, 4],
    [address, -1],
    [address, NaN],
    [address, 1e300],
  ])
    expect([at, bytes, (await failure(() => on.read(at, bytes))).code]).toEqual([at, bytes, "ARGUMENT"]);
  expect((await failure(() => on.write(address, new Uint8Array(101)))).code).toBe("ARGUMENT");
  expect(new Set(new Float32Array(await on.read(address, 100)))).toEqual(new Set([1]));
  on.release(address);
  expect((await failure(() => on.read(address, 4))).code).toBe("ARGUMENT");
});

test("recorded calls whose memory was freed since do not run", async () => {
  const x = Tensor.from(six, [6], on);
  const recorded = on.record(() => ops.scale(x, 2));
  recorded.run();
  x.dispose();
  const mine = Tensor.from(six, [6], on); // where x lay
  expect((await failure(() => recorded.run())).code).toBe("DISPOSED");
  expect(await mine.read()).toEqual(six);
});

/** What no public call takes. */
const strange = (): unknown[] => [
  undefined,
  null,
  NaN,
  -1,
  1e300,
  2 ** 53,
  "bogus",
  Symbol("s"),
  10n,
  {},
  [],
  [Symbol("s")],
  [NaN],
  [10n],
  [{}],
  [[1]],
  [1e300, 1e300],
  () => 1,
  new Proxy([], {}),
  new Date(NaN),
  new DataView(new ArrayBuffer(8)),
  new BigInt64Array([2n ** 60n]),
  new Float64Array(1),
  six,
  Object.create(null),
  true,
  { length: 1e15 },
  new Array(2 ** 32 - 1),
];

test("every public call of tensors and devices refuses what it does not take by an error with a code", async () => {
  const x = () => Tensor.from(six, [2, 3], on);
  const v = (values: unknown[]) => values as never[];
  const calls: Record<string, (...values: never[]) => unknown> = {
    empty: (a: never, b: never) => Tensor.empty(a, b, on),
    "empty shape": (a: never) => Tensor.empty(a, "f32", on),
    "empty dtype": (a: never) => Tensor.empty([3], a, on),
    "empty on": (a: never) => Tensor.empty([3], "f32", a ?? 1),
    "from data": (a: never) => Tensor.from(a, undefined, on),
    "from shape": (a: never) => Tensor.from(six, a, on),
    "from dtype": (a: never) => Tensor.from(six, [6], on, a),
    reshape: (a: never) => x().reshape(a),
    rows: (a: never, b: never) => x().rows(a, b),
    write: (a: never) => x().write(a),
    scope: (a: never) => scope(a),
    device: (a: never) => device(a ?? "bogus"),
    options: (a: never) => device("cpu", { threads: a ?? -1 }),
    isa: (a: never) => device("cpu", { threads: 1, isa: a ?? "bogus" }),
    allocate: (a: never) => on.allocate(a),
    release: (a: never) => on.release(a),
    "device write": (a: never, b: never) => on.write(a, b),
    read: (a: never, b: never) => on.read(a, b),
    trust: (a: never) => on.trust(a),
    call: (a: never) => on.call(specs.get("add")!, a),
    "call of": (a: never) => on.call(a, [1]),
    placed: (a: never, b: never) => on.call(specs.get("add")!, [a, b, a]),
    record: (a: never) => on.record(a),
    random: (a: never, b: never) => new Numbers(a, b),
    below: (a: never) => new Numbers(1, 2).below(a),
    backward: (a: never) => new Tape().backward(a),
    tape: (a: never) => new Tape().record(a),
    parameter: (a: never) => ops.scale(new Parameter("p", a), 2),
  };
  for (const [name, op] of Object.entries(ops)) {
    const f = op as (...args: never[]) => unknown;
    if (/^(recomputed|forget|moments)$/.test(name)) continue;
    calls[`ops.${name}`] = (a: never, b: never) => f(...v([a, b, a, b, a]));
    calls[`ops.${name}, first`] = (a: never) => f(...v([a, x(), x(), x(), {}]));
    calls[`ops.${name}, second`] = (a: never) => f(...v([x(), a, Int32Array.of(0, 1), {}]));
    calls[`ops.${name}, last`] = (a: never) => f(...v([x(), x(), Int32Array.of(0, 1), a]));
  }
  const plain: string[] = [];
  for (const [name, call] of Object.entries(calls))
    for (const [i, value] of strange().entries()) {
      try {
        const result = (await call(...v([value, strange().at(-1 - i)]))) as { close?(): Promise<void> } | undefined;
        await result?.close?.();
      } catch (error) {
        const { code, message, name: kind } = error as { code?: unknown; message: string; name: string };
        if (typeof code !== "string" || !/^(TypeError|RangeError)$/.test(kind))
          plain.push(`${name} with value ${i}: ${kind}: ${message}`);
      }
    }
  expect(plain).toEqual([]);
});
