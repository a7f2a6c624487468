import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import {
  accumulate,
  generate,
  logps,
  ops,
  ppo,
  ppoLearner,
  Random as Philox,
  rewardModel,
  sft,
  sftLearner,
  Tensor,
  Transformer,
  type Device,
  type ModelConfig,
} from "../lib/index.js";
import { packSequences } from "../lib/model/packed.js";
import { tokensIn } from "../lib/rlhf/batch/units.js";
import { nll } from "../lib/rlhf/offline/sft.js";
import { everyCpu, episodes, gpt2, lively, llama, plainAdam, ppoConfig, weightsOf } from "./models.js";
import { Random } from "./random.js";

// The law of arithmetic, end to end: nothing but the numbers themselves decides a bit.

const devices: Device[] = [];
beforeAll(async () => {
  devices.push(...(await everyCpu()));
});
afterAll(() => Promise.all(devices.map((on) => on.close())));

const configs: [string, ModelConfig][] = [
  ["llama, tied head", llama],
  ["gpt2, head of its own", { ...gpt2, tied: false }],
];
const bits = (values: ArrayLike<number>) => Buffer.from(Float32Array.from(values).buffer).toString("hex");

describe.each(configs)("%s", (_, config) => {
  test("log-probs from sampling are those of the training forward pass, for any micro-batch, device and batch", async () => {
    const random = new Random("rollout");
    const requests = episodes(random, 9).map(({ prompt }, index) => ({ prompt, index, sample: index % 2 }));
    const options = { maxTokens: 40, temperature: 0.8, seed: 5, stop: [3] };
    let first: string[] | undefined;
    for (const on of devices) {
      const model = await lively(config, on);
      for (const slots of [2, 64]) {
        const completions = await generate(model, requests, { ...options, slots });
        for (const microBatch of [1, 4, 64]) {
          const { logp } = await logps(model, completions, { microBatch, temperature: 0.8 });
          completions.forEach((one, i) => expect(bits(logp[i])).toBe(bits(one.logp)));
        }
        const all = completions.map(({ completion, logp }) => `${completion.join()} ${bits(logp)}`);
        first ??= all;
        expect(all).toEqual(first);
      }
      model.dispose();
    }
  });

  test("a sequence alone has the bits that it has in a batch", async () => {
    const random = new Random("alone");
    const on = devices[0];
    const model = await lively(config, on);
    const sequences = episodes(random, 6).map(({ prompt, completion }) => [
      ...Array.from(prompt),
      ...Array.from(completion),
    ]);
    const together = (await model.hidden(packSequences(sequences)).read()) as Float32Array;
    let at = 0;
    for (const sequence of sequences) {
      const alone = (await model.hidden(packSequences([sequence])).read()) as Float32Array;
      expect(bits(together.subarray(at, at + alone.length))).toBe(bits(alone));
      at += alone.length;
    }
    model.dispose();
  });

  test("gradients are those of the whole batch for every split into micro-batches", async () => {
    const random = new Random("split");
    const batch = episodes(random, 7);
    let wanted: string | undefined;
    for (const on of [devices[0], devices.at(-1)!])
      for (const microBatch of [undefined, 1, 2, 5]) {
        const model = await lively(config, on);
        const stats = Tensor.from(new Float64Array(12), [12], on);
        accumulate(batch, microBatch, (part) => nll(model, part, tokensIn(batch), stats));
        const parts: Buffer[] = [];
        for (const parameter of model.parameters.values())
          parts.push(Buffer.from((await parameter.gradient()!.read()).buffer));
        const got = createHash("sha256")
          .update(Buffer.concat(parts))
          .update(Buffer.from((await stats.read()).buffer))
          .digest("hex");
        wanted ??= got;
        expect(got).toBe(wanted);
        model.dispose();
      }
  });

  test("a PPO update with pretraining mix ends with the same weights for every micro-batch and device", async () => {
    const random = new Random("ppo", 11);
    const prompts = episodes(random, 8).map(({ prompt }, index) => ({ prompt, index, sample: 0 }));
    const mix = episodes(random, 4);
    let wanted: string | undefined;
    for (const [on, microBatch] of [
      [devices[0], undefined],
      [devices.at(-1)!, 3],
      [devices[1], 1],
    ] as const) {
      const [policy, reference] = [await lively(config, on), await lively(config, on)];
      const [reward, critic] = [await lively(config, on, "score", 2), await lively(config, on, "score", 2)];
      const config_ = { ...ppoConfig, ptxCoef: 0.5, microBatch };
      const models = { policy, reference, reward, critic };
      const seen: number[] = [];
      for await (const metrics of ppo(
        models,
        () => prompts,
        config_,
        ppoLearner(models, config_),
        () => mix,
      ))
        seen.push(metrics.kl, metrics.policyLoss, metrics.klCoef, metrics.clipFraction);
      const got =
        createHash("sha256")
          .update(await weightsOf(policy))
          .update(await weightsOf(critic))
          .digest("hex") + seen.join();
      wanted ??= got;
      expect(got).toBe(wanted);
      for (const model of Object.values(models)) model.dispose();
    }
  });
});

test("a product of several blocks in every direction has the bits of its rows alone, on every device", async () => {
  const random = new Random("blocks");
  const [N, O, I] = [280, 1056, 800]; // of rows 266, of columns 1,024, of steps 768 at most
  const uniform = (n: number) => Float32Array.from({ length: n }, () => 2 * random.uniform() - 1);
  const [x, weight] = [uniform(N * I), uniform(O * I)];
  let wanted: Buffer | undefined;
  for (const on of devices) {
    const [a, w] = [Tensor.from(x, [N, I], on), Tensor.from(weight, [O, I], on)];
    const [whole, few] = await Promise.all(
      [ops.linear(a, w), ops.linear(a.rows(0, 16), w)].map(async (y) => Buffer.from((await y.read()).buffer)),
    );
    wanted ??= whole;
    expect(whole.equals(wanted)).toBe(true);
    expect(few.equals(wanted.subarray(0, few.length))).toBe(true);
    for (const one of [a, w]) one.dispose();
  }
});

test.each([300, 5000])(
  "of %i comparisons a tie is half a win, infinities win or lose, and what is not a number is neither",
  async (pairs) => {
    const odd = [1, -1, 0, NaN, Infinity, -Infinity, 2, -2, 0, 3, -3];
    const scores = Float32Array.from({ length: 2 * pairs }, (_, i) => (i % 2 ? 0 : odd[(i >> 1) % odd.length]));
    const ids = (first: number) => Int32Array.from({ length: pairs }, (_, i) => 2 * i + first);
    let wanted = 0;
    for (let i = 0; i < pairs; i++) wanted += scores[2 * i] > 0 ? 1 : scores[2 * i] === 0 ? 0.5 : 0;
    for (const on of devices) {
      const { stats } = ops.preferenceLoss(Tensor.from(scores, [2 * pairs], on), ids(0), ids(1), {
        form: "bradley-terry",
        denominator: pairs,
      });
      const [, wins, , , , count] = await stats.read();
      expect([wins, count]).toEqual([wanted, pairs]);
    }
  },
);

/** SFT, a reward model and PPO, a few steps each, from numbers that no machine's libraries touch. */
async function shortTraining(on: Device): Promise<string> {
  const random = new Philox(7, 99);
  const ids = (n: number) => Array.from({ length: n }, () => random.below(llama.vocabulary));
  const made = (n: number) =>
    Array.from({ length: n }, () => ({ prompt: ids(1 + random.below(9)), completion: ids(1 + random.below(20)) }));
  const model = Transformer.random(llama, "logits", on, 1);
  const batches = Array.from({ length: 12 }, () => made(6));
  const schedule = { ...plainAdam, learningRate: 3e-3, schedule: "cosine" as const, warmup: 3 };
  for await (const _ of sft(model, (step) => batches[step], { ...schedule, steps: 12, weightDecay: 0.1, clipNorm: 1 }));
  const reward = model.copy("score", 1);
  const comparisons = Array.from({ length: 6 }, () => [
    { episodes: made(2), pairs: [{ chosen: 0, rejected: 1, label: 0.8 }] },
  ]);
  for await (const _ of rewardModel(reward, (step) => comparisons[step], { ...schedule, steps: 6, centerCoef: 0.01 }));
  const prompts = made(8).map(({ prompt }, index) => ({ prompt, index, sample: 0 }));
  const models = { policy: model, reference: model.copy(), reward, critic: reward.copy() };
  for await (const _ of ppo(models, () => prompts, { ...ppoConfig, updates: 3 }));
  const hash = createHash("sha256")
    .update(await weightsOf(model))
    .update(await weightsOf(models.critic))
    .digest("hex");
  for (const one of Object.values(models)) one.dispose();
  return hash;
}

test("a short training ends with the hash that stands here, on every machine", async () => {
  const hashes: Record<string, string> = {};
  for (const on of devices) hashes[`${on.isa}/${on.threads}`] = await shortTraining(on);
  const wanted = "0db2a87f66539d51f706f4066fd1e259059b1cc7d1b2bd9e242ab71d12519640";
  expect(hashes).toEqual(Object.fromEntries(Object.keys(hashes).map((name) => [name, wanted])));
});

test("resumed from its state, a training goes on to the same bits", async () => {
  const on = devices[0];
  const random = new Random("resume");
  const batches = Array.from({ length: 8 }, () => episodes(random, 4));
  const config = { ...plainAdam, learningRate: 1e-3, schedule: "linear" as const, warmup: 2, steps: 8 };
  const unbroken = await lively(llama, on);
  for await (const _ of sft(unbroken, (step) => batches[step], config));

  const before = await lively(llama, on);
  const learner = sftLearner(before, config);
  for await (const { step } of sft(before, (i) => batches[i], config, learner)) if (step === 3) break;
  const after = before.copy();
  const restored = sftLearner(after, config);
  restored.restore(learner.state());
  restored.optimizers.model.restore(learner.optimizers.model.steps, await learner.optimizers.model.state());
  for await (const _ of sft(after, (step) => batches[step], config, restored));
  expect((await weightsOf(after)).equals(await weightsOf(unbroken))).toBe(true);
});
