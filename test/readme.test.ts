import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "@jest/globals";
import { thinned, ticks, withDemo } from "../bench/curves.js";
import { pages } from "../bench/readme.js";
import { root } from "../lib/device/native.js";

test("the README's example runs as it stands", async () => {
  const readme = await readFile(join(root, "README.md"), "utf8");
  const [, code] = readme.match(/<!-- example -->\s+```js\n(.*?)```/s)!;
  await mkdir(join(root, "build"), { recursive: true });
  const file = join(root, "build/example.mjs"); // inside the package, which finds itself by its name
  await writeFile(file, code);
  const { stdout } = await promisify(execFile)(process.execPath, [file]);
  expect(stdout).toContain("[ 5, 4, 8 ]");
  expect(stdout.match(/Float32Array\(\d\)/g)).toEqual([
    "Float32Array(3)",
    "Float32Array(3)",
    "Float32Array(5)",
    "Float32Array(1)",
  ]);
  expect(stdout).not.toContain("NaN");
});

test("the example of devices in the docs runs on those that are here", async () => {
  const page = await readFile(join(root, "docs/devices.md"), "utf8");
  const [, code] = page.match(/<!-- example -->\s+```js\n(.*?)```/s)!;
  const file = join(root, "build/devices.mjs");
  await mkdir(join(root, "build"), { recursive: true });
  await writeFile(file, code);
  const { stdout } = await promisify(execFile)(process.execPath, [file]);
  for (const kind of ["cpu", "cuda", "webgpu"]) expect(stdout).toMatch(new RegExp(kind, "i"));
  expect(stdout).toMatch(/cpu, \w+: Float32Array\(5\)/);
});

test("tables and pictures are those of bench/results, of the op list and of the demo's run", async () => {
  const made = await pages();
  expect([...made.keys()]).toEqual(
    expect.arrayContaining(["README.md", "docs/devices.md", "docs/demo.svg", "bench/results/README.md"]),
  );
  for (const [path, wanted] of made) expect(await readFile(join(root, path), "utf8")).toBe(wanted);
});

test("the README has no number that no command prints", async () => {
  const readme = await readFile(join(root, "README.md"), "utf8");
  const { engines } = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as { engines: { node: string } };
  const written = readme
    .replace(/<!-- (\w+) -->.*?<!-- \/\1 -->/gs, "")
    .replace(/```.*?```/gs, "")
    .replace("exactly 1.", "") // the tests hold the first ratios
    .replace("Apache-2.0", "");
  const numbers = [...written.matchAll(/(?<![\w.])\d[\d.,]*\d|(?<![\w.])\d/g)].map(([number]) => number);
  expect(numbers.length).toBeGreaterThan(0);
  expect(numbers.filter((number) => !engines.node.includes(number))).toEqual([]);
});

test("ticks of a picture are round and hold all values", () => {
  expect(ticks([-0.04, 1.69])).toEqual([-0.5, 0, 0.5, 1, 1.5, 2]);
  expect(ticks([1, 80])).toEqual([0, 20, 40, 60, 80]);
  expect(ticks([0])).toEqual([0, 0.1]);
});

test("points of a picture are means of equally many values, at most 200", () => {
  expect(thinned([1, 2.5, 4])).toEqual([1, 2.5, 4]);
  const many = thinned(Array.from({ length: 1001 }, (_, i) => i));
  expect(many).toHaveLength(167);
  expect([many[0], many[1], many.at(-1)]).toEqual([2.5, 8.5, 998]);
});

test("a run of the demo is kept by its policy's algorithm, earlier stages only from the plain demo", async () => {
  const folder = await mkdtemp(join(tmpdir(), "rlhf-readme-"));
  const write = async (policy: string) => {
    const lines = [
      { stage: "sft", step: 1, loss: 8 },
      { stage: "reward", step: 1, loss: 0.7, accuracy: 0.5 },
      ...[1, 2].map((step) => ({ stage: policy, step, reward: step / 2, kl: 3 * step, length: 24 })),
    ];
    await writeFile(join(folder, "metrics.jsonl"), lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
    await writeFile(join(folder, "summary.json"), JSON.stringify({ winRate: 0.75 }));
  };
  await write("grpo");
  const one = await withDemo({}, folder);
  await write("ppo");
  const both = await withDemo(one, folder);
  await rm(folder, { recursive: true });
  const learned = { step: [1, 2], reward: [0.5, 1], kl: [3, 6] };
  const grpo = { summary: { winRate: 0.75 }, curves: { grpo: learned } };
  expect(one).toEqual({ grpo });
  const curves = { sft: { step: [1], loss: [8] }, reward: { step: [1], accuracy: [0.5], loss: [0.7] }, ppo: learned };
  expect(both).toEqual({ ppo: { summary: { winRate: 0.75 }, curves }, grpo });
  expect(Object.keys(both)).toEqual(["ppo", "grpo"]);
});
