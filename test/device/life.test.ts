import { expect, test } from "@jest/globals";
import { openBest } from "../../lib/device/open.js";
import { device, ops, Tensor, type Device, type DeviceKind } from "../../lib/index.js";
import { child, type ChildOptions } from "../child.js";
import { failure } from "../hold.js";

/** What a program prints that has the package as `rlhf`. */
function output(program: string, options?: ChildOptions): string {
  const { out, error, end } = child(program, options);
  return end === 0 ? out : `${end}: ${error}`;
}
const caught = (work: string) =>
  `try { ${work}; console.log("done"); } catch ({ name, code, message }) { console.log(name, code, message); }`;

test("a device that closes runs what is queued, and refuses all that comes later", async () => {
  const on = await device("cpu", { threads: 1 });
  const x = Tensor.from(new Float32Array(1e6).fill(1), [1000, 1000], on);
  const product = ops.linear(x, x).read();
  const recorded = on.record(() => ops.add(x, x));
  const closed = on.close();
  const late = {
    read: () => x.read(),
    op: () => ops.add(x, x),
    from: () => Tensor.from(new Float32Array(1), [1], on),
    write: () => x.write(new Float32Array(1e6)),
    run: () => recorded.run(),
  };
  for (const [name, work] of Object.entries(late)) {
    const error = await failure(work);
    expect([name, error.constructor.name, error.code]).toEqual([name, "TypeError", "DEVICE"]);
  }
  expect((await product)[0]).toBe(1000);
  expect(on.close()).toBe(closed);
  await closed;
  await on[Symbol.asyncDispose]();
  x.dispose();
  expect((await failure(() => x.read())).code).toBe("DISPOSED");
});

/**
 * Opens the best device where each kind but `whole` lacks an op, and some are not there.
 * @returns what was opened, and tried
 */
async function best(whole: readonly DeviceKind[], absent: readonly DeviceKind[] = []) {
  const tried: DeviceKind[] = [];
  const open = async (kind: DeviceKind) => {
    tried.push(kind);
    if (absent.includes(kind)) throw Object.assign(new RangeError(`no ${kind}`), { code: "DEVICE" });
    return { kind } as Device;
  };
  const abilities = async (kind: DeviceKind) => (op: { name: string }) =>
    op.name === "sample" && !whole.includes(kind) ? [] : (["f32"] as const);
  return openBest(open, abilities).then(
    ({ kind }) => ({ kind, tried }),
    ({ message }: Error) => ({ kind: "none", tried, message }),
  );
}

test("without a kind, the best device that has every op is opened, and no other is touched", async () => {
  expect(await best(["cpu"])).toEqual({ kind: "cpu", tried: ["cpu"] });
  expect(await best(["webgpu", "cpu"])).toEqual({ kind: "webgpu", tried: ["webgpu"] });
  expect(await best(["cuda", "webgpu", "cpu"])).toEqual({ kind: "cuda", tried: ["cuda"] });
  expect(await best(["cuda", "webgpu", "cpu"], ["cuda"])).toEqual({ kind: "webgpu", tried: ["cuda", "webgpu"] });
  expect(await best(["cuda"], ["cuda"])).toEqual({ kind: "none", tried: ["cuda"], message: "no cuda" });
  expect(await best([])).toEqual({ kind: "none", tried: [], message: "no device of this build has every op" });
});

test("without a kind, the lists say which device is opened: the CPU's alone has every op today", async () => {
  const tried: DeviceKind[] = [];
  await using on = await openBest(async (kind) => (tried.push(kind), device(kind, { threads: 1 })));
  expect([on.kind, tried]).toEqual(["cpu", ["cpu"]]);
  await using own = await device(undefined, { threads: 1 });
  expect(own.kind).toBe("cpu");
});

test("closing a device tells the error of an op that no read has told", async () => {
  const on = await device("cpu", { threads: 1 });
  const table = Tensor.from(new Float32Array(6), [3, 2], on);
  ops.embedding(Tensor.from(Int32Array.of(9), [1], on), table);
  const error = await failure(() => on.close());
  expect([error.code, error.message.startsWith("embedding: ids[0] is 9")]).toEqual(["ID", true]);
  expect(await failure(() => on.close())).toBe(error);
});

// Only root may become another user, one who has no other processes.
(process.getuid?.() === 0 ? test : test.skip)(
  "a device whose threads the system refuses is refused, and the process goes on",
  () => {
    const open = caught(`await (await rlhf.device("cpu", { threads: 1000 })).close()`);
    expect(output(open, { command: ["bash", "-c", 'ulimit -u 100; exec "$@"', "bash"], uid: 54321 })).toMatch(
      /^RangeError THREADS .*1000/,
    );
  },
);

(process.platform === "linux" ? test : test.skip)(
  "memory that there is not is a RangeError, whoever asks for it",
  () => {
    const program = `
    import { readFileSync } from "node:fs";
    import { spawnSync } from "node:child_process";
    const on = await rlhf.device("cpu", { threads: 1 });
    const bytes = (name) => 1024 * Number(readFileSync("/proc/self/status", "utf8").match(new RegExp(name + ":\\\\s+(\\\\d+)"))[1]);
    const limit = (more) => {
      const { status } = spawnSync("prlimit", ["--pid=" + process.pid, "--as=" + (more ? bytes("VmSize") + more : "unlimited") + ":"]);
      if (status !== 0) throw new Error("prlimit failed");
    };
    const n = 2 ** 28;
    const x = rlhf.Tensor.empty([n], "f32", on);
    const numbers = new Float32Array(n);
    limit(2 ** 29);
    ${caught("x.write(numbers)")}
    ${caught("await x.read()")}
    ${caught('rlhf.Tensor.empty([2 * n], "f32", on)')}
    limit();
    await x.rows(0, 4).read();
    await on.close();
    console.log("closed");`;
    const lines = output(program).split("\n");
    expect(lines.map((line) => line.split(" ").slice(0, 2).join(" "))).toEqual([
      ...Array<string>(3).fill("RangeError MEMORY"),
      "closed",
    ]);
  },
);
