import { spawnSync } from "node:child_process";
import { expect, jest, test } from "@jest/globals";
import { bound, Limits, mix } from "../bench/limit.js";
import { interleaved } from "../bench/measure.js";
import { Peers } from "../bench/peer.js";
import { markdown, lines, head, type Row } from "../bench/result.js";
import { sharingStep } from "../bench/sharing.js";
import { bandwidth } from "../lib/device/limits.js";
import { root } from "../lib/device/native.js";
import { specs } from "../lib/device/ops.js";
import { device, Tensor, type Device } from "../lib/index.js";
import { run } from "../lib/tensor/op.js";
import { batch } from "./ops/attention.js";
import { Random } from "./random.js";
import { isNumbers, normal, type Case } from "./truth.js";

async function outputs(on: Device, op: string, inputs: Case): Promise<Record<string, Float32Array>> {
  const taken = new Set(specs.get(op)!.arguments.map(({ name }) => name));
  const given = Object.entries(inputs).filter(([name]) => taken.has(name));
  const args = Object.fromEntries(
    given.map(([name, value]) => [name, isNumbers(value) ? Tensor.from(value.data, value.shape, on) : value]),
  );
  const made = run(op, args);
  return Object.fromEntries(
    await Promise.all(
      Object.entries(made).map(async ([name, tensor]) => [name, (await tensor.read()) as Float32Array]),
    ),
  );
}

const furthest = (a: Float32Array, b: Float32Array) => a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);

test("a row's bytes become a few streams in its own proportions", () => {
  const cost = { flops: 0, read: 0, write: 0 };
  expect(mix({ ...cost, read: 16, write: 12, update: 12 })).toEqual({ reads: 1, updates: 3, writes: 0 }); // AdamW
  expect(mix({ ...cost, read: 12, write: 4 })).toEqual({ reads: 3, updates: 0, writes: 1 });
  expect(mix({ ...cost, read: 8e8, write: 100, update: 64 })).toEqual({ reads: 1, updates: 0, writes: 0 });
  expect(mix({ ...cost, read: 7, write: 7 })).toEqual({ reads: 1, updates: 0, writes: 1 });
});

test("what it takes to wake up is not part of work of microseconds", async () => {
  let last = 0;
  const timer = async (runs: number) => {
    const slept = performance.now() - last > 20;
    last = performance.now();
    return 0.01 * runs + (slept ? 8 : 0);
  };
  const [{ ms }] = await interleaved([timer]);
  expect(ms).toBeCloseTo(0.01, 6);
});

test("the streams are read, updated and written, in as many rounds as asked", async () => {
  await using on = await device("cpu", { threads: 2 });
  for (const pastCaches of [0, 1]) {
    const [x, y, z] = [2, 3, 1]
      .map((streams) => new Float32Array(streams * 1024).fill(2))
      .map((data) => Tensor.from(data, [data.length / 1024, 1024], on));
    const { sink } = run("limitStream", { rounds: 5, pastCaches, x, y, z }, undefined, { T: 2 });
    expect(((await sink.read()) as Float32Array).reduce((a, b) => a + b, 0)).toBe(5 * 2 * 2 * 1024);
    expect(new Set((await y.read()) as Float32Array)).toEqual(new Set([2 + 5]));
    expect(new Set((await z.read()) as Float32Array)).toEqual(new Set([1]));
  }
});

test("every mix has a bandwidth that a machine can have", async () => {
  await using on = await device("cpu", { threads: 2 });
  for (const [reads, updates, writes] of [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
    [1, 3, 0],
    [3, 0, 1],
  ])
    for (const bytes of [2 ** 16, 2 ** 24]) {
      const rate = await bandwidth(on, { reads, updates, writes }, bytes);
      expect(rate).toBeGreaterThan(1e8);
      expect(rate).toBeLessThan(1e14);
    }
});

test("a row is held to the bar that takes longer, or to both where one waits for the other", () => {
  const timer = async () => 0;
  const arithmetic = { kind: "arithmetic", timer, amount: 10, owed: 20 } as const;
  const memory = { kind: "memory", timer, amount: 5, owed: 20 } as const;
  expect(bound([arithmetic, memory], [3, 4])).toEqual({ ms: 16, peak: 10_000 / 3, bandwidth: 1250 });
  expect(bound([arithmetic, memory], [9, 4])).toEqual({ ms: 18, peak: 10_000 / 9, bandwidth: 1250 });
  expect(bound([arithmetic, memory], [3, 4], true)).toEqual({ ms: 22, peak: 10_000 / 3, bandwidth: 1250 });
  expect(bound([arithmetic], [3])).toEqual({ ms: 6, peak: 10_000 / 3, bandwidth: null });
});

test("products are held to arithmetic, copies to memory, and what is between to both", async () => {
  await using on = await device("cpu", { threads: 2 });
  const limits = await Limits.measure(on);
  const kinds = async (flops: number, bytes: number) =>
    (await limits.bars({ flops, read: bytes, write: 0, footprint: 2 ** 20 })).map(({ kind }) => kind);
  const balance = limits.peak / limits.read; // FLOPs for a byte
  expect(await kinds(100 * balance, 1)).toEqual(["arithmetic"]);
  expect(await kinds(balance, 1)).toEqual(["arithmetic", "memory"]);
  expect(await kinds(balance, 100)).toEqual(["memory"]);
  expect(await kinds(0, 1)).toEqual(["memory"]);
  for (const { timer, amount } of await limits.bars({ flops: balance, read: 1, write: 0, footprint: 2 ** 20 })) {
    expect(amount).toBeGreaterThan(0);
    expect(await timer(1)).toBeGreaterThan(0);
  }
});

test("the kernels that add in any order compute what those in the law's order do", async () => {
  const random = new Random("bench");
  await using on = await device("cpu", { threads: 2 });
  for (const [N, O, I] of [
    [17, 70, 390],
    [40, 33, 7],
    [31, 64, 1000],
    [250, 1100, 401],
  ]) {
    const inputs = { x: normal(random, [N, I]), weight: normal(random, [O, I]) };
    const [{ y: ours }, { y: free }] = [await outputs(on, "linear", inputs), await outputs(on, "limitLinear", inputs)];
    expect(furthest(ours, free)).toBeLessThan(1e-3);
    expect(furthest(ours, free) > 0).toBe(I > 384); // of one block of k there is one order
  }
  for (const [lengths, heads] of [
    [
      [1, 300, 64, 517],
      [4, 2, 64],
    ],
    [
      [256, 49],
      [3, 3, 20],
    ],
  ]) {
    const inputs = batch(random, lengths, heads);
    const [{ o: ours }, { o: free }] = [
      await outputs(on, "attention", inputs),
      await outputs(on, "limitAttention", inputs),
    ];
    expect(furthest(ours, free)).toBeLessThan(1e-5);
  }
});

test("a step on completions of one prompt counts the FLOPs of its packing", async () => {
  await using on = await device("cpu", { threads: 1 });
  const [C, V] = [16, 40];
  const shape = { layers: 1, width: C, heads: 2, vocabulary: V, batch: 8, prompt: 4, response: 5 };
  // in the last layer, only tokens that predict go on after attention
  for (const [shared, tokens, predict, pairs] of [
    [true, 4 + 8 * 4, 1 + 8 * 4, 10 + 8 * (4 * 4 + 10)],
    [false, 8 * 8, 8 * 5, 8 * 36],
  ] as const) {
    const { cost, timer, dispose } = await sharingStep(on, "SFT step", shape, 8, shared);
    expect(cost.flops).toBe(6 * C * C * (3 * tokens + 9 * predict) + 6 * C * V * 8 * 5 + 14 * C * pairs);
    expect(await timer(1)).toBeGreaterThan(0);
    dispose();
  }
});

test("a program that is no peer is passed over, and says why", async () => {
  const before = process.env.RLHF_PEER_PYTHON;
  const said = jest.spyOn(console, "error").mockImplementation(() => undefined);
  process.env.RLHF_PEER_PYTHON = `/nowhere/python:${process.execPath}`;
  const peers = new Peers(1);
  expect(await peers.prepare({ name: "linearLogprob", shape: "M 8, C 8, V 8" })).toEqual([]);
  await peers.release();
  await peers.close();
  const lines = said.mock.calls.map(([line]) => String(line));
  said.mockRestore();
  if (before === undefined) delete process.env.RLHF_PEER_PYTHON;
  else process.env.RLHF_PEER_PYTHON = before;
  expect(lines).toHaveLength(4); // two scripts with two programs
  expect(lines[0]).toMatch(/torch_peer.py does not run with \/nowhere\/python: .*ENOENT/);
});

test("each peer has a line of the table, a row without a peer too", () => {
  const row: Row = {
    name: "linear",
    shape: "N 1",
    device: "cpu",
    isa: "avx2",
    threads: 2,
    ms: 2,
    spread: 0.1,
    peers: [
      { name: "one", ms: 3, ratio: 1.5, bytes: 2 ** 20 },
      { name: "other", ms: 4, ratio: 2, bytes: 2 ** 21 },
    ],
    limit: 1,
    limitRatio: 0.5,
    bandwidth: null,
    bytes: 2 ** 22,
  };
  expect(lines(row).map((cells) => cells.slice(head.indexOf("peer")))).toEqual([
    ["one", "3.00", "1.50x", "1.0"],
    ["other", "4.00", "2.00x", "2.0"],
  ]);
  const text = markdown({
    cpu: "CPU",
    isa: "avx2",
    limits: [2, 1].map((threads) => ({ threads, peak: 1e11, bandwidth: 1e10 })),
    rows: [row, { ...row, threads: 1, peers: [] }],
    growth: [{ name: "attention", varies: "T", shape: "B 1", threads: 2, sizes: [1, 2, 4], ms: [1, 2, 8], work: 9 }],
    order: [{ name: "linear", shape: "N 1", threads: 2, ms: 2, unordered: 1 }],
    sharing: [{ name: "SFT step", shape: "demo", threads: 2, ms: 10, alone: 15, work: 2 }],
  });
  expect(text).toContain(
    "| linear | N 1 | 2.00 | 50 % | 4.0 | one | 3.00 | 1.50x | 1.0 |\n|  |  |  |  |  | other | 4.00 | 2.00x | 2.0 |",
  );
  expect(text).toContain("1 thread.");
  expect(text).toContain("| attention | B 1 | T 1, 2, 4 | 1.00, 2.00, 8.00 | 2.00x, 4.00x | 3.00x |");
  expect(text).toContain("| linear | N 1 | 2 | 2.00 | 1.00 | 2.00x |");
  expect(text).toContain("| SFT step | demo | 2 | 10.0 | 15.0 | 1.50x | 2.00x | 75 % |");
});

test("a filter that matches no row says so and fails", () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["dist/bench/main.js", "--filter", "^no such row$"], {
    cwd: root,
    encoding: "utf8",
  });
  expect([status, stdout]).toEqual([1, ""]);
  expect(stderr).toContain("no row matches --filter ^no such row$");
});
