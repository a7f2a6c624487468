import { spawnSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";

// test/docstrings.mjs, which `npm run lint` runs over the repository, finds docstrings that cannot
// stand alone in a hover.

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-docstrings-"));
});
afterAll(() => rm(folder, { recursive: true }));

async function found(source: string): Promise<string[]> {
  await writeFile(join(folder, "one.ts"), source);
  const { status, stderr } = spawnSync(process.execPath, ["test/docstrings.mjs", folder], {
    cwd: root,
    encoding: "utf8",
  });
  const lines = [...stderr.matchAll(/one\.ts:(\d+): /g)].map(([, line]) => line);
  expect(status).toBe(lines.length > 0 ? 1 : 0);
  return lines;
}

test.each([
  "Of klCoef.",
  "The same of the critic.",
  "As aggregated, mean over the completions.",
  "Its lower end.",
  "By default 1.",
  "To learn from.",
  "And the most.",
  "Those of others.",
  "Theirs.",
  "One of its steps,",
])("a docstring that begins with %j is found", async (text) => {
  expect(await found(`interface A {\n  /** ${text} */\n  b: number;\n}\n`)).toEqual(["2"]);
  expect(await found(`/** A. */\nconst a = 1;\n\n/**\n * ${text}\n * More.\n */\nconst b = 2;\n`)).toEqual(["4"]);
});

test("a docstring that another one must end is found", async () => {
  expect(
    await found("/** What every command takes, */\nconst a = 1;\n/** and every stage. */\nconst b = 2;\n"),
  ).toEqual(["1"]);
});

test.each([
  "Steers klCoef.",
  "Offset of a row.",
  "Assigns a name.",
  "Bytes that move, both ways.",
  "Total of all rows.",
])("a docstring that begins with %j is not", async (text) => {
  expect(await found(`/** ${text} */\nconst a = 1;\n`)).toEqual([]);
});

test("what only looks like a docstring is not one", async () => {
  expect(await found('const a = "/** Of nothing. */";\n/* Of a comment. */\n// /** Of a line. */\n')).toEqual([]);
});
