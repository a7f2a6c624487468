import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { root } from "../../lib/device/native.js";
import { algorithms, device, loadModel, Tokenizer } from "../../lib/index.js";

// The command as users run it: a demo of a minute's hundredth, then every stage by itself on its files.

const run = promisify(execFile);
const rlhf = (args: string[], env: Record<string, string> = {}) =>
  run(process.execPath, [join(root, "dist/lib/cli/main.js"), ...args], {
    env: { ...process.env, ...env },
    maxBuffer: 1 << 26,
  });

let folder: string;
const at = (...parts: string[]) => join(folder, ...parts);
const rows = async (...parts: string[]) =>
  (await readFile(at(...parts), "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
const json = async (...parts: string[]) => JSON.parse(await readFile(at(...parts), "utf8")) as Record<string, unknown>;

const small = `
seed: 1
model: { layers: 1, width: 32, heads: 2, kvHeads: 2, mlp: 48, vocabulary: 300, context: 64 }
sft: { steps: 6, batchTokens: 512, sequenceLength: 64, warmup: 2 }
prompts: { minTokens: 4, maxTokens: 8 }
collect: { prompts: 20, samples: 3, maxTokens: 10 }
reward: { epochs: 1, warmup: 0 }
ppo: { updates: 3, rolloutBatch: 8, samples: 2, maxTokens: 10, ptxCoef: 0.1, ptxBatchTokens: 128 }
grpo: { updates: 3, rolloutBatch: 8, samples: 2, maxTokens: 10 }
eval: { prompts: 12, maxTokens: 10 }
checkpoint: { every: 0 }
`;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-cli-"));
  await writeFile(at("small.yaml"), small);
  await writeFile(at("plain.yaml"), small.replace(", ptxCoef: 0.1, ptxBatchTokens: 128", ""));
  await rlhf(["demo", "--config", at("small.yaml"), "--runs", folder, "--name", "first"]);
});
afterAll(() => rm(folder, { recursive: true }));

describe("rlhf demo", () => {
  test("leaves the files that others build on", async () => {
    for (const model of ["base", "reward", "policy"])
      for (const file of ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
        expect((await readFile(at("first", model, file))).length).toBeGreaterThan(10);
    expect((await rows("first", "completions.jsonl")).length).toBe(60);
    expect((await rows("first", "preferences.jsonl"))[0]).toMatchObject({
      prompt: expect.any(String),
      chosen: expect.any(String),
      rejected: expect.any(String),
      agreement: expect.any(Number),
    });
    expect((await rows("first", "eval.jsonl")).length).toBe(12);
    expect(await readFile(at("first", "config.yaml"), "utf8")).toContain("rolloutBatch: 8");
    const stages = new Set((await rows("first", "metrics.jsonl")).map(({ stage }) => stage));
    expect([...stages]).toEqual(["sft", "reward", "ppo"]);
    const summary = await json("first", "summary.json");
    for (const name of [
      "seconds",
      "winRate",
      "klPerCompletion",
      "rewardBefore",
      "rewardAfter",
      "rewardModelAccuracy",
      "peakBytes",
      "threads",
      "bitsPerByte",
    ])
      expect([name, typeof summary[name]]).toEqual([name, "number"]);
    expect(summary.peakBytes).toBeGreaterThan(1e6);
    expect(Object.keys(summary.stages as object)).toEqual(["sft", "collect", "label", "reward", "ppo", "eval"]);
    expect(summary.winRateInterval).toHaveLength(2);
    expect(summary.policySha256).toMatch(/^[0-9a-f]{64}$/);
    expect(typeof summary.isa).toBe("string");
    const page = await readFile(at("first", "report.html"), "utf8");
    for (const part of ["uPlot", "The chain", "Samples", "Reward against KL"]) expect(page).toContain(part);
    expect(page).not.toMatch(/(src|href)="http/);
  });

  test("ends with the same policy on another instruction set and number of threads", async () => {
    await rlhf(["demo", "--config", at("small.yaml"), "--runs", folder, "--name", "scalar"], {
      RLHF_ISA: "scalar",
      RLHF_NUM_THREADS: "3",
    });
    expect((await json("scalar", "summary.json")).policySha256).toBe(
      (await json("first", "summary.json")).policySha256,
    );
  });

  test("has another algorithm of the list for its policy, if asked", async () => {
    const args = ["demo", "--config", at("small.yaml"), "--runs", folder, "--name", "grpo"];
    await rlhf([...args, "--policy", "grpo"]);
    const [ppo, grpo] = [await json("first", "summary.json"), await json("grpo", "summary.json")];
    expect(Object.keys(grpo.stages as object)).toEqual(["sft", "collect", "label", "reward", "grpo", "eval"]);
    expect([ppo.algorithm, grpo.algorithm]).toEqual(["ppo", "grpo"]);
    expect(grpo.policySha256).not.toBe(ppo.policySha256);
    const page = await readFile(at("grpo", "report.html"), "utf8");
    for (const part of ["<h3>GRPO</h3>", "Group relative policy optimisation: Reward against KL"])
      expect(page).toContain(part);
    for (const name of ["base", "reward"])
      expect(await readFile(at("grpo", name, "model.safetensors"))).toEqual(
        await readFile(at("first", name, "model.safetensors")),
      );
    const wrong = (...more: string[]) => rlhf([...args, ...more]).catch(({ stderr }: { stderr: string }) => stderr);
    expect(await wrong("--resume")).toMatch(/--resume: --policy: ppo is not what .*grpo began with/);
    expect(await wrong("--policy", "sft")).toMatch(/^rlhf: --policy: sft trains no policy, wanted ppo or grpo/m);
  });

  test("does not resume a run of another configuration", async () => {
    await expect(
      rlhf([
        "demo",
        "--config",
        at("small.yaml"),
        "--runs",
        folder,
        "--name",
        "first",
        "--resume",
        "--set",
        "ppo.updates=4",
      ]),
    ).rejects.toMatchObject({
      stderr: expect.stringContaining("goes on only as it began"),
    });
  });
});

describe("a stage by itself", () => {
  const first = (...parts: string[]) => at("first", ...parts);
  const config = () => ["--config", at("small.yaml")];

  test("collect samples, and logp finds the same log-probs, bit for bit, for any micro-batch", async () => {
    await writeFile(
      at("prompts.jsonl"),
      ["We the people", " The state of the union is", " our"].map((prompt) => JSON.stringify({ prompt })).join("\n") +
        "\n",
    );
    const options = [
      "--model",
      first("base"),
      "--prompts",
      at("prompts.jsonl"),
      "--samples",
      "3",
      "--max-tokens",
      "12",
      "--temperature",
      "0.7",
      "--seed",
      "9",
    ];
    await rlhf(["collect", ...options, "--out", at("c.jsonl")]);
    await rlhf(["collect", ...options, "--out", at("c2.jsonl")], { RLHF_ISA: "scalar", RLHF_NUM_THREADS: "1" });
    expect(await readFile(at("c2.jsonl"), "utf8")).toBe(await readFile(at("c.jsonl"), "utf8"));
    const collected = await rows("c.jsonl");
    expect(collected).toHaveLength(9);
    expect(collected[0]).toMatchObject({
      prompt: "We the people",
      temperature: 0.7,
      prompt_ids: expect.any(Array),
      completion_ids: expect.any(Array),
      completion: expect.any(String),
    });
    for (const microBatch of ["1", "4", "64"]) {
      await rlhf([
        "logp",
        "--model",
        first("base"),
        "--data",
        at("c.jsonl"),
        "--out",
        at("l.jsonl"),
        "--micro-batch",
        microBatch,
      ]);
      const found = await rows("l.jsonl");
      expect(found.map(({ logprobs }) => logprobs)).toEqual(collected.map(({ logprobs }) => logprobs));
      expect((found[0].entropy as number[]).every((h) => h > 0)).toBe(true);
    }
    await rlhf(["logp", "--model", first("reward"), "--data", at("c.jsonl"), "--out", at("v.jsonl")]);
    expect(((await rows("v.jsonl"))[0].value as number[]).length).toBe(
      (collected[0].completion_ids as number[]).length,
    );
    await rlhf(["collect", ...options, "--top-k", "4", "--out", at("t.jsonl")]);
    for (const row of await rows("t.jsonl")) {
      const [whole, cut] = [row.logprobs as number[], row.truncated_logprobs as number[]];
      whole.forEach((logp, i) => expect(cut[i]).toBeGreaterThanOrEqual(logp));
    }
  });

  test("label, reward, ppo, eval and sft go from file to file", async () => {
    await rlhf(["label", "--data", first("completions.jsonl"), "--out", at("p.jsonl"), ...config()]);
    expect(await readFile(at("p.jsonl"), "utf8")).toBe(await readFile(first("preferences.jsonl"), "utf8"));
    const { stdout: judged } = await rlhf([
      "reward",
      "--model",
      first("base"),
      "--data",
      at("p.jsonl"),
      "--out",
      at("r"),
      ...config(),
    ]);
    expect(judged).toMatch(/held-out comparisons right/);
    expect(await readFile(at("r", "model.safetensors"))).toEqual(await readFile(first("reward", "model.safetensors")));
    const ppo = [
      "ppo",
      "--model",
      first("base"),
      "--reward",
      at("r"),
      "--prompts",
      at("prompts.jsonl"),
      "--out",
      at("o"),
      ...config(),
    ];
    await rlhf([...ppo, "--pretraining", first("held-out.txt")]);
    const { stdout } = await rlhf([
      "eval",
      "--base",
      first("base"),
      "--policy",
      at("o"),
      "--prompts",
      at("prompts.jsonl"),
      "--reward",
      at("r"),
      "--out",
      at("e.jsonl"),
      ...config(),
    ]);
    expect(stdout).toContain("winRate");
    expect(await rows("e.jsonl")).toHaveLength(3);
    const { stdout: trained } = await rlhf([
      "sft",
      "--data",
      first("held-out.txt"),
      "--held-out",
      first("held-out.txt"),
      "--model",
      at("o"),
      "--out",
      at("s"),
      ...config(),
    ]);
    expect(trained).toMatch(/bits per held-out byte/);
  });

  const grpo = (reward: string, out: string) => [
    "grpo",
    "--model",
    first("base"),
    "--reward",
    reward,
    "--prompts",
    at("prompts.jsonl"),
    "--out",
    at(out),
    ...config(),
  ];

  test("grpo learns from a reward model, and its page has every curve", async () => {
    const { stdout } = await rlhf(grpo(first("reward"), "g"));
    expect(stdout).toMatch(/g: 3 updates of 8 completions$/m);
    const told = await rows("g", "metrics.jsonl");
    expect(told.map(({ stage, step, kl }) => [stage, step, typeof kl])).toEqual(
      [1, 2, 3].map((step) => ["grpo", step, "number"]),
    );
    expect(told[0].kl).toBe(0);
    expect(new Set(told.map(({ reference }) => reference)).size).toBe(1);
    const page = await readFile(at("g", "report.html"), "utf8");
    for (const { title } of algorithms.grpo.charts) expect(page).toContain(`<b>${title}</b>`);
    const weights = (name: string) => readFile(at(name, "model.safetensors"));
    expect(await weights("g")).not.toEqual(await readFile(first("base", "model.safetensors")));
    await rlhf(grpo(first("reward"), "g2"), { RLHF_ISA: "scalar", RLHF_NUM_THREADS: "3" });
    expect(await weights("g2")).toEqual(await weights("g"));
  });

  test("grpo learns from the functions of a file, with prompts and completions as texts", async () => {
    const file = at("reward.mjs");
    await writeFile(
      file,
      `import { appendFileSync } from "node:fs";
      export const length = (prompts, completions, about) => {
        appendFileSync(${JSON.stringify(at("asked.jsonl"))}, JSON.stringify({ prompts, completions, stopped: about.map((one) => one.stopped) }) + "\\n");
        return completions.map((text) => text.length / 100);
      };
      export const one = async (prompts) => prompts.map(() => 1);
      export const notAFunction = 3;`,
    );
    await rlhf([...grpo(file, "gf"), "--set", "grpo.klCoef=0"]);
    const asked = (await rows("asked.jsonl")) as { prompts: string[]; completions: string[]; stopped: boolean[] }[];
    expect(
      asked.map(({ prompts, completions, stopped }) => [prompts.length, completions.length, stopped.length]),
    ).toEqual(Array(3).fill([8, 8, 8]));
    expect(["We the people", " The state of the union is", " our"]).toContain(asked[0].prompts[0]);
    const told = (await rows("gf", "metrics.jsonl")) as Record<string, number>[];
    asked.forEach(({ completions }, i) =>
      expect(told[i].reward).toBeCloseTo(completions.reduce((sum, text) => sum + 1 + text.length / 100, 0) / 8, 5),
    );
    expect(told[0]).not.toHaveProperty("kl"); // klCoef is 0: there is no reference
    expect(told[0]).not.toHaveProperty("reference");
    await writeFile(at("bad.mjs"), "export const short = () => [1];");
    await expect(rlhf(grpo(at("bad.mjs"), "gb"))).rejects.toMatchObject({
      stderr: expect.stringContaining("short gave 1 scores for 8 completions"),
    });
    await writeFile(at("none.mjs"), "export const name = 1;");
    await expect(rlhf(grpo(at("none.mjs"), "gn"))).rejects.toMatchObject({
      stderr: expect.stringMatching(/^rlhf: .*none\.mjs exports no function/m),
    });
    await expect(
      rlhf(["ppo", ...grpo(file, "gp").slice(1), "--set", "ppo.ptxCoef=0", "--config", at("plain.yaml")]),
    ).rejects.toMatchObject({
      stderr: expect.stringMatching(/--reward: .*reward\.mjs holds functions, ppo wants a reward model/),
    });
  });

  test("a device that is not there, or lacks an op, is refused by name", async () => {
    const refused = async (...args: string[]) =>
      ((await rlhf([...grpo(first("reward"), "gd"), ...args]).catch((error: unknown) => error)) as { stderr: string })
        .stderr;
    expect(await refused("--device", "tpu")).toMatch(/'--device <kind>' argument 'tpu' is invalid.*cpu, cuda, webgpu/);
    expect(await refused("--device", "cpu", "--threads", "2000")).toMatch(/^rlhf: threads is 2000/m);
    const hasGpu = await device("cuda").then(
      (on) => on.close().then(() => true),
      () => false,
    );
    if (!hasGpu) expect(await refused("--device", "cuda")).toMatch(/^rlhf: cuda: /m);
    await rlhf([...grpo(first("reward"), "gd"), "--device", "cpu"]);
    expect(await readFile(at("gd", "model.safetensors"))).toEqual(await readFile(at("g", "model.safetensors")));
  });

  test("sft takes rows from .json, and refuses a file whose name does not say what it is", async () => {
    const taught = [{ prompt: "We the people of", completion: " our Union is strong" }];
    await writeFile(at("d.json"), JSON.stringify(taught, null, 1));
    const sft = (data: string) => [
      "sft",
      "--data",
      at(data),
      "--model",
      first("base"),
      "--out",
      at("dj"),
      ...config(),
      "--set",
      "sft.batchTokens=1",
    ];
    await rlhf(sft("d.json"));
    const tokenizer = await Tokenizer.load(first("base"));
    expect((await rows("dj", "metrics.jsonl"))[0].tokens).toBe(tokenizer.encode(taught[0].completion).length + 1);
    await writeFile(at("d.csv"), "prompt,completion");
    await expect(rlhf(sft("d.csv"))).rejects.toMatchObject({
      stderr: expect.stringMatching(/^rlhf: .*d\.csv: wanted a text, \.txt or \.md, or rows/),
    });
  });

  test("eval's wins are the reward model's where there is one, and it says whose they are", async () => {
    const judged = [
      "eval",
      "--base",
      first("base"),
      "--policy",
      first("policy"),
      "--prompts",
      at("prompts.jsonl"),
      ...config(),
    ];
    const { stdout: byWords } = await rlhf([...judged, "--out", at("ew.jsonl")]);
    expect(byWords).toMatch(/judge +sentiment lexicon/);
    const { stdout: byReward } = await rlhf([...judged, "--out", at("er.jsonl"), "--reward", first("reward")]);
    expect(byReward).toMatch(/judge +reward model/);
    const wins = (await rows("er.jsonl")).filter(
      ({ policyReward, baseReward }) => (policyReward as number) > (baseReward as number),
    ).length;
    expect(byReward).toMatch(new RegExp(`wins +${wins}\\b`));
    expect(await json("first", "summary.json")).toMatchObject({ judge: "sentiment lexicon" });
  });

  test("sft on demonstrations learns the completions, and their end, not the prompts", async () => {
    const demonstrations = ["We the people of", "The state of the"].map((prompt) => ({
      prompt,
      completion: " our Union is strong",
    }));
    await writeFile(at("d.jsonl"), demonstrations.map((row) => JSON.stringify(row)).join("\n") + "\n");
    await rlhf([
      "sft",
      "--data",
      at("d.jsonl"),
      "--held-out",
      at("d.jsonl"),
      "--model",
      first("base"),
      "--out",
      at("d"),
      ...config(),
      "--set",
      "sft.batchTokens=1",
    ]);
    const tokenizer = await Tokenizer.load(first("base"));
    const learnt = tokenizer.encode(demonstrations[0].completion).length + 1;
    const steps = (await rows("d", "metrics.jsonl")).map(({ tokens }) => tokens);
    expect(steps).toEqual(Array(6).fill(learnt));
  });

  test("all tokens that end a text stop a completion, and go where the model goes", async () => {
    await cp(first("base"), at("several"), { recursive: true });
    const tokenizer = await Tokenizer.load(first("base"));
    const [e, t, o] = ["e", "t", "o"].map((letter) => tokenizer.id(letter)!);
    const ends = [tokenizer.eosId!, e, t];
    await writeFile(
      at("several", "config.json"),
      JSON.stringify({ ...(await json("several", "config.json")), eos_token_id: ends }),
    );
    await writeFile(at("several", "generation_config.json"), JSON.stringify({ eos_token_id: [o] }));
    const asked = ["--prompts", at("prompts.jsonl"), "--samples", "8", "--max-tokens", "30"];
    const collected = ["collect", "--model", at("several"), ...asked, "--out", at("several.jsonl")];
    await expect(rlhf(collected)).rejects.toMatchObject({
      stderr: expect.stringMatching(/several\/config\.json is damaged, or was changed.*check --accept/),
    });
    await rlhf(["check", "--accept", at("several")]);
    await rlhf(collected);
    const found = (await rows("several.jsonl")).map(({ completion_ids }) => completion_ids as number[]);
    const stops = new Set([...ends, o]);
    for (const ids of found) expect(ids.slice(0, -1).some((id) => stops.has(id))).toBe(false);
    expect(new Set(found.map((ids) => ids.at(-1)!).filter((id) => stops.has(id))).size).toBeGreaterThan(1);
    await rlhf([
      "sft",
      "--data",
      first("held-out.txt"),
      "--model",
      at("several"),
      "--out",
      at("several-taught"),
      ...config(),
    ]);
    expect((await json("several-taught", "config.json")).eos_token_id).toEqual(ends);
    expect(await json("several-taught", "generation_config.json")).toEqual({ eos_token_id: [o] });
  });

  test("sft tells how many demonstrations are cut, and judges by the bytes that are left", async () => {
    const [short, long] = [" our Union", " strong".repeat(40)];
    await writeFile(
      at("long.jsonl"),
      [short, long].map((completion) => JSON.stringify({ prompt: "We", completion })).join("\n"),
    );
    const sft = [
      "sft",
      "--data",
      at("long.jsonl"),
      "--held-out",
      at("long.jsonl"),
      "--model",
      first("base"),
      "--out",
      at("cut"),
      ...config(),
    ];
    expect((await rlhf(sft)).stderr).toContain("1 of 2 are cut to the 64 tokens of sft.sequenceLength");
    const { stages } = (await json("cut", "stages.json")) as {
      stages: { result: { heldOutBytes: number; cut: number } }[];
    };
    const tokenizer = await Tokenizer.load(first("base"));
    const kept = tokenizer.decode(tokenizer.encode(long).subarray(0, 65 - tokenizer.encode("We").length));
    expect(kept.length).toBeLessThan(long.length);
    expect(stages[0].result).toMatchObject({ cut: 1, heldOutBytes: short.length + kept.length });
  });

  test("reward is judged on a file of its own, and draws its curves", async () => {
    await writeFile(
      at("judges.jsonl"),
      (await readFile(first("preferences.jsonl"), "utf8")).split("\n").slice(0, 7).join("\n"),
    );
    const { stdout } = await rlhf([
      "reward",
      "--model",
      first("base"),
      "--data",
      first("preferences.jsonl"),
      "--held-out",
      at("judges.jsonl"),
      "--out",
      at("rh"),
      ...config(),
    ]);
    expect(stdout).toMatch(/of 7 held-out comparisons right/);
    const { stages } = (await json("rh", "stages.json")) as { stages: { result: object }[] };
    const all = (await rows("first", "preferences.jsonl")).length;
    expect(stages[0].result).toMatchObject({ comparisons: all, heldOut: 7 });
    const page = await readFile(at("rh", "report.html"), "utf8");
    for (const part of ["uPlot", "of 7 held-out comparisons right", "Calibration", "Reward model"])
      expect(page).toContain(part);
    for (const part of ["Clip fraction", "Base model"]) expect(page).not.toContain(part);
  });

  test("reward says so where there are too few comparisons to hold any out", async () => {
    await writeFile(
      at("few.jsonl"),
      (await readFile(first("preferences.jsonl"), "utf8")).split("\n").slice(0, 3).join("\n"),
    );
    const { stdout } = await rlhf([
      "reward",
      "--model",
      first("base"),
      "--data",
      at("few.jsonl"),
      "--out",
      at("rf"),
      ...config(),
    ]);
    expect(stdout).toMatch(/: no comparisons held out to judge it$/m);
    expect(await readFile(at("rf", "report.html"), "utf8")).not.toContain("NaN");
  });
  test("reward learns a named criterion, and the labels of it alone", async () => {
    const turned = (await rows("first", "preferences.jsonl")).map(({ agreement, ...row }) => ({
      ...row,
      agreement: 1,
      brief: agreement,
    }));
    await writeFile(at("criteria.jsonl"), turned.map((row) => JSON.stringify(row)).join("\n"));
    await rlhf([
      "reward",
      "--model",
      first("base"),
      "--data",
      at("criteria.jsonl"),
      "--criterion",
      "brief",
      "--out",
      at("rc"),
      ...config(),
    ]);
    expect(await readFile(at("rc", "model.safetensors"))).toEqual(await readFile(first("reward", "model.safetensors")));
    await expect(
      rlhf([
        "reward",
        "--model",
        first("base"),
        "--data",
        at("criteria.jsonl"),
        "--criterion",
        "kind",
        "--out",
        at("rk"),
        ...config(),
      ]),
    ).rejects.toMatchObject({ stderr: expect.stringContaining('criteria.jsonl:1: the column "kind" is missing') });
  });

  test("score gives r of completions and P(A over B) of pairs, from a file or standard input", async () => {
    const given = [
      { prompt: "We the people", completion: " of", id: 7 },
      { prompt: "", completion: " We" },
      { prompt: "We the people", chosen: " of", rejected: " are" },
      { prompt: "We the people", a: " are", b: " of" },
      { prompt: "We the people", completion: " of<|endoftext|>" },
      { prompt: "We the people", completion: " of", sampled: true },
      { prompt: "We the people", completion: " of", completion_ids: [1, 2] },
      { prompt: "We the people", completion: " of", finish_reason: "length" },
    ];
    await writeFile(at("s.jsonl"), given.map((row) => JSON.stringify(row)).join("\n"));
    await rlhf(["score", "--model", first("reward"), "--data", at("s.jsonl"), "--out", at("scored.jsonl")]);
    const scored = (await rows("scored.jsonl")) as Record<string, number>[];
    expect(scored).toMatchObject(given);
    const [one, , pair, turned, spelt, ...cut] = scored;
    expect(spelt.score).toBe(one.score); // where PPO reads it: at the end
    for (const { score } of cut) expect(score).not.toBe(one.score);
    expect(new Set(cut.map(({ score }) => score)).size).toBe(1);
    expect(one.r).toBeCloseTo(1 / (1 + Math.exp(-one.score)), 12);
    expect(pair.r_chosen).toBe(one.r);
    const logit = (p: number) => Math.log(p / (1 - p));
    expect(logit(pair.p)).toBeCloseTo(logit(pair.r_chosen) - logit(pair.r_rejected), 6);
    expect(pair.p + turned.p).toBeCloseTo(1, 12);
    const piped = run(process.execPath, [join(root, "dist/lib/cli/main.js"), "score", "--model", first("reward")]);
    piped.child.stdin!.end(await readFile(at("s.jsonl")));
    expect((await piped).stdout).toBe(await readFile(at("scored.jsonl"), "utf8"));
    await expect(rlhf(["score", "--model", first("base"), "--data", at("s.jsonl")])).rejects.toMatchObject({
      stderr: expect.stringContaining("no score head"),
    });
  });

  test("data check tells of a file", async () => {
    const { stdout } = await rlhf(["data", "check", first("preferences.jsonl"), "--json"]);
    expect(JSON.parse(stdout)).toMatchObject({
      rows: { preferences: (await rows("first", "preferences.jsonl")).length },
      comparisons: { equal: 0, contradictions: 0 },
    });
    expect((await rlhf(["data", "check", first("preferences.jsonl")])).stdout).toMatch(
      /the longer one is preferred +\d+\.\d % \(95 %/,
    );
  });

  test("says what is wrong in one line", async () => {
    const wrong = async (...args: string[]) => {
      const error = (await rlhf(args).catch((thrown: unknown) => thrown)) as { code: number; stderr: string };
      expect(error.code).toBe(1);
      return error.stderr.trim();
    };
    expect(await wrong("reward", "--model", first("base"), "--data", at("none.jsonl"), "--out", at("x"))).toMatch(
      /^rlhf: .*none\.jsonl/,
    );
    expect(await wrong("demo", "--set", "ppo.klCof=1", "--runs", folder, "--name", "x")).toMatch(
      /^rlhf: --set ppo\.klCof=1: .*ppo\.klCoef\?$/,
    );
    expect(await wrong("demo", "--set", "ppo.samples=3", "--runs", folder, "--name", "x")).toMatch(
      /ppo\.samples is 3, wanted a divisor of ppo\.rolloutBatch$/,
    );
    expect(await wrong("demo", "--set", "ppo.samples=64", "--runs", folder, "--name", "x")).toMatch(
      /ppo\.minibatches is 2, wanted at most the prompts of an update/,
    );
    for (let i = 0; i < 3; i++)
      // of two files that are missing, the same one is told each time
      expect(await wrong("collect", "--model", folder, "--prompts", at("prompts.jsonl"), "--out", at("x"))).toMatch(
        /^rlhf: .*config\.json/,
      );
    const tokenised = async (model: string, name: string) => {
      await cp(first(model), at(name), { recursive: true });
      const file = at(name, "tokenizer.json");
      const tokenizer = JSON.parse(await readFile(file, "utf8")) as { added_tokens: object[] };
      tokenizer.added_tokens.push({ id: 300, content: "<more>", special: true });
      await writeFile(file, JSON.stringify(tokenizer));
      await rm(at(name, "SHA256SUMS"));
      return at(name);
    };
    const files = ["--prompts", at("prompts.jsonl"), "--out", at("x")];
    const other = await tokenised("base", "other");
    expect(await wrong("collect", "--model", other, ...files)).toMatch(
      /^rlhf: --model: .*other has a vocabulary of 300, the tokenizer has ids up to 300/,
    );
    expect(await wrong("collect", "--model", first("reward"), ...files)).toMatch(
      /^rlhf: --model: .*reward has a score head, wanted a language model/,
    );
    expect(await wrong("ppo", "--model", first("base"), "--reward", first("base"), ...files)).toMatch(
      /^rlhf: --reward: .*base has no score head/,
    );
    expect(await wrong("eval", "--base", first("base"), "--policy", first("reward"), ...files)).toMatch(
      /^rlhf: --policy: .*reward has a score head/,
    );
    expect(await wrong("reward", "--model", other, "--data", first("preferences.jsonl"), "--out", at("x"))).toMatch(
      /^rlhf: --model: .*other has a vocabulary/,
    );
    expect(await wrong("sft", "--model", other, "--data", first("held-out.txt"), "--out", at("x"))).toMatch(
      /^rlhf: --model: .*other has a vocabulary/,
    );
    expect(await wrong("score", "--model", await tokenised("reward", "judge"), "--data", at("s.jsonl"))).toMatch(
      /^rlhf: --model: .*judge has a vocabulary/,
    );
    expect(await wrong("collect", "--samples", "0")).toContain("whole number from 1");
    expect(
      await wrong(
        "label",
        "--tty",
        "--data",
        first("completions.jsonl"),
        "--out",
        at("y"),
        "--set",
        "label.criteria=[agreement]",
      ),
    ).toMatch(/^rlhf: --set label\.criteria=\[agreement\]: .*names that differ/);
  });
});

describe("adapters", () => {
  const first = (...parts: string[]) => at("first", ...parts);
  const config = (...sets: string[]) => [
    "--config",
    at("small.yaml"),
    ...["lora.rank=2", ...sets].flatMap((set) => ["--set", set]),
  ];
  const logps = async (model: string) => {
    await rlhf(["logp", "--model", model, "--data", first("completions.jsonl"), "--out", at("a.jsonl")]);
    return (await rows("a.jsonl")).flatMap(({ logprobs }) => logprobs as number[]);
  };

  test("a demo with them leaves PEFT's files, which every stage reads", async () => {
    await rlhf(["demo", ...config("lora.targets=[q, v, down]"), "--runs", folder, "--name", "lora"]);
    for (const model of ["reward", "policy"]) {
      expect((await readdir(at("lora", model))).sort()).toEqual([
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
      ]);
      expect(await json("lora", model, "adapter_config.json")).toMatchObject({
        r: 2,
        target_modules: ["q_proj", "v_proj", "down_proj"],
      });
    }
    expect(await readFile(at("lora", "base", "model.safetensors"))).toEqual(
      await readFile(first("base", "model.safetensors")),
    );
    expect(((await json("lora", "summary.json")) as Record<string, number>).klPerCompletion).toBeGreaterThan(0);
    await rlhf([
      "score",
      "--model",
      at("lora", "reward"),
      "--data",
      first("completions.jsonl"),
      "--out",
      at("ls.jsonl"),
    ]);
    expect(new Set((await rows("ls.jsonl")).map(({ score }) => score)).size).toBeGreaterThan(10);
  });

  test("merge folds one into its base", async () => {
    await rlhf(["merge", "--model", at("lora", "policy"), "--out", at("merged")]);
    const [base, adapter, merged] = [
      await logps(first("base")),
      await logps(at("lora", "policy")),
      await logps(at("merged")),
    ];
    const apart = (x: number[]) => x.reduce((most, logp, i) => Math.max(most, Math.abs(logp - adapter[i])), 0);
    expect(apart(merged)).toBeLessThan(1e-4);
    expect(apart(base)).toBeGreaterThan(10 * apart(merged));
    await Tokenizer.load(at("merged"));
  });

  test("merge averages several models", async () => {
    await rlhf(["merge", "--model", first("reward"), at("lora", "reward"), "--out", at("average")]);
    const heads = [first("reward"), at("lora", "reward"), at("average")].map(async (folder) => {
      await using on = await device("cpu");
      const model = await loadModel(folder, on);
      return model.parameter("score").value.read();
    });
    const [one, other, mean] = await Promise.all(heads);
    expect([...mean]).toEqual(Array.from(one, (x, i) => Math.fround(Math.fround(x + other[i]) / 2)));
    expect([...mean]).not.toEqual([...one]);
  });

  test("training goes on from one, beside it as its reference", async () => {
    await writeFile(at("asked.jsonl"), JSON.stringify({ prompt: "We the people" }) + "\n");
    const ppo = [
      "ppo",
      "--model",
      at("lora", "policy"),
      "--reward",
      at("lora", "reward"),
      "--prompts",
      at("asked.jsonl"),
      "--out",
      at("further"),
    ];
    await rlhf([...ppo, ...config("lora.targets=[q, v, down]"), "--pretraining", first("held-out.txt")]);
    expect((await rows("further", "metrics.jsonl"))[0].kl).toBe(0);
    expect((await json("further", "adapter_config.json")).base_model_name_or_path).toBe(at("lora", "base"));
    const { stdout, stderr } = await rlhf([
      "sft",
      "--data",
      first("held-out.txt"),
      "--model",
      first("base"),
      "--out",
      at("taught"),
      ...config(),
    ]);
    expect(`${stdout}${stderr}`).not.toContain("NaN"); // of what was not asked for
    expect(await json("taught", "adapter_config.json")).toMatchObject({
      task_type: "CAUSAL_LM",
      base_model_name_or_path: first("base"),
    });
  });

  test("says what is wrong before the work", async () => {
    const wrong = (...args: string[]) => rlhf(args).catch(({ stderr }: { stderr: string }) => stderr.trim());
    const sft = ["sft", "--data", first("held-out.txt"), "--config", at("small.yaml")];
    expect(await wrong(...sft, "--model", at("lora", "policy"), "--out", at("x1"))).toMatch(
      /the model is an adapter: lora\.rank=2 goes on with it, rlhf merge/,
    );
    expect(await wrong(...sft, "--model", at("lora", "policy"), "--out", at("x2"), "--set", "lora.rank=2")).toMatch(
      /wants it merged first/,
    );
    expect(await wrong(...sft, "--model", first("base"), "--out", first("base"), "--set", "lora.rank=2")).toMatch(
      /holds the weights that the adapter is for/,
    );
    expect(await wrong(...sft, "--model", first("base"), "--out", at("x3"), "--set", "lora.alpha=2")).toMatch(
      /lora\.alpha has no use here: lora\.rank is 0/,
    );
    expect(await wrong("demo", "--set", "lora.rank=2", "--set", "lora.targets=[x]", "--name", "x")).toMatch(
      /lora\.targets.*wanted all-linear, or some of q, k/,
    );
    expect(await wrong("merge", "--model", first("base"), "--out", at("x4"))).toMatch(
      /is a whole model, wanted an adapter, or several models/,
    );
    expect(await wrong("merge", "--model", first("base"), first("reward"), "--out", at("x4"))).toMatch(
      /models\[1\] has other weights than models\[0\]/,
    );
    expect(await wrong("merge", "--model", at("lora", "policy"), "--out", at("lora", "base"))).toMatch(
      /holds the adapter's base/,
    );
  });
});

test("rlhf info and rlhf ops tell of the machine and the list", async () => {
  const info = JSON.parse((await rlhf(["info", "--json"], { RLHF_NUM_THREADS: "1" })).stdout) as Record<
    string,
    unknown
  >;
  expect(info).toMatchObject({
    threads: 1,
    isa: expect.any(String),
    isaAvailable: expect.arrayContaining(["scalar"]),
    devices: expect.objectContaining({ cpu: expect.any(String) }),
  });
  expect(info.fmaPeak).toBeGreaterThan(1e9);
  expect(info.readBandwidth).toBeGreaterThan(1e8);
  const ops = JSON.parse((await rlhf(["ops", "--json"])).stdout) as { name: string; cpu: string[]; webgpu: string[] }[];
  expect(ops.find(({ name }) => name === "linearPolicyLoss")).toMatchObject({
    cpu: ["f32", "bf16"],
    webgpu: ["f32", "f16"],
  });
  expect(ops.find(({ name }) => name === "gae")).toMatchObject({ cpu: ["f32"], webgpu: ["f32"] });
});
