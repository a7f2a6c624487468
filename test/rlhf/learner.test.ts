import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import {
  device,
  grpo,
  grpoLearner,
  Learner,
  ppo,
  rewardModel,
  sft,
  sftLearner,
  type Device,
  type Transformer,
} from "../../lib/index.js";
import { resolve } from "../../lib/rlhf/options.js";
import { grpoOptions } from "../../lib/rlhf/policy/grpo.js";
import { ppoOptions } from "../../lib/rlhf/policy/ppo.js";
import { rewardOptions } from "../../lib/rlhf/reward/model.js";
import { sftOptions } from "../../lib/rlhf/offline/sft.js";
import { episodes, gpt2, llama, lively, weightsOf } from "../models.js";
import { Random } from "../random.js";

let on: Device;
beforeAll(async () => {
  on = await device("cpu");
});
afterAll(() => on.close());

describe("a learner", () => {
  const options = { learningRate: 1e-2, schedule: "linear", warmup: 2, steps: 4 } as const;

  test("counts the rounds that are left, and goes on where it stands", async () => {
    const model = await lively(llama, on);
    using learner = new Learner({ model }, options);
    const seen: number[] = [];
    for (const round of learner.rounds()) {
      seen.push(round);
      expect(learner.endRound({ loss: 1 })).toEqual({ step: round + 1, loss: 1 });
      if (round === 1) break;
    }
    for (const round of learner.rounds()) {
      seen.push(round);
      learner.endRound({});
    }
    expect(seen).toEqual([0, 1, 2, 3]);
    expect([...learner.rounds()]).toEqual([]);
    model.dispose();
  });

  test("has a learning rate for each role", async () => {
    const [policy, critic] = [await lively(llama, on), await lively(llama, on, "score")];
    using learner = new Learner({ policy, critic }, options, { critic: 1 });
    const rates = Array.from(learner.rounds(), () => {
      const rate = ["policy", "critic"].map((role) => learner.learningRate(role));
      learner.endRound({});
      return rate;
    });
    expect(rates).toEqual([
      [5e-3, 0.5],
      [1e-2, 1],
      [1e-2, 1],
      [5e-3, 0.5],
    ]);
    for (const model of [policy, critic]) model.dispose();
  });

  test("keeps carried numbers from one loop to the next, and through a checkpoint", async () => {
    const model = await lively(llama, on);
    using first = new Learner({ model }, options);
    const { moments } = first.carry({ moments: { count: 0, mean: 0 } });
    moments.count = 3;
    first.endRound({});
    const state = structuredClone(first.state());
    expect(state).toEqual({ round: 1, carried: { moments: { count: 3, mean: 0 } } });
    using second = new Learner({ model }, options);
    second.restore(state);
    expect(second.round).toBe(1);
    expect(second.carry({ moments: { count: 0, mean: 0 }, controller: { coef: 2 } })).toEqual({
      moments: { count: 3, mean: 0 },
      controller: { coef: 2 },
    });
    expect(first.carry({ moments: { count: 0, mean: 0 } }).moments.count).toBe(3);
    model.dispose();
  });

  test("gives an error of a step its batch, and is where it was", async () => {
    const model = await lively(llama, on);
    using learner = new Learner({ model }, options);
    const [{ value }] = model.parameters.values();
    const before = (await value.read()) as Float32Array;
    value.write(before.map((x, i) => (i === 3 ? Infinity : x)));
    const batch = episodes(new Random("error"), 3);
    await expect(sft(model, () => batch, {}, learner).next()).rejects.toMatchObject({ code: "NAN", batch });
    expect([learner.round, learner.optimizers.model.steps]).toEqual([0, 0]);
    value.write(before);
    model.parameters.values().next().value!.changed();
    expect((await sft(model, () => batch, {}, learner).next()).value).toMatchObject({ step: 1 });
    model.dispose();
  });

  test("that a loop was given stays the caller's: the loop frees its own alone", async () => {
    const model = await lively(llama, on);
    const batch = episodes(new Random("own"), 3);
    const { current } = on.memory();
    for await (const _ of sft(model, () => batch, { steps: 2 }));
    expect(on.memory().current).toBe(current);
    const learner = sftLearner(model, { steps: 2 });
    const held = on.memory().current;
    expect(held).toBeGreaterThan(current);
    for await (const _ of sft(model, () => batch, { steps: 2 }, learner));
    expect(on.memory().current).toBe(held);
    learner[Symbol.dispose]();
    expect(on.memory().current).toBe(current);
    model.dispose();
  });

  test("goes on from a run that was cut at each of its rounds, to the same bits", async () => {
    const prompts = Array.from({ length: 6 }, (_, i) => ({
      prompt: [1, 2 + (i >> 1)],
      index: i >> 1,
      sample: i % 2,
    }));
    const reward = ({ completion }: { completion: ArrayLike<number> }) => Array.from(completion).at(-1)! / 10;
    const step = { updates: 3, maxTokens: 6, klCoef: 0, rewardNormalise: true };
    const run = async (policy: Transformer, learner: Learner, upTo: number) => {
      for await (const told of grpo({ policy, reward }, () => prompts, step, learner)) if (told.step === upTo) break;
    };
    const whole = await lively(gpt2, on);
    using learner = grpoLearner({ policy: whole }, step);
    await run(whole, learner, 3);
    for (const cut of [1, 2]) {
      const before = await lively(gpt2, on);
      using first = grpoLearner({ policy: before }, step);
      await run(before, first, cut);
      const after = before.copy();
      using second = grpoLearner({ policy: after }, step);
      second.restore(structuredClone(first.state()));
      const { steps } = first.optimizers.policy;
      second.optimizers.policy.restore(steps, await first.optimizers.policy.state());
      await run(after, second, 3);
      expect((await weightsOf(after)).equals(await weightsOf(whole))).toBe(true);
      for (const model of [before, after]) model.dispose();
    }
    whole.dispose();
  });
});

describe("options", () => {
  const lists = { sft: sftOptions, rewardModel: rewardOptions, ppo: ppoOptions, grpo: grpoOptions };

  test.each(Object.keys(lists))("of %s have defaults, all but steps that nobody could guess", (name) => {
    const list = lists[name as keyof typeof lists];
    const needed = name === "rewardModel" ? { steps: 3 } : {};
    const resolved = resolve(name, list, needed as never) as Record<string, unknown>;
    expect(Object.keys(resolved).sort()).toEqual(Object.keys(list.shape).sort());
    expect(Object.values(resolved)).not.toContain(undefined);
    expect(resolve(name, list, Object.assign(needed, { learningRate: undefined }) as never)).toEqual(resolved);
  });

  test.each<[keyof typeof lists, object, string, string]>([
    ["ppo", { klcoef: 1 }, "ARGUMENT", 'ppo: there is no option "klcoef", did you mean klCoef?'],
    ["ppo", { clipRatio: 1 }, "ARGUMENT", 'ppo: there is no option "clipRatio", did you mean clipRatioC?'],
    ["grpo", { normalization: "trl" }, "ARGUMENT", "did you mean normalisation?"],
    ["grpo", { valueClip: 1 }, "ARGUMENT", 'grpo: there is no option "valueClip"'],
    ["sft", { xyz: 1 }, "ARGUMENT", 'sft: there is no option "xyz", did you mean one of steps, learningRate'],
    ["sft", { steps: 0 }, "RANGE", "sft: steps is 0, wanted a number >=1"],
    ["sft", { steps: 1.5 }, "ARGUMENT", "sft: steps is 1.5"],
    ["sft", { betas: [0.9, 2] }, "RANGE", "sft: betas.1 is 2, wanted a number <=1"],
    ["sft", { schedule: "cos" }, "ARGUMENT", 'sft: schedule is "cos"'],
    ["sft", { learningRate: NaN }, "ARGUMENT", "sft: learningRate is NaN"],
    ["sft", { learningRate: 0 }, "RANGE", "sft: learningRate is 0, wanted a number >0"],
    ["rewardModel", {}, "ARGUMENT", "rewardModel: steps is undefined"],
    ["rewardModel", { steps: 1, labelSmoothing: 0.6 }, "RANGE", "labelSmoothing is 0.6"],
    ["ppo", { clipNorm: -1 }, "RANGE", "ppo: clipNorm is -1"],
    ["ppo", { temperature: "hot" }, "ARGUMENT", 'ppo: temperature is "hot"'],
    ["grpo", { klEstimator: "abs" }, "ARGUMENT", 'grpo: klEstimator is "abs"'],
  ])("of %s that are wrong are named: %j", (name, given, code, message) => {
    let error: unknown;
    try {
      resolve(name, lists[name], given as never);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(code === "RANGE" ? RangeError : TypeError);
    expect(error).toMatchObject({ code, message: expect.stringContaining(message) });
  });

  test.each([null, undefined, 3, "options"])("that are %s are refused", (given) => {
    expect(() => resolve("ppo", ppoOptions, given as never)).toThrow(/ppo: options are .*, wanted an object/);
  });

  test("are checked before the first round of a loop", async () => {
    const [model, critic] = [await lively(llama, on), await lively(llama, on, "score")];
    const none = () => [];
    const wrong = { stepz: 1 } as object;
    const reward = () => 0;
    const loops = [
      sft(model, none, wrong),
      rewardModel(critic, none, { steps: 1, ...wrong }),
      ppo({ policy: model, reference: model, reward, critic }, none, wrong),
      grpo({ policy: model, reward }, none, wrong),
    ];
    for (const loop of loops)
      await expect(loop.next()).rejects.toMatchObject({ code: "ARGUMENT", message: expect.stringContaining("stepz") });
    for (const one of [model, critic]) one.dispose();
  });
});
