import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import {
  generate,
  groupAdvantages,
  grpo,
  grpoLearner,
  Learner,
  logps,
  requestsFor,
  TextRewards,
  Tokenizer,
  trainBpe,
  type Completion,
  type Device,
  type GrpoModels,
  type GrpoOptions,
  type Reward,
  type TextReward,
  type Transformer,
} from "../../lib/index.js";
import { everyCpu, llama, lively, weightsOf } from "../models.js";
import { Random } from "../random.js";

const devices: Device[] = [];
let on: Device;
beforeAll(async () => {
  devices.push(...(await everyCpu()));
  [on] = devices;
});
afterAll(() => Promise.all(devices.map((one) => one.close())));

const EPS = { trl: 1e-4, verl: 1e-6, openrlhf: 1e-9 };
const forms = ["trl", "verl", "openrlhf"] as const;
const mean = (x: ArrayLike<number>) => Array.from(x).reduce((a, b) => a + b, 0) / x.length;

/** (score - mean) / (deviation + eps) in f64, from sums of pairs: the deviation is unbiased. */
function normalised(scores: number[], eps: number): number[] {
  let squares = 0;
  for (const a of scores) for (const b of scores) squares += (a - b) ** 2;
  const deviation = Math.sqrt(squares / (2 * scores.length * (scores.length - 1)));
  return scores.map((score) => (score - mean(scores)) / (deviation + eps));
}

describe("the advantages of a group", () => {
  test.each(forms)("are its scores without their mean, by their unbiased deviation and eps: %s", (form) => {
    const random = new Random(`advantages ${form}`);
    const sizes = [2, 5, 3, 16, 2];
    const total = sizes.reduce((a, b) => a + b);
    const scores = Float32Array.from({ length: total }, () => 3 * random.normal());
    scores[0] = scores[1] + 1e-5; // where eps counts
    const places = Array.from({ length: total }, (_, i) => i);
    const shuffled = places.map((place) => ({ place, key: random.uniform() })).sort((a, b) => a.key - b.key);
    const order = [0, 1, ...shuffled.map(({ place }) => place).filter((place) => place > 1)];
    const groups = sizes.map((size) => order.splice(0, size));
    const { advantages, withoutVariance } = groupAdvantages(scores, groups, form);
    for (const group of groups) {
      const wanted = normalised(
        group.map((i) => scores[i]),
        EPS[form],
      );
      group.forEach((i, k) => expect(Math.abs(advantages[i] / wanted[k] - 1)).toBeLessThan(1e-6));
    }
    expect(withoutVariance).toBe(0);
  });

  test.each(forms)("are 0 where all score the same, which is told: %s", (form) => {
    const scores = Float32Array.of(0.1, 0.1, 0.1, 2, 5, -7, -7);
    const { advantages, withoutVariance } = groupAdvantages(
      scores,
      [
        [0, 1, 2],
        [3, 4],
        [5, 6],
      ],
      form,
    );
    for (const i of [0, 1, 2, 5, 6]) expect(Math.abs(advantages[i])).toBeLessThan(1e-6);
    expect(advantages[4]).toBeCloseTo(Math.SQRT1_2, 3);
    expect(withoutVariance).toBeCloseTo(2 / 3, 15);
  });

  test("of one completion are its score in verl, and refused elsewhere, unless others were masked", () => {
    const scores = Float32Array.of(3, 1, 2);
    const groups = [[0], [1, 2]];
    expect(groupAdvantages(scores, groups, "verl").advantages[0]).toBeCloseTo(3, 5);
    expect(groupAdvantages(scores, groups, "verl", true).advantages[0]).toBeCloseTo(3, 5);
    for (const form of ["trl", "openrlhf"] as const) {
      expect(() => groupAdvantages(scores, groups, form)).toThrow(/a group has one completion, wanted two or more/);
      const { advantages, withoutVariance } = groupAdvantages(scores, groups, form, true);
      expect([advantages[0], withoutVariance]).toEqual([0, 0.5]);
      expect(advantages[1]).toBeLessThan(-0.7);
    }
  });
});

const prompts = Array.from({ length: 6 }, (_, i) => [i + 20, 1, 2, 3]);
const requests = requestsFor(prompts, 4);
const short = { seed: 3, updates: 1, maxTokens: 12, temperature: 0.9, stop: [3, 4, 5, 6, 7, 8, 9, 10] };

/** A reward that every completion has a different one of. */
const byIds = ({ completion }: Completion) => completion.reduce((sum, id, t) => sum + Math.sin(id + t), 0);

async function made(config = llama, where = on) {
  return {
    policy: await lively(config, where),
    reference: await lively(config, where, "logits", 2), // another model: a KL from the start
    reward: byIds as Reward,
  };
}
const freed = ({ policy, reference, reward }: GrpoModels) => {
  for (const model of [policy, reference, reward]) if (model && "dispose" in model) model.dispose();
};

/** One update that learns nothing, so that what is told can be measured again. */
async function still(models: GrpoModels, options: GrpoOptions) {
  using learner = new Learner(
    { policy: models.policy },
    { learningRate: 0, schedule: "constant", warmup: 0, steps: 1 },
  );
  for await (const metrics of grpo(models, () => requests, options, learner)) return metrics;
  throw new Error("no update");
}

const estimate = {
  k1: (logp: number, ref: number) => logp - ref,
  k2: (logp: number, ref: number) => (logp - ref) ** 2 / 2,
  k3: (logp: number, ref: number) => Math.min(10, Math.expm1(ref - logp) - (ref - logp)),
};

/**
 * GRPO's loss in f64 for log-probs of the policy, token-mean. `held` says which tokens are clipped,
 * so that it is smooth.
 */
function composed(
  completions: readonly Completion[],
  logp: readonly ArrayLike<number>[],
  refLogp: readonly ArrayLike<number>[],
  { clip, coef, estimator, held }: { clip: number; coef: number; estimator: keyof typeof estimate; held?: boolean[] },
) {
  const advantages = prompts.flatMap((_, g) =>
    normalised(
      completions.slice(4 * g, 4 * g + 4).map((one) => Math.fround(byIds(one))),
      EPS.trl,
    ),
  );
  let [policy, kl, tokens] = [0, 0, 0];
  const clipped: boolean[] = [];
  completions.forEach((one, b) => {
    for (let t = 0; t < one.completion.length; t++) {
      const ratio = Math.exp(logp[b][t] - one.logp[t]);
      const bound = ratio > 1 ? 1 + clip : 1 - clip;
      clipped.push(Math.abs(ratio - 1) > clip && bound * advantages[b] < ratio * advantages[b]);
      policy -= ((held ?? clipped)[tokens++] ? bound : ratio) * advantages[b];
      kl += estimate[estimator](logp[b][t], refLogp[b][t]);
    }
  });
  return { policyLoss: policy / tokens, klLoss: kl / tokens, loss: (policy + coef * kl) / tokens, clipped, tokens };
}

describe("the loss", () => {
  test.each(["k1", "k2", "k3"] as const)(
    "has the KL to the reference in it, and none in the advantages: %s",
    async (estimator) => {
      const models = await made();
      const completions = await generate(models.policy, requests, { ...short, update: 0 });
      const refLogp = (await logps(models.reference, completions, short)).logp;
      const told = await still(models, { ...short, minibatches: 3, klCoef: 0.3, klEstimator: estimator });
      const wanted = composed(
        completions,
        completions.map(({ logp }) => logp),
        refLogp,
        { clip: 0.2, coef: 0.3, estimator },
      );
      expect(Math.abs(wanted.klLoss)).toBeGreaterThan(1e-2);
      const lengths = completions.map(({ completion }) => completion.length);
      expect(new Set(lengths).size).toBeGreaterThan(3);
      // token-mean within each minibatch of two prompts, the mean over completions among them
      expect(told.tokens).toBe(wanted.tokens);
      const one = await still(models, { ...short, minibatches: 1, klCoef: 0.3, klEstimator: estimator });
      expect(one.klLoss! / wanted.klLoss).toBeCloseTo(1, 5);
      expect(Math.abs(one.policyLoss - wanted.policyLoss)).toBeLessThan(1e-6);
      const kl = completions.map(({ logp }, b) => logp.reduce((sum, x, t) => sum + x - refLogp[b][t], 0));
      expect(one.kl! / mean(kl)).toBeCloseTo(1, 5);
      expect(told.kl).toBe(one.kl);
      freed(models);
    },
  );

  test.each(["k1", "k2", "k3"] as const)(
    "has the gradient of the loss composed by hand, with ratios that are clipped: KL %s",
    async (estimator) => {
      const models = await made();
      const { policy, reference } = models;
      const completions = await generate(policy, requests, { ...short, update: 0 });
      const refLogp = (await logps(reference, completions, short)).logp;
      const clip = 0.04;
      const terms = { clip, coef: 0.3, estimator };
      /** Steps once; of the second step it keeps the gradient alone. */
      class Second extends Learner {
        gradient = new Map<string, Float32Array>();
        private steps = 0;
        override async step(role: string, batch: readonly unknown[]): Promise<number> {
          if (++this.steps === 1) return super.step(role, batch);
          for (const parameter of policy.parameters.values()) {
            this.gradient.set(parameter.name, (await parameter.gradient()!.read()) as Float32Array);
            parameter.zeroGrad();
          }
          return 0;
        }
      }
      using learner = new Second({ policy }, { learningRate: 3e-4, schedule: "constant", warmup: 0, steps: 1 });
      const options: GrpoOptions = {
        ...short,
        epochs: 2,
        minibatches: 1,
        klCoef: terms.coef,
        klEstimator: estimator,
        clipRatioLow: clip,
        clipRatioHigh: clip,
      };
      const { clipFraction } = (await grpo(models, () => requests, options, learner).next()).value!;
      const at = new Map<string, Float32Array>();
      for (const { name, value } of policy.parameters.values()) at.set(name, (await value.read()) as Float32Array);
      /** The loss at the weights plus so much of a direction. */
      const lossAt = async (far: number, direction: Map<string, Float32Array>, held?: boolean[]) => {
        for (const { name, value } of policy.parameters.values())
          value.write(at.get(name)!.map((x, i) => x + far * direction.get(name)![i]));
        for (const parameter of policy.parameters.values()) parameter.changed();
        return composed(completions, (await logps(policy, completions, short)).logp, refLogp, { ...terms, held });
      };
      const here = await lossAt(0, learner.gradient);
      const clipped = here.clipped.filter(Boolean).length / here.tokens;
      expect(clipFraction).toBeCloseTo(clipped, 6);
      expect(clipped).toBeGreaterThan(0.2);
      expect(clipped).toBeLessThan(0.6);
      for (const part of [0, 1, 2]) {
        // along every third number of the gradient
        const direction = new Map(
          [...learner.gradient].map(([name, g]) => [name, g.map((x, i) => (i % 3 === part ? x : 0))]),
        );
        const norm = Math.sqrt([...direction.values()].flatMap((g) => [...g]).reduce((sum, x) => sum + x * x, 0));
        const h = 2e-4 / norm;
        const [above, below] = [await lossAt(h, direction, here.clipped), await lossAt(-h, direction, here.clipped)];
        expect(Math.abs((above.loss - below.loss) / (2 * h) / norm ** 2 - 1)).toBeLessThan(0.002);
      }
      freed(models);
    },
  );

  test("without a KL needs no reference, runs none, and tells none", async () => {
    const { policy, reference } = await made();
    const counts: Record<string, number> = {};
    const call = on.call.bind(on);
    on.call = (op, args) => {
      counts[op.name] = (counts[op.name] ?? 0) + 1;
      call(op, args);
    };
    const update = async (options: GrpoOptions) => {
      for (const name of Object.keys(counts)) delete counts[name];
      const told = await still({ policy, reference: options.klCoef ? reference : undefined, reward: byIds }, options);
      return { told, ...counts };
    };
    try {
      const step = { ...short, epochs: 2, minibatches: 2 };
      const without = await update({ ...step, klCoef: 0 });
      expect(without.told).not.toHaveProperty("kl");
      expect(without.told).not.toHaveProperty("klLoss");
      expect(without).not.toHaveProperty("linearLogprob");
      // the prompts; four minibatches: the rollout's log-probs are the old ones
      expect(without).toMatchObject({ linearPolicyLoss: 4, attention: llama.layers * (1 + 4) });
      expect(await update({ ...step, klCoef: 0.1 })).toMatchObject({
        linearLogprob: 1,
        linearPolicyLoss: 4,
        attention: llama.layers * (1 + 1 + 4),
      });
    } finally {
      on.call = call;
    }
    await expect(grpo({ policy, reward: byIds }, () => requests, short).next()).rejects.toMatchObject({
      code: "ARGUMENT",
      message: expect.stringContaining("needs a reference"),
    });
    for (const model of [policy, reference]) model.dispose();
  });
});

const fails = (which: (completion: Completion) => boolean) => (completion: Completion) => {
  if (which(completion)) throw new Error("a timeout");
  return byIds(completion);
};

test("completions without a score are left out of their group, which goes on without them", async () => {
  const models = await made();
  const masked = ({ index, sample }: Completion) =>
    (index === 1 && sample > 0) || (index === 2 && sample === 2) || index === 4;
  for (const normalisation of forms) {
    const reward = fails(masked);
    const options: GrpoOptions = { ...short, klCoef: 0, minibatches: 1, normalisation };
    await expect(still({ ...models, reward }, options)).rejects.toMatchObject({ code: "REWARD" });
    const told = await still({ ...models, reward }, { ...options, rewardFailure: "mask" });
    const completions = await generate(models.policy, requests, { ...short, update: 0 });
    const kept = completions.filter((one) => !masked(one));
    expect([told.masked, told.tokens]).toEqual([8, kept.reduce((sum, { completion }) => sum + completion.length, 0)]);
    let sum = 0;
    for (const [g] of prompts.entries()) {
      const group = kept.filter(({ index }) => index === g);
      const scores = group.map((one) => Math.fround(byIds(one)));
      const alone = normalisation === "verl" ? scores : [0];
      const advantages = group.length > 1 ? normalised(scores, EPS[normalisation]) : alone;
      group.forEach(({ completion }, i) => (sum -= advantages[i] * completion.length));
    }
    expect(Math.abs(told.policyLoss - sum / told.tokens)).toBeLessThan(1e-5);
    expect(told.groupsWithoutVariance).toBeCloseTo(1 / 5, 12);
  }
  await expect(grpo(models, () => requestsFor(prompts, 1), { ...short }).next()).rejects.toMatchObject({
    code: "EMPTY",
  });
  freed(models);
});

test("nothing but the numbers decides a bit: micro-batches, threads, instruction sets, recomputation and a resume", async () => {
  const options: GrpoOptions = { ...short, updates: 3, epochs: 2, rewardNormalise: true, learningRate: 2e-3 };
  const hash = async (policy: Transformer) =>
    createHash("sha256")
      .update(await weightsOf(policy))
      .digest("hex");
  const wanted = new Set<string>();
  const changes: GrpoOptions[] = [{}, { microBatch: 1 }, { microBatch: 5, recompute: true }];
  for (const [i, where] of devices.entries()) {
    const models = await made(llama, where);
    const seen: number[] = [];
    for await (const told of grpo(models, () => requests, { ...options, ...changes[i % changes.length] }))
      seen.push(told.reward, told.kl!, told.policyLoss, told.klLoss!, told.entropy, told.gradientNorm);
    wanted.add(`${await hash(models.policy)} ${seen.join()}`);
    freed(models);
  }
  expect(devices.length).toBeGreaterThanOrEqual(changes.length);
  expect(wanted.size).toBe(1);

  const models = await made();
  const first = grpoLearner(models, options);
  for await (const { step } of grpo(models, () => requests, options, first)) if (step === 2) break;
  const again = { ...models, policy: models.policy.copy() };
  const second = grpoLearner(again, options);
  second.restore(structuredClone(first.state()));
  second.optimizers.policy.restore(first.optimizers.policy.steps, await first.optimizers.policy.state());
  for await (const { step } of grpo(again, () => requests, options, second)) expect(step).toBe(3);
  expect([...wanted][0].split(" ")[0]).toBe(await hash(again.policy));
  for (const one of [first, second]) one[Symbol.dispose]();
  again.policy.dispose();
  freed(models);
});

describe("reward functions of texts", () => {
  const tokenizer = new Tokenizer(trainBpe(["the text of a tokenizer"], { vocabulary: 260 }));
  const eos = tokenizer.eosId!;
  const completion = (text: string, stopped: boolean): Completion => {
    const ids = tokenizer.encode(text);
    const completion = stopped ? Int32Array.of(...ids, eos) : ids;
    const logp = new Float32Array(completion.length).fill(-1);
    return { prompt: tokenizer.encode("the"), index: 0, sample: 0, completion, logp, truncatedLogp: logp, stopped };
  };
  const all = [completion("text of", true), completion(" a", false), completion("", true)];
  const scored = (functions: Record<string, TextReward>) => new TextRewards(functions, tokenizer).score(all);

  test("see prompts and completions without the token that ended them, and give a sum, in time or later", async () => {
    const seen: unknown[] = [];
    const scores = await scored({
      length: (prompts, completions, about) => {
        seen.push(prompts, completions, about);
        prompts.pop(); // its own to change
        return completions.map(({ length }) => length);
      },
      later: async (prompts, completions) => {
        await new Promise((resolve) => setTimeout(resolve, 5));
        expect([prompts.length, completions.length]).toEqual([3, 3]);
        return Float64Array.of(0.5, -1, 4);
      },
    });
    expect(Array.from(scores)).toEqual([7.5, 1, 4]);
    expect(seen[0]).toEqual(["the", "the"]);
    expect(seen[1]).toEqual(["text of", " a", ""]);
    expect(seen[2]).toMatchObject([{ stopped: true }, { stopped: false }, { stopped: true }]);
    const [{ completionIds, promptIds }] = seen[2] as { completionIds: Int32Array; promptIds: Int32Array }[];
    expect([completionIds, promptIds]).toEqual([all[0].completion, tokenizer.encode("the")]);
  });

  test.each<[string, TextReward, string]>([
    ["too few", () => [1, 2], "bad gave 2 scores for 3 completions"],
    ["too many", () => [1, 2, 3, 4], "bad gave 4 scores for 3 completions"],
    ["nothing", (() => undefined) as unknown as TextReward, "bad gave undefined for 3 completions"],
    ["a number", (() => 7) as unknown as TextReward, "bad gave 7 for 3 completions"],
    [
      "an error",
      () => {
        throw new Error("out of quota");
      },
      "bad failed: out of quota",
    ],
    ["a rejection", () => Promise.reject(new Error("a timeout")), "bad failed: a timeout"],
    ["what is no error", () => Promise.reject("late"), 'bad failed: it threw "late"'],
  ])("that give %s are named", async (_, bad, message) => {
    const good: TextReward = () => [1, 2, 3];
    await expect(scored({ good, bad })).rejects.toMatchObject({
      name: "TypeError",
      code: "REWARD",
      message: expect.stringContaining(message),
    });
  });

  test("are wanted, and a file must export some", async () => {
    expect(() => new TextRewards({}, tokenizer)).toThrow(/no reward functions/);
    await expect(TextRewards.load("/nowhere/reward.mjs", tokenizer)).rejects.toMatchObject({ code: "REWARD" });
  });

  test("whose scores are no numbers stop the update, or are masked and counted", async () => {
    const { policy, reference } = await made({ ...llama, vocabulary: 260 });
    const asText: TextReward = (_, completions) =>
      completions.map((text, i) => (i % 8 === 3 ? (`${text.length}` as unknown as number) : i % 5));
    const reward = new TextRewards({ asText }, tokenizer);
    const options: GrpoOptions = { ...short, klCoef: 0, stop: [eos] };
    await expect(grpo({ policy, reward }, () => requests, options).next()).rejects.toMatchObject({
      code: "NAN",
      message: expect.stringContaining("step 1: the score of completion 3 is NaN"),
    });
    const told = (await grpo({ policy, reward }, () => requests, { ...options, rewardFailure: "mask" }).next()).value!;
    expect(told.masked).toBe(3);
    for (const model of [policy, reference]) model.dispose();
  });
});
