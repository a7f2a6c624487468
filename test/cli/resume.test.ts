import { execFile, spawn, type ChildProcess, type SpawnOptions } from "node:child_process";
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { root } from "../../lib/device/native.js";
import { Random } from "../random.js";

// Runs that are killed, stopped, out of room or doubled. RLHF_KILLS=200 kills every stage at so many random instants.

const KILLS = Number(process.env.RLHF_KILLS ?? 3);
const random = new Random("resume");
const main = join(root, "dist/lib/cli/main.js");
const run = promisify(execFile);
const rlhf = (args: string[]) => run(process.execPath, [main, ...args], { maxBuffer: 1 << 26 });
const start = (args: string[], command = process.execPath, options: SpawnOptions = {}) =>
  spawn(command, command === process.execPath ? [main, ...args] : args, {
    ...options,
    stdio: ["ignore", "ignore", "pipe"],
  });

/** How a process ended and what it said. */
const ended = (child: ChildProcess) =>
  new Promise<{ code: number | null; signal: string | null; said: string }>((resolve) => {
    let said = "";
    child.stderr!.on("data", (chunk: Buffer) => (said += chunk.toString()));
    child.on("close", (code, signal) => resolve({ code, signal, said }));
  });
/** Starts a run and resolves once it has written this much: a checkpoint, a sampled line. */
async function startUntil(args: string[], folder: string, pattern: RegExp): Promise<ChildProcess> {
  const child = start(args);
  while (child.exitCode === null && !(await readdir(folder).catch(() => [])).some((name) => pattern.test(name)))
    await new Promise((resolve) => setTimeout(resolve, 5));
  return child;
}

let folder: string;
const at = (...parts: string[]) => join(folder, ...parts);

const config = `
model: { layers: 2, width: 32, heads: 2, kvHeads: 2, mlp: 48, vocabulary: 280, context: 64 }
sft: { steps: 24, batchTokens: 512, sequenceLength: 64, warmup: 2 }
reward: { epochs: 4, batch: 4, warmup: 0 }
ppo: { updates: 8, rolloutBatch: 8, samples: 4, maxTokens: 10, ptxCoef: 0.1, ptxBatchTokens: 128, klController: adaptive, rewardNormalise: true }
grpo: { updates: 8, rolloutBatch: 8, samples: 4, maxTokens: 10, rewardNormalise: true }
eval: { maxTokens: 30 }
checkpoint: { every: 0 }
`;

/** Each stage by its arguments, without what it writes. */
const configured = () => ["--config", at("config.yaml")];
const stages: Record<string, () => string[]> = {
  sft: () => ["sft", "--data", at("text.txt"), "--held-out", at("text.txt"), ...configured()],
  tuned: () => [...stages.sft(), "--model", at("sft"), "--set", "lora.rank=2"],
  collect: () => [
    "collect",
    "--model",
    at("sft"),
    "--prompts",
    at("prompts.jsonl"),
    "--samples",
    "4",
    "--max-tokens",
    "30",
  ],
  reward: () => ["reward", "--model", at("sft"), "--data", at("preferences.jsonl"), ...configured()],
  ppo: () => [
    "ppo",
    "--model",
    at("sft"),
    "--reward",
    at("reward"),
    "--prompts",
    at("prompts.jsonl"),
    "--pretraining",
    at("text.txt"),
    ...configured(),
  ],
  adapter: () => [
    "reward",
    "--model",
    at("sft"),
    "--data",
    at("preferences.jsonl"),
    "--set",
    "lora.rank=2",
    ...configured(),
  ],
  lora: () => [...stages.ppo(), "--reward", at("adapter"), "--set", "lora.rank=2"],
  grpo: () => [
    "grpo",
    "--model",
    at("sft"),
    "--reward",
    at("reward"),
    "--prompts",
    at("prompts.jsonl"),
    ...configured(),
  ],
  functions: () => [...stages.grpo(), "--reward", at("reward.mjs"), "--set", "lora.rank=2"],
  eval: () => [
    "eval",
    "--base",
    at("sft"),
    "--policy",
    at("ppo"),
    "--reward",
    at("reward"),
    "--prompts",
    at("prompts.jsonl"),
    ...configured(),
  ],
};
const seconds: Record<string, number> = {};
/** A file of reward functions: how often a letter occurs, later. */
const functions = (letter: string) =>
  `export const often = async (prompts, completions) => completions.map((text) => text.split("${letter}").length - 1);\n`;

/** All that a stage leaves, times and memory aside. */
async function left(name: string): Promise<Record<string, string>> {
  const files = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
  const found: Record<string, string> = {};
  for (const { name: file, parentPath } of files) {
    const path = join(parentPath, file);
    if (!path.startsWith(`${at(name)}/`) && path !== at(name) && !path.startsWith(at(`${name}.partial`))) continue;
    if (file === "report.html") continue; // the report names its folder, and draws what is compared here
    const bytes = await readFile(path);
    let text = bytes.toString("latin1");
    if (file === "stages.json") text = text.replace(/"(seconds|peakBytes|tokensPerSecond|crc)": "?[\w.+-]+"?/g, "");
    if (file === "SHA256SUMS") text = text.replace(/.*  report\.html\n/, "");
    found[path.slice(at(name).length)] = text;
  }
  return found;
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-resume-"));
  await writeFile(at("config.yaml"), config);
  await writeFile(at("reward.mjs"), functions("e"));
  const words = Array.from({ length: 60 }, () =>
    Array.from({ length: 2 + random.below(6) }, () => String.fromCharCode(97 + random.below(26))).join(""),
  );
  const said = (length: number) => Array.from({ length }, () => words[random.below(words.length)]).join(" ");
  await writeFile(at("text.txt"), said(1500));
  await writeFile(
    at("prompts.jsonl"),
    Array.from({ length: 20 }, () => JSON.stringify({ prompt: said(3) })).join("\n"),
  );
  const preference = () =>
    JSON.stringify({ prompt: said(3), chosen: ` ${said(4)}`, rejected: ` ${said(4)}`, agreement: 0.75 });
  await writeFile(at("preferences.jsonl"), Array.from({ length: 30 }, preference).join("\n"));
  for (const [name, args] of Object.entries(stages)) {
    const begun = performance.now();
    await rlhf([...args(), "--out", at(name)]);
    seconds[name] = (performance.now() - begun) / 1000;
  }
});
afterAll(() => rm(folder, { recursive: true }));

describe.each(Object.keys(stages))("rlhf %s", (stage) => {
  test(`killed at ${KILLS} random instants and resumed, ends with the bits and the lines of the unbroken run`, async () => {
    const wanted = await left(stage);
    expect(Object.keys(wanted).length).toBeGreaterThan(0);
    let kills = 0;
    for (let round = 0; kills < KILLS; round++) {
      const name = `${stage}-killed-${round}`;
      for (let ends = false; !ends;) {
        const child = start([...stages[stage](), "--out", at(name), "--resume"]);
        const timer =
          kills < KILLS ? setTimeout(() => child.kill("SIGKILL"), 1000 * seconds[stage] * random.uniform()) : undefined;
        const { code, signal, said } = await ended(child);
        clearTimeout(timer);
        if (signal === "SIGKILL") kills++;
        else {
          expect([code, said]).toEqual([0, expect.any(String)]);
          ends = true;
        }
      }
      expect(await left(name)).toEqual(wanted);
      await rm(at(name), { recursive: true });
    }
  }, 1_000_000);
});

describe("a run", () => {
  const sft = (name: string, ...more: string[]) => [...stages.sft(), "--out", at(name), ...more];
  const begun = (name: string) => startUntil(sft(name), at(name, "checkpoints"), /^sft-\d+\.safetensors$/);
  const same = async (name: string) => expect(await left(name)).toEqual(await left("sft"));

  test("that is interrupted finishes its step, saves, says how to go on, and goes on to the same bits", async () => {
    const name = "it's $topped";
    const child = await begun(name);
    child.kill("SIGINT");
    const { code, said } = await ended(child);
    expect(code).toBe(130);
    expect(said).toMatch(/sft is saved at step \d+ of 24\nrlhf: go on with: rlhf sft .*--resume/);
    const [, command] = /go on with: (.*)/.exec(said)!;
    await run("bash", ["-c", `rlhf() { "${process.execPath}" "${main}" "$@"; }; ${command}`]);
    await same(name);
  });

  test("that samples keeps what it has when it is interrupted", async () => {
    const args = [...stages.collect(), "--out", at("sampled")];
    const child = await startUntil(args, at("sampled.partial", "checkpoints"), /collect/);
    child.kill("SIGTERM");
    const { code, said } = await ended(child);
    expect([code, said]).toEqual([143, expect.stringContaining("what was sampled is saved")]);
    const kept = (await readFile(at("sampled.partial", "checkpoints", "collect.jsonl"), "utf8")).trim().split("\n");
    expect(kept.length).toBeGreaterThan(0);
    await rlhf([...args, "--resume"]);
    expect(await left("sampled")).toEqual(await left("collect"));
  });

  test("that is interrupted twice ends at once, in the middle of a step", async () => {
    const child = start(sft("twice", "--set", "sft.batchTokens=400000"));
    const end = ended(child);
    const saying = (text: string) =>
      new Promise<void>((resolve) => child.stderr.on("data", (chunk: Buffer) => chunk.includes(text) && resolve()));
    await saying("started, 24 steps");
    const told = saying("once more stops it at once");
    child.kill("SIGINT");
    await told;
    child.kill("SIGINT");
    expect(await end).toMatchObject({ signal: "SIGINT" });
    expect(await readdir(at("twice"))).not.toContain("checkpoints");
  });

  test("has its folder for itself, until it ends", async () => {
    const child = await begun("shared");
    child.kill("SIGSTOP");
    for (const more of [[], ["--resume"]]) {
      const { code, said } = await ended(start(sft("shared", ...more)));
      expect([code, said]).toEqual([
        1,
        expect.stringMatching(new RegExp(`^rlhf: .*shared.*process ${child.pid} on .* is at work`)),
      ]);
    }
    child.kill("SIGKILL");
    await ended(child);
    const { code, said } = await ended(start(sft("shared")));
    expect([code, said]).toEqual([1, expect.stringContaining("go on with --resume")]);
    await rlhf(sft("shared", "--resume"));
    await same("shared");
  });

  test("goes on with the data and the model that it began with, and names what is another", async () => {
    const child = await begun("begun");
    child.kill("SIGKILL");
    await ended(child);
    await writeFile(at("other.txt"), `${await readFile(at("text.txt"), "utf8")} more`);
    const text = at("text.txt");
    const refused = async (args: string[], wanted: RegExp) => {
      const { code, said } = await ended(start([...args, "--resume"]));
      expect([code, said]).toEqual([1, expect.stringMatching(wanted)]);
    };
    const other = (place: number) =>
      sft("begun").map((arg, i, all) => (arg === text && all.indexOf(text) + 2 * place === i ? at("other.txt") : arg));
    await refused(other(0), /^rlhf: --resume: --data: .*other\.txt is not what .*begun began with/);
    await refused(other(1), /^rlhf: --resume: --held-out: .*other\.txt/);
    await refused([...sft("begun"), "--model", at("sft")], /^rlhf: --resume: --model: .*sft is not what/);
    await rlhf(sft("begun", "--resume"));
    await same("begun");
    // weights of the same shapes
    const scored = (model: string) => [
      "reward",
      "--model",
      model,
      "--data",
      at("preferences.jsonl"),
      ...configured(),
      "--out",
      at("weighed"),
    ];
    await rlhf(scored(at("sft")));
    await refused(scored(at("ppo")), /^rlhf: --resume: --model: .*ppo is not what/);
    await refused(
      [...scored(at("sft")), "--criterion", "agreement"],
      /^rlhf: --resume: --criterion: agreement is not what/,
    );
    await rlhf([...scored(at("sft")), "--resume"]);
    // functions of the same name
    await writeFile(at("other.mjs"), functions("a"));
    const rewarded = (file: string) => [...stages.functions(), "--reward", at(file), "--out", at("rewarded")];
    await rlhf(rewarded("reward.mjs"));
    await refused(rewarded("other.mjs"), /^rlhf: --resume: --reward: .*other\.mjs is not what/);
    await rlhf([...rewarded("reward.mjs"), "--resume"]);
  });

  test("that finds no room says so, and goes on from its last checkpoint once there is", async () => {
    const child = await begun("full");
    child.kill("SIGKILL");
    await ended(child);
    const before = await readdir(at("full", "checkpoints"));
    const { code, said } = await ended(
      start(["-c", `ulimit -f 60; exec "$0" "$@"`, process.execPath, main, ...sft("full", "--resume")], "bash"),
    );
    expect([code, said]).toEqual([
      1,
      expect.stringMatching(/rlhf: .*checkpoints\/sft-\d+\.safetensors cannot be written: EFBIG/),
    ]);
    expect((await readdir(at("full", "checkpoints"))).filter((name) => name.endsWith(".safetensors"))).toEqual(
      before.filter((name) => !name.startsWith(".")),
    );
    await rlhf(sft("full", "--resume"));
    await same("full");
  });

  test("in a folder that cannot be written is refused by the folder's name", async () => {
    await chmod(folder, 0o755);
    const nobody = process.getuid!() === 0 ? { uid: 65534, gid: 65534 } : {};
    if (!nobody.uid) await chmod(folder, 0o555);
    const { code, said } = await ended(start(sft("forbidden"), process.execPath, nobody));
    await chmod(folder, 0o755);
    expect([code, said]).toEqual([1, expect.stringMatching(/^rlhf: .*forbidden cannot be written: EACCES/)]);
  });
});
