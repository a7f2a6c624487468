import { spawnSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";

// test/docstrings.mjs, which `npm run lint` runs over the repository, finds docstrings that cannot
// stand alone in a hover.

/** The lines that are found in each of these sources. */
async function found(sources: readonly string[]): Promise<string[][]> {
  const folder = await mkdtemp(join(tmpdir(), "rlhf-docstrings-"));
  await Promise.all(sources.map((source, i) => writeFile(join(folder, `${i}.ts`), source)));
  const options = { cwd: root, encoding: "utf8" } as const;
  const { status, stderr } = spawnSync(process.execPath, ["test/docstrings.mjs", folder], options);
  await rm(folder, { recursive: true });
  const lines = sources.map((_, i) =>
    [...stderr.matchAll(new RegExp(`/${i}\\.ts:(\\d+): `, "g"))].map(([, line]) => line),
  );
  expect(status).toBe(lines.flat().length > 0 ? 1 : 0);
  return lines;
}

const leaning = [
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
];

test("docstrings that lean on what stands before them are found by their lines", async () => {
  const field = leaning.map((text) => `interface A {\n  /** ${text} */\n  b: number;\n}\n`);
  const block = leaning.map((text) => `/** A. */\nconst a = 1;\n\n/**\n * ${text}\n * More.\n */\nconst b = 2;\n`);
  expect(await found(field)).toEqual(leaning.map(() => ["2"]));
  expect(await found(block)).toEqual(leaning.map(() => ["4"]));
});

test("a docstring that another one must end is found", async () => {
  const source = "/** What every command takes, */\nconst a = 1;\n/** and every stage. */\nconst b = 2;\n";
  expect(await found([source])).toEqual([["1"]]);
});

test("docstrings that stand alone are not found, nor what only looks like one", async () => {
  const good = ["Steers klCoef.", "Offset of a row.", "Assigns a name.", "Bytes that move, both ways.", "Total rows."];
  const sources = [
    ...good.map((text) => `/** ${text} */\nconst a = 1;\n`),
    'const a = "/** Of nothing. */";\n/* Of a comment. */\n// /** Of a line. */\n',
  ];
  expect(await found(sources)).toEqual(sources.map(() => []));
});
