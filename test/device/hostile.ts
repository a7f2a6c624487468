// A program for a process of its own: throws hostile values at the addon's raw face, seeded, and
// ends by itself. argv: addon, seed, calls.
import { createRequire } from "node:module";
import { runInNewContext } from "node:vm";
import { Random } from "../random.js";

const [, , addon, seed, calls] = process.argv;
const require = createRequire(import.meta.url);
type Native = Record<string, unknown> & {
  Device: new (...args: unknown[]) => Record<string, (...args: unknown[]) => unknown>;
  list: string;
};
interface Op {
  arguments: { kind: string; type: string; dims: string; low: number | null; high: number | null }[];
}
const native = require(addon) as Native;
const { ops } = JSON.parse(native.list) as { ops: Op[] };
const random = new Random("hostile", Number(seed));
const BYTES = 4096;

const on = new native.Device(undefined, 2);
const other = new native.Device("scalar", 1);
const addresses = Array.from({ length: 24 }, () => {
  const address = on.allocate(BYTES) as number;
  on.write(address, new Uint8Array(BYTES));
  return address;
});
const frameOf = (numbers: number[]) => Float64Array.from(numbers);

/** A call that is mostly as it should be. */
function frame(): number[] {
  const index = random.below(ops.length);
  const letters: Record<string, number> = {};
  const size = (dim: string) =>
    /^\d/.test(dim) ? Number(dim) : (letters[dim[0]] ??= random.below(5)) + (dim.endsWith("+1") ? 1 : 0);
  const shared = Array.from({ length: random.below(4) }, () => random.below(4));
  const numbers = ops[index].arguments.flatMap(({ kind, type, dims, low, high }) => {
    if (kind === "real" || kind === "integer")
      return [
        random.pick(
          [0, 1, 0.5, 2, -1, low ?? -Infinity, high ?? Infinity].filter(
            (x) => kind === "real" || Number.isSafeInteger(x),
          ),
        ),
      ];
    if (kind === "choice") return [random.below(3)];
    if (kind.startsWith("opt") && random.below(2) === 0) return [0, -1, 0, 0, 0, 0, 0, 0, 0];
    const shape = dims === "..." ? shared : dims.split(",").map(size);
    const stride = shape.slice(1).reduce((a, b) => a * b, 1);
    const dtype = type === "I32" ? 2 : type === "F64" ? 1 : 0;
    return [
      random.pick(addresses),
      dtype,
      0,
      shape.length,
      ...Array.from({ length: 4 }, (_, d) => shape[d] ?? 0),
      stride,
    ];
  });
  return [index, ...numbers];
}

const STRANGE = [
  NaN,
  Infinity,
  -Infinity,
  -1,
  -0,
  0.5,
  1e300,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  2 ** 63,
  -(2 ** 63),
  4,
  5,
  1e6,
];
function spoilt(numbers: number[]): number[] {
  const out = [...numbers];
  for (let n = random.below(3); n > 0; n--) {
    const at = random.below(out.length);
    out[at] = random.pick([...STRANGE, ...addresses, addresses[0] + random.below(2 * BYTES), out[at] + 1]);
  }
  if (random.below(10) === 0) out.length = random.below(out.length);
  if (random.below(10) === 0) out.push(random.pick(STRANGE));
  return out;
}

const detached = new Float64Array(8);
structuredClone(detached.buffer, { transfer: [detached.buffer] });
const resizable = new (ArrayBuffer as unknown as new (
  bytes: number,
  options: object,
) => ArrayBuffer & { resize(bytes: number): void })(64, {
  maxByteLength: 256,
});
const [tracking, beyond] = [new Float64Array(resizable), new Float64Array(resizable, 32, 4)];
resizable.resize(16);
class Liar extends Float64Array {
  override get length(): number {
    return 1e9;
  }
}
const recorded = [on, other].map((device) => device.record(frameOf([])));
const bad = {
  valueOf: () => {
    throw new Error("mine");
  },
  toString: () => {
    throw new Error("mine");
  },
};
const fixed: unknown[] = [
  undefined,
  null,
  true,
  "",
  "cuda",
  "scalar",
  "x".repeat(1e5),
  "\ud800",
  Symbol("s"),
  10n,
  {},
  [],
  [1, 2],
  () => 1,
  class {},
  bad,
];
fixed.push(
  new Proxy({}, {}),
  new Proxy(new Uint8Array(8), {}),
  new Proxy(on, {}),
  Object.create(on),
  Object.create(native.Device.prototype),
  on,
  other,
  native.Device,
);
fixed.push(
  detached,
  tracking,
  beyond,
  new Liar(4),
  new Uint8Array(16),
  new Uint8Array(new SharedArrayBuffer(64)),
  new Float64Array(new SharedArrayBuffer(64)),
);
fixed.push(
  new DataView(new ArrayBuffer(8)),
  new BigInt64Array(2),
  Buffer.from("abc"),
  new ArrayBuffer(8),
  runInNewContext("new Float64Array(4)"),
);
fixed.push(
  Object.setPrototypeOf(new Uint8Array(4), null),
  Object.freeze([]),
  new WeakRef({}),
  Promise.resolve(),
  new Date(NaN),
  /x/,
  globalThis,
  ...recorded,
);
const numbers = () => random.pick([...STRANGE, 0, 1, 3, 64, BYTES, ...addresses, addresses[0] + 8]);

function value(): unknown {
  const kind = random.below(4);
  if (kind === 0) return numbers();
  if (kind === 1) return frameOf(spoilt(frame()));
  return random.pick(fixed);
}

const methods = [
  "allocate",
  "own",
  "release",
  "write",
  "trust",
  "read",
  "wait",
  "call",
  "record",
  "run",
  "memory",
  "trim",
];
const functions = ["exp", "log", "cos", "pow", "lock"];
const counts: Record<string, number> = {};

function call(): unknown {
  const args = Array.from({ length: random.below(4) }, value);
  const kind = random.below(10);
  if (kind < 4) {
    const numbers = spoilt(frame());
    if (random.below(4) > 0) return on.call(frameOf(numbers), random.below(10) ? numbers.length : random.pick(STRANGE));
    const calls = on.record(frameOf([...numbers, ...spoilt(frame())]));
    fixed[fixed.length - 1] = calls;
    return random.pick([on, other]).run(calls);
  }
  if (kind < 8) {
    const name = random.pick(methods);
    const address = random.pick(addresses);
    if (name === "release" && random.below(8) > 0) return on.release(address + 1);
    return on[name](...(random.below(2) ? [address, ...args] : args));
  }
  if (kind === 8) return Reflect.apply(native.Device.prototype[random.pick(methods)] as () => unknown, value(), args);
  const name = random.pick([...functions, "Device", "new", "construct"]);
  if (name === "Device") return Reflect.apply(native.Device as unknown as () => unknown, value(), args);
  if (name === "construct")
    return Reflect.construct(
      native.Device,
      ["scalar", 1],
      random.pick<unknown>([Array, Promise, class extends native.Device {}]) as new () => unknown,
    );
  if (name === "new") {
    const device = new native.Device(
      random.pick([undefined, "scalar", "bogus", value()]),
      random.pick([1, 2, -1, NaN, value()]),
      value(),
    );
    const address = device.allocate(64);
    const reads = [device.read(address, 64), device.wait()] as Promise<unknown>[];
    for (const read of reads) void read.catch(() => undefined);
    device.close();
    return device[random.pick(methods)](...args);
  }
  return Reflect.apply(native[name] as () => unknown, value(), args);
}

for (let i = 0; i < Number(calls); i++) {
  try {
    const result = call();
    if (result instanceof Promise || (result as Promise<unknown> | undefined)?.constructor?.name === "Promise")
      void (result as Promise<unknown>).then(
        () => undefined,
        () => undefined,
      );
    counts.done = (counts.done ?? 0) + 1;
  } catch (error) {
    const { code } = error as { code?: string };
    counts[code ?? "plain"] = (counts[code ?? "plain"] ?? 0) + 1;
    if (
      code === undefined &&
      !/mine|Illegal invocation|Cannot convert|not a constructor|not a function|called on|incompatible|revoked/i.test(
        String((error as Error).message),
      )
    )
      throw error;
  }
  if (i % 200 === 0) await (on.wait() as Promise<void>).catch(() => undefined); // whatever failed
}
// what was given back is lost; what is still there is good
const last = on.allocate(64) as number;
on.write(last, new Uint8Array(64).fill(7));
console.log(JSON.stringify({ last: new Uint8Array((await on.read(last, 64)) as ArrayBuffer)[63], counts }));
on.close();
other.close();
