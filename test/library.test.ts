import { execFile } from "node:child_process";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";
import { device, saveModel, Transformer, trainBpe } from "../lib/index.js";
import { llama } from "./models.js";

// The examples of docs/library.md, in their order, in a folder of their own: each does what it says
// in at most 15 lines.

const folder = join(root, "build/library"); // inside the package, which finds itself by its name
const words = ["a quiet sea", "the old house", "rain and wind", "bread", "an open door", "night"];
const rows = words.map((prompt, i) => ({
  prompt,
  chosen: ` is ${words[(i + 1) % words.length]}`,
  rejected: ` was ${words[(i + 2) % words.length]}`,
}));
const jsonl = (all: object[]) => all.map((row) => `${JSON.stringify(row)}\n`).join("");

beforeAll(async () => {
  await rm(folder, { recursive: true, force: true });
  await mkdir(join(folder, "base"), { recursive: true });
  const texts = rows.flatMap((row) => Object.values(row));
  const { tokenizer, tokenizerConfig } = trainBpe(texts, { vocabulary: 300, specials: ["<|endoftext|>"] });
  await writeFile(join(folder, "base/tokenizer.json"), JSON.stringify(tokenizer));
  await writeFile(join(folder, "base/tokenizer_config.json"), JSON.stringify(tokenizerConfig));
  await using on = await device("cpu");
  const model = Transformer.random({ ...llama, vocabulary: 300, context: 64 }, "logits", on, 0);
  await saveModel(model, join(folder, "base"));
  await writeFile(join(folder, "preferences.jsonl"), jsonl(rows));
  await writeFile(join(folder, "prompts.jsonl"), jsonl(rows.map(({ prompt }) => ({ prompt }))));
});
afterAll(() => rm(folder, { recursive: true }));

async function example(name: string): Promise<string[]> {
  const page = await readFile(join(root, "docs/library.md"), "utf8");
  const [, code] = page.match(new RegExp(`<!-- ${name} -->\\s+\`\`\`js\\n(.*?)\`\`\``, "s"))!;
  const lines = code.split("\n").filter((line) => line.trim() !== "");
  expect(lines.length).toBeLessThanOrEqual(15);
  await writeFile(join(folder, `${name}.mjs`), code);
  const { stdout } = await promisify(execFile)(process.execPath, [`${name}.mjs`], { cwd: folder });
  expect(stdout).not.toContain("NaN");
  return stdout.trimEnd().split("\n");
}

test("preferences become a reward model, and prompts a policy with it", async () => {
  const steps = await example("reward");
  expect(steps).toHaveLength(8);
  expect(steps[7]).toMatch(/^step 8: loss \d\.\d{3}, accuracy [01]\.\d\d$/);
  expect(await readdir(join(folder, "reward"))).toContain("model.safetensors");

  const updates = await example("ppo");
  expect(updates).toHaveLength(2);
  expect(updates[0]).toMatch(/^update 1: reward -?\d+\.\d{3}, KL 0\.000 nats$/);
  const [before, after] = ["base", "policy"].map((name) => readFile(join(folder, name, "model.safetensors")));
  expect((await before).equals(await after)).toBe(false);
});

test("prompts become a policy with a reward of one's own", async () => {
  const updates = await example("grpo");
  expect(updates).toEqual([
    expect.stringMatching(/^update 1: reward \d+\./),
    expect.stringMatching(/^update 2: reward/),
  ]);
});
