import { mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, jest, test } from "@jest/globals";
import { readConfig } from "../../lib/cli/config/config.js";
import { Run } from "../../lib/cli/run/run.js";
import {
  device,
  ppo,
  ppoLearner,
  saveModel,
  sft,
  sftLearner,
  Transformer,
  type Completion,
  type Device,
  type Learner,
} from "../../lib/index.js";
import { episodes, lively, llama, ppoConfig } from "../models.js";
import { Random } from "../random.js";

// What a run keeps while it goes, and what it makes of it when that is damaged or a step fails.

let on: Device;
let folder: string;
let said: jest.SpiedFunction<typeof console.error>;
beforeAll(async () => {
  on = await device("cpu", { threads: 2 });
});
afterAll(() => on.close());
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-checkpoint-"));
  said = jest.spyOn(console, "error").mockImplementation(() => undefined);
});
afterEach(async () => {
  said.mockRestore();
  await rm(folder, { recursive: true });
});

const tiny = { ...llama, layers: 1, width: 4, heads: 1, kvHeads: 1, headSize: 4, mlp: 4, vocabulary: 7 };
const options = { learningRate: 1e-2, schedule: "constant" as const, warmup: 0, steps: 8 };
const batches = (step: number) => episodes(new Random(`batch ${step}`), 4, tiny.vocabulary);
const opened = async (resume: boolean, ...sets: string[]) =>
  Run.open(folder, await readConfig(undefined, ["checkpoint.every=0", ...sets]), on, resume);
const checkpoints = async () => (await readdir(join(folder, "checkpoints"))).sort();

/** What a checkpoint keeps of a learner. */
const partsOf = (learner: Learner) => ({
  models: learner.trained,
  optimizers: learner.optimizers,
  state: {
    get: () => learner.state() as unknown as Record<string, unknown>,
    set: (saved: Record<string, unknown>) => learner.restore(saved as unknown as ReturnType<typeof learner.state>),
  },
});

/** Trains until `steps` steps are done, with a checkpoint after each, and gives back the weights. */
async function trained(
  run: Run,
  steps: number,
  model = Transformer.random(tiny, "logits", on, 1),
  rate = options.learningRate,
) {
  const settings = { ...options, learningRate: rate, steps };
  using learner = sftLearner(model, settings);
  const checkpoint = run.checkpoint("sft", partsOf(learner));
  await checkpoint.restore();
  const began = learner.round;
  for await (const metrics of sft(model, batches, settings, learner)) {
    await run.log({ stage: "sft", ...metrics });
    await checkpoint.due(metrics.step, steps);
  }
  const weights = Buffer.concat(
    await Promise.all(
      [...model.parameters.values()].map(async ({ value }) => Buffer.from((await value.read()).buffer)),
    ),
  );
  model.dispose();
  return { began, weights };
}

describe("checkpoints", () => {
  test("are kept as many as asked for, the newest", async () => {
    using run = await opened(false, "checkpoint.keep=3");
    await trained(run, 6);
    expect(await checkpoints()).toEqual([4, 5, 6].map((step) => `sft-0000000${step}.safetensors`));
  });

  test("come after each twentieth of a stage, where nothing else is said", async () => {
    using run = await opened(false, "checkpoint.every=auto", "checkpoint.keep=100");
    const [clock, model] = [jest.spyOn(performance, "now"), Transformer.random(tiny, "logits", on, 1)];
    let now = 0;
    clock.mockImplementation(() => now);
    const checkpoint = run.checkpoint("sft", { models: { model }, optimizers: {} });
    for (let step = 1; step <= 60; step++) {
      now += 1000;
      await checkpoint.due(step, 60);
    }
    clock.mockRestore();
    expect((await checkpoints()).map((name) => Number(name.slice(4, 12)))).toEqual(
      Array.from({ length: 20 }, (_, i) => 3 * (i + 1)),
    );
    model.dispose();
  });

  test("cut off at any length are told of and set aside, and the one before is used: same bits, same lines", async () => {
    let wanted: Buffer;
    {
      using run = await opened(false);
      wanted = (await trained(run, 8)).weights;
    }
    const lines = await readFile(join(folder, "metrics.jsonl"), "utf8");
    const [, last] = await checkpoints();
    const path = join(folder, "checkpoints", last);
    const whole = await readFile(path);
    using run = await opened(true);
    const model = Transformer.random(tiny, "logits", on, 1);
    using learner = sftLearner(model, { ...options, steps: 8 });
    const optimizer = learner.optimizers.model;
    for (let length = 0; length < whole.length; length++) {
      await writeFile(path, whole.subarray(0, length));
      await run.checkpoint("sft", partsOf(learner)).restore();
      expect([length, optimizer.steps, learner.round]).toEqual([length, 7, 7]);
      await rename(`${path}.damaged`, path);
    }
    const garbled = Buffer.from(whole);
    garbled.write("9", whole.indexOf('\\"model\\":8') + '\\"model\\":'.length); // a header as before, of another step
    await writeFile(path, garbled);
    await run.checkpoint("sft", partsOf(learner)).restore();
    expect([optimizer.steps, String(said.mock.calls.at(-1))]).toEqual([
      7,
      expect.stringContaining("it is damaged: its SHA-256 is"),
    ]);
    await rm(`${path}.damaged`);
    await writeFile(path, whole.subarray(0, -1));
    expect(
      said.mock.calls.filter(([text]) => String(text).includes(`${last}: `) && String(text).includes("set aside"))
        .length,
    ).toBe(whole.length + 1);
    const { began, weights } = await trained(run, 8, model);
    expect(began).toBe(7);
    expect(weights.equals(wanted)).toBe(true);
    expect(await readFile(join(folder, "metrics.jsonl"), "utf8")).toBe(lines);
    expect(await checkpoints()).toEqual(["sft-00000007.safetensors", last, `${last}.damaged`]);
  });

  test("of which none is whole, of another model, or without the lines that came before, are refused", async () => {
    {
      using run = await opened(false);
      await trained(run, 3);
    }
    const refused = async (says: RegExp, model?: Transformer) => {
      using run = await opened(true);
      await expect(trained(run, 8, model)).rejects.toMatchObject({
        name: "TypeError",
        code: "RESUME",
        message: expect.stringMatching(says),
      });
    };
    await refused(
      /sft-00000003.safetensors: model\/embedding is \[7,4\], wanted \[8,4\]/,
      Transformer.random({ ...tiny, vocabulary: 8 }, "logits", on, 1),
    );
    const metrics = await readFile(join(folder, "metrics.jsonl"));
    await writeFile(join(folder, "metrics.jsonl"), metrics.subarray(0, -1));
    await refused(new RegExp(`metrics.jsonl has ${metrics.length - 1} bytes, wanted at least the ${metrics.length}`));
    for (const name of await checkpoints()) await writeFile(join(folder, "checkpoints", name), "");
    await refused(/no checkpoint of sft is whole: .*sft-00000003.*sft-00000002/);
  });

  test("are for the kind of device that the run began on", async () => {
    const config = await readConfig(undefined);
    const other = Object.create(on, { kind: { value: "cuda" } }) as Device;
    (await Run.open(folder, config, on, false))[Symbol.dispose]();
    await expect(Run.open(folder, config, other, true)).rejects.toMatchObject({
      code: "RESUME",
      message: expect.stringContaining("--device: cuda is not what"),
    });
    (await Run.open(folder, config, on, true))[Symbol.dispose]();
  });

  test("stages.json that is cut off is refused by its name", async () => {
    (await opened(false))[Symbol.dispose]();
    await writeFile(join(folder, "stages.json"), '{ "stages": [');
    await expect(opened(true)).rejects.toMatchObject({
      code: "RESUME",
      message: expect.stringContaining("stages.json"),
    });
  });
});

describe("a step that fails", () => {
  const offending = async () =>
    (await readFile(join(folder, "offending.jsonl"), "utf8"))
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);

  test("names its step and tensors, keeps its batch and the last good checkpoint", async () => {
    using run = await opened(false);
    await expect(run.stage("sft", () => trained(run, 8, undefined, 1e30))).rejects.toMatchObject({
      code: "NAN",
      message: expect.stringMatching(
        /^sft: step 2: .*gradient norm is not finite: not finite are .*the gradient of embedding.*offending\.jsonl/,
      ),
    });
    expect(await checkpoints()).toEqual(["sft-00000001.safetensors"]);
    const plain = batches(1).map(({ prompt, completion }) => ({ prompt, completion }));
    expect(await offending()).toEqual(plain);
  });

  test("of PPO keeps the completion whose score is not a number, or the minibatch whose gradient is none", async () => {
    const models = {
      policy: await lively(llama, on),
      reference: await lively(llama, on),
      critic: await lively(llama, on, "score"),
    };
    const requests = () => Array.from({ length: 4 }, (_, index) => ({ prompt: [1, 2 + index], index, sample: 0 }));
    const once = async (run: Run, reward: (completion: Completion) => number, rate = 1e-3) =>
      run.stage("ppo", async () => {
        const config = { ...ppoConfig, learningRate: rate, updates: 3 };
        for await (const metrics of ppo({ ...models, reward }, requests, config))
          await run.log({ stage: "ppo", ...metrics });
        return {};
      });
    using run = await opened(false);
    await expect(once(run, ({ index }) => (index === 2 ? NaN : 1))).rejects.toMatchObject({
      code: "NAN",
      message: expect.stringMatching(/^ppo: step 1: the score of completion 2 is NaN; its batch/),
    });
    expect(await offending()).toMatchObject([{ prompt: [1, 4], score: "NaN", completion: expect.any(Array) }]);
    await expect(once(run, ({ index }) => index, 1e30)).rejects.toMatchObject({
      code: "NAN",
      message: expect.stringMatching(/^ppo: step \d: /),
    });
    expect((await offending())[0]).toMatchObject({
      prompt: expect.any(Array),
      advantages: expect.any(Array),
      returns: expect.any(Array),
    });
    for (const model of Object.values(models)) model.dispose();
  });
});

describe("a reward function", () => {
  const requests = () => Array.from({ length: 6 }, (_, index) => ({ prompt: [1, 2 + index], index, sample: 0 }));
  const learnt = async (
    reward: (completion: Completion) => number | Promise<number>,
    change: object = {},
    kept = requests(),
  ) => {
    const models = {
      policy: await lively(llama, on),
      reference: await lively(llama, on),
      critic: await lively(llama, on, "score"),
      reward,
    };
    const config = { ...ppoConfig, klController: "fixed" as const, updates: 1, ...change };
    const all = [];
    for await (const metrics of ppo(models, () => kept, config, ppoLearner(models, config))) all.push(metrics);
    await saveModel(models.policy, folder);
    for (const model of [models.policy, models.reference, models.critic]) model.dispose();
    return { metrics: all, weights: await readFile(join(folder, "model.safetensors")) };
  };
  const score = ({ completion }: Completion) => completion[0] / 10;

  test("that fails stops the run, with its reason", () =>
    expect(
      learnt(async (completion) => {
        if (completion.index === 3) throw new Error("the judge is down");
        return score(completion);
      }),
    ).rejects.toMatchObject({
      code: "REWARD",
      message: expect.stringContaining("step 1: the score of completion 3 failed: the judge is down"),
    }));

  test("that fails on some completions, if asked, leaves them out and counts them: the update is that of the others alone", async () => {
    const flaky = (completion: Completion) => {
      if (completion.index === 5) throw new Error("no answer");
      return completion.index === 4 ? NaN : score(completion);
    };
    const masked = await learnt(flaky, { rewardFailure: "mask" });
    expect(masked.metrics).toMatchObject([{ masked: 2 }]);
    const others = await learnt(score, {}, requests().slice(0, 4));
    expect(others.metrics).toEqual([{ ...masked.metrics[0], masked: 0 }]);
    expect(masked.weights.equals(others.weights)).toBe(true);
  });

  test("that fails on all of them stops the run all the same", () =>
    expect(learnt(() => Number.POSITIVE_INFINITY, { rewardFailure: "mask" })).rejects.toMatchObject({ code: "NAN" }));
});
