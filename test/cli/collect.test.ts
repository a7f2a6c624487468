import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { silent } from "../../lib/cli/progress.js";
import { Run } from "../../lib/cli/run/run.js";
import { readConfig } from "../../lib/cli/config/config.js";
import { sampleAll } from "../../lib/cli/stages/collect.js";
import { sliceOf } from "../../lib/data/spool.js";
import { root } from "../../lib/device/native.js";
import { device, generate, requestsFor, saveModel, Tokenizer, trainBpe, type Device } from "../../lib/index.js";
import { llama, lively } from "../models.js";
import { Random } from "../random.js";

// What is sampled and what is read goes through temporary files, whatever it comes from.

const random = new Random("collect");
let on: Device;
let folder: string;
const at = (name: string) => join(folder, name);
beforeAll(async () => {
  on = await device("cpu", { threads: 1 });
  folder = await mkdtemp(join(tmpdir(), "rlhf-collect-"));
  const tokenizer = new Tokenizer(trainBpe(["the text of a tokenizer"], { vocabulary: 260 }));
  for (const head of ["logits", "score"] as const) {
    const model = await lively({ ...llama, vocabulary: 260 }, on, head);
    await saveModel(model, at(head));
    await tokenizer.save(at(head));
    model.dispose();
  }
});
afterAll(async () => {
  await on.close();
  await rm(folder, { recursive: true });
});

const rlhf = (args: string[], input = "") => {
  const running = promisify(execFile)(process.execPath, [
    join(root, "dist/lib/cli/main.js"),
    ...args,
    "--threads",
    "1",
  ]);
  running.child.stdin!.end(input);
  return running;
};

test("completions are those of one call, however many are sampled at once, and those that a killed run drew", async () => {
  const model = await lively(llama, on);
  const prompts = Array.from({ length: 23 }, () => ({
    ids: Int32Array.from({ length: 1 + random.below(6) }, () => random.below(llama.vocabulary)),
  }));
  const sampling = { samples: 3, maxTokens: 7, temperature: 0.8, topK: 9, seed: 5, stop: [3] };
  const asked = prompts.map(({ ids }) => ids);
  const wanted = await generate(model, requestsFor(asked, 3), sampling);
  using run = await Run.open(at("run"), await readConfig(undefined), on, false);
  for (const [title, atOnce] of [
    ["all", 1000],
    ["some", 10],
    ["one prompt", 1],
    ["some", 20], // again, from the journal
  ] as const) {
    using sampled = await sampleAll(model, prompts, sampling, { progress: silent, run }, title, atOnce);
    expect(sliceOf(sampled, 0, sampled.length)).toEqual(wanted);
    expect(sampled.tokens).toBe(wanted.reduce((n, { completion }) => n + completion.length, 0));
  }
  const tooLong = [...prompts, { ids: new Int32Array(llama.context) }];
  const last = sampleAll(model, tooLong, sampling, { progress: silent, run }, "too long", 10);
  await expect(last).rejects.toMatchObject({ code: "CONTEXT" });
  model.dispose();
  expect(await readFile(run.path("checkpoints", "too-long.jsonl"), "utf8")).toBe(""); // nothing was sampled before that was told
});

test("rlhf reward learns the same from standard input as from a file", async () => {
  const row = (i: number) =>
    JSON.stringify({ prompt: `p${i % 9}`, chosen: ` a ${i}`, rejected: " b", agreement: 0.75 });
  const text = Array.from({ length: 30 }, (_, i) => row(i)).join("\n");
  await writeFile(at("p.jsonl"), text);
  const common = ["reward", "--model", at("logits"), "--set", "reward.epochs=1", "--set", "reward.batch=4"];
  await rlhf([...common, "--data", at("p.jsonl"), "--out", at("from-file")]);
  await rlhf([...common, "--data", "-", "--out", at("from-input")], text);
  const hashes = await Promise.all(
    ["from-file", "from-input"].map(async (name) =>
      createHash("sha256")
        .update(await readFile(join(at(name), "model.safetensors")))
        .digest("hex"),
    ),
  );
  expect(hashes[0]).toBe(hashes[1]);
});

test("prompts of which there are none are an error that names the file", async () => {
  await writeFile(at("none.jsonl"), "\n");
  const commands = [
    ["collect", "--model", at("logits")],
    ["ppo", "--model", at("logits"), "--reward", at("score")],
    ["eval", "--base", at("logits"), "--policy", at("logits")],
  ];
  for (const command of commands)
    await expect(
      rlhf([...command, "--prompts", at("none.jsonl"), "--out", at(`${command[0]}-none`)]),
    ).rejects.toMatchObject({
      stderr: expect.stringMatching(/^rlhf: --prompts: .*none\.jsonl has no prompts$/m),
    });
});
