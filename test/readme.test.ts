import { execFile } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "@jest/globals";
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

test("the README's example of devices runs on those that are here", async () => {
  const readme = await readFile(join(root, "README.md"), "utf8");
  const [, code] = readme.match(/<!-- devices -->\s+```js\n(.*?)```/s)!;
  const file = join(root, "build/devices.mjs");
  await mkdir(join(root, "build"), { recursive: true });
  await writeFile(file, code);
  const { stdout } = await promisify(execFile)(process.execPath, [file]);
  for (const kind of ["cpu", "cuda", "webgpu"]) expect(stdout).toMatch(new RegExp(kind, "i"));
  expect(stdout).toMatch(/cpu, \w+: Float32Array\(5\)/);
});

test("the README's tables and figures are those of bench/results and of the op list", async () => {
  for (const [path, wanted] of await pages()) expect(await readFile(join(root, path), "utf8")).toBe(wanted);
});
