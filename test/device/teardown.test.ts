// However a thread or the process ends while devices work, it ends as it was told to: no signal, no abort.
import { expect, test } from "@jest/globals";
import { child } from "../child.js";
import { seed } from "../random.js";

/** Devices that are read for as long as they may be; each worker says when it has begun. */
const READER = `
  const { Device } = require(workerData.addon);
  const devices = Array.from({ length: workerData.devices }, () => new Device(undefined, 1));
  const bytes = 1 << 20;
  const reading = async (on) => {
    const address = on.allocate(bytes, {});
    on.write(address, new Uint8Array(bytes));
    for (;;) await Promise.all([on.read(address, bytes), on.read(address + 64, 64), on.wait()]);
  };
  for (const on of devices) reading(on).catch((error) => { if (error.code !== "DEVICE") throw error; });
  parentPort.postMessage("reads");
`;

/** Ways for a worker to end amid its reads. */
const ENDS: Record<string, string> = {
  terminated: "",
  exits: "setTimeout(() => process.exit(3), workerData.delay);",
  throws: 'setTimeout(() => { throw new Error("meant"); }, workerData.delay);',
  closes: "setTimeout(() => devices.forEach((on) => on.close()), workerData.delay);",
  drops: "setTimeout(() => { devices.length = 0; gc(); }, workerData.delay);",
  busy: "setTimeout(() => { for (;;) devices[0].allocate(8, {}); }, workerData.delay);",
  waits:
    "setTimeout(() => { devices[0].trim(); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0); }, workerData.delay);",
};

test("100 workers end amid reads, at any instant, in every way, and the process goes on", () => {
  const program = `
    const { Worker } = require("node:worker_threads");
    require("node:v8").setFlagsFromString("--expose-gc");
    let state = ${seed} >>> 0;
    const random = (below) => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32) * below;
    const ends = ${JSON.stringify(Object.entries(ENDS))};
    async function worker(i) {
      const [name, way] = ends[i % ends.length];
      const gc = 'const gc = require("node:vm").runInNewContext("gc");';
      const code = 'const { parentPort, workerData } = require("node:worker_threads");' + gc + ${JSON.stringify(READER)} + way;
      const delay = random(8);
      const one = new Worker(code, { eval: true, workerData: { addon, devices: 1 + (i % 4), delay } });
      const when = (event) => new Promise((resolve) => one.once(event, resolve));
      const [begun, failed, left] = [when("message"), when("error"), when("exit")];
      await Promise.race([begun, failed, left]);
      await Promise.race([new Promise((resolve) => setTimeout(resolve, random(16))), failed, left]);
      await one.terminate();
      return name;
    }
    const ended = {};
    for (let i = 0; i < 100; i += 4) for (const name of await Promise.all([0, 1, 2, 3].map((k) => worker(i + k)))) ended[name] = (ended[name] ?? 0) + 1;
    console.log(Object.values(ended).reduce((a, b) => a + b));
    const on = await rlhf.device("cpu", { threads: 1 });
    console.log(...(await rlhf.Tensor.from([1, 2], [2], on).read()));`;
  expect([`seed ${seed}`, child(program)]).toEqual([`seed ${seed}`, { out: "100\n1 2", error: "", end: 0 }]);
});

const OPEN = `
  const on = await rlhf.device("cpu", { threads: 2 });
  const other = await rlhf.device("cpu", { threads: 1 });
  const x = rlhf.Tensor.from(new Float32Array(1 << 18).fill(1), [512, 512], on);
  const y = rlhf.Tensor.from([1, 2], [2], other);
  const reads = () => { for (let i = 0; i < 20; i++) { rlhf.ops.linear(x, x).read(); y.read(); } };
`;
const WORKERS = `
  const { Worker } = require("node:worker_threads");
  const workers = Array.from({ length: 4 }, () => new Worker(${JSON.stringify(`const { parentPort, workerData } = require("node:worker_threads");${READER}`)}, { eval: true, workerData: { addon, devices: 2 } }));
  await Promise.all(workers.map((one) => new Promise((resolve) => one.once("message", resolve))));
`;
test.each<[string, string, number, string?]>([
  ["two devices are open", OPEN, 0],
  ["two devices are open and read", `${OPEN} reads();`, 0],
  ["it is told to exit amid reads", `${OPEN} reads(); process.exit(7);`, 7],
  ["it is told to exit amid reads, some of them done", `${OPEN} reads(); await y.read(); process.exit(7);`, 7],
  ["it is told to exit while a read is told", `${OPEN} reads(); y.read().then(() => process.exit(7));`, 7],
  ["something is thrown amid reads", `${OPEN} reads(); throw new Error("meant");`, 1, "meant"],
  [
    "something is thrown amid reads, in a callback",
    `${OPEN} reads(); setTimeout(() => { throw new Error("meant"); }, 1);`,
    1,
    "meant",
  ],
  ["a promise is rejected amid reads", `${OPEN} reads(); Promise.reject(new Error("meant"));`, 1, "meant"],
  ["a device is closing", `${OPEN} reads(); on.close(); other.close();`, 0],
  ["a device is closing when it is told to exit", `${OPEN} reads(); on.close(); process.exit(7);`, 7],
  ["its last handler reads", `${OPEN} process.on("exit", reads);`, 0],
  ["workers read", `${WORKERS} process.exit(7);`, 7],
  ["workers that it does not wait for read", `${WORKERS} workers.forEach((one) => one.unref());`, 0],
  ["workers read and it does too", `${OPEN} ${WORKERS} reads(); process.exit(7);`, 7],
])("the process ends as it should when %s", (_, program, end, says = "") => {
  for (let i = 0; i < 2; i++) {
    const ended = child(program);
    expect(ended).toEqual({ out: "", error: expect.stringContaining(says), end });
    if (!says) expect(ended.error).toBe("");
  }
});

test("a device that is lost amid reads is kept until they are told, and collected then", () => {
  const program = `
    require("node:v8").setFlagsFromString("--expose-gc");
    const gc = require("node:vm").runInNewContext("gc");
    const { Device } = require(addon);
    const lost = [];
    const registry = new FinalizationRegistry((i) => lost.push(i));
    const reading = async (i) => {
      const on = new Device(undefined, 2);
      registry.register(on, i);
      const address = on.allocate(64, {});
      on.write(address, new Uint8Array(64).fill(i));
      return new Uint8Array(await on.read(address, 64))[63];
    };
    const reads = Array.from({ length: 20 }, (_, i) => reading(i));
    gc();
    console.log(...(await Promise.all(reads)));
    for (let i = 0; i < 100 && lost.length < 20; i++) { gc(); await new Promise((resolve) => setTimeout(resolve, 5)); }
    console.log(lost.length);`;
  const numbers = Array.from({ length: 20 }, (_, i) => i).join(" ");
  expect(child(program)).toEqual({ out: `${numbers}\n20`, error: "", end: 0 });
});

test("a read that is pending when its device is closed is refused, one that is done is told", () => {
  const program = `
    const { Device } = require(addon);
    const on = new Device(undefined, 1);
    const address = on.allocate(1 << 24);
    on.write(address, new Uint8Array(1 << 24));
    const reads = Array.from({ length: 50 }, () => on.read(address, 1 << 24).then(() => "told", ({ code }) => code));
    await reads[0];
    on.close();
    const ends = await Promise.all(reads);
    console.log(ends[0], ends.at(-1), ends.every((end, i) => i === 0 || end === ends[i - 1] || end === "DEVICE"));`;
  expect(child(program)).toEqual({ out: "told DEVICE true", error: "", end: 0 });
});
