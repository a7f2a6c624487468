import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { PlannedDevice } from "../../lib/device/planned.js";
import {
  accumulate,
  device,
  generate,
  logps,
  ops,
  ppo,
  requestsFor,
  scores,
  Tape,
  Tensor,
  Transformer,
  values,
  type Device,
  type Episode,
  type ModelConfig,
} from "../../lib/index.js";
import { packSequences } from "../../lib/model/packed.js";
import { promptGroups } from "../../lib/rlhf/batch/episode.js";
import { packEpisodes } from "../../lib/rlhf/batch/pack.js";
import { tokensIn } from "../../lib/rlhf/batch/units.js";
import { nll } from "../../lib/rlhf/offline/sft.js";
import { everyCpu, gpt2, lively, llama, ppoConfig, weightsOf } from "../models.js";
import { Random } from "../random.js";

// A prompt that is computed once for its completions, and layers that are run again in the backward pass.

const devices: Device[] = [];
beforeAll(async () => {
  devices.push(...(await everyCpu()));
});
afterAll(() => Promise.all(devices.map((on) => on.close())));

/**
 * Groups of 1 to 4 completions; prompts of up to 70 tokens, so that some reach over a tile of 64
 * keys; some completions have one token.
 */
function grouped(random: Random): Episode[] {
  const ids = (n: number) => Array.from({ length: n }, () => random.below(llama.vocabulary));
  return [3, 1, 4, 2].flatMap((count, g) => {
    const prompt = ids([70, 5, 64, 1 + random.below(30)][g]);
    return Array.from({ length: count }, (_, i) => ({ prompt, completion: ids(i === 1 ? 1 : 1 + random.below(20)) }));
  });
}

async function gradients(
  model: Transformer,
  episodes: Episode[],
  options: { sharePrompts?: boolean; microBatch?: number; recompute?: boolean },
) {
  using stats = Tensor.from(new Float64Array(12), [12], model.device);
  const { sharePrompts, microBatch, recompute } = options;
  accumulate(promptGroups(episodes, sharePrompts), microBatch, (part) =>
    nll(model, part, tokensIn(episodes), stats, { recompute }),
  );
  return taken(model);
}

/** The gradients that the model's parameters hold, which they forget. */
async function taken(model: Transformer): Promise<Map<string, Float32Array>> {
  const all = new Map<string, Float32Array>();
  for (const [name, parameter] of model.parameters) {
    all.set(name, (await parameter.gradient()!.read()) as Float32Array);
    parameter.zeroGrad();
  }
  return all;
}

const configs: [string, ModelConfig][] = [
  ["llama, tied head", llama],
  ["gpt2, head of its own", { ...gpt2, tied: false }],
];
describe.each(configs)("%s", (_, config) => {
  test("log-probs, values and scores have the bits that they have unshared", async () => {
    const episodes = grouped(new Random("forward"));
    expect(packEpisodes(promptGroups(episodes)).positions.length).toBeLessThan(packEpisodes(episodes).positions.length);
    for (const on of devices) {
      const [model, critic] = [await lively(config, on), await lively(config, on, "score")];
      for (const microBatch of [1, 5, 64]) {
        const run = async (sharePrompts: boolean) => {
          const { logp, entropy } = await logps(model, episodes, { microBatch, sharePrompts });
          return [
            logp,
            entropy,
            await values(critic, episodes, { microBatch, sharePrompts }),
            await scores(critic, episodes, { microBatch, sharePrompts }),
          ];
        };
        expect(await run(true)).toEqual(await run(false));
      }
      model.dispose();
      critic.dispose();
    }
  });

  test("samples of a prompt are those that each has alone, whether they enter together or later", async () => {
    const on = devices.at(-1)!;
    const model = await lively(config, on);
    const prompts = promptGroups(grouped(new Random("samples"))).map(([{ prompt }]) => prompt);
    const requests = prompts.flatMap((prompt, index) =>
      Array.from({ length: 5 }, (_, sample) => ({ prompt: Array.from(prompt), index, sample })),
    );
    const options = { maxTokens: 20, temperature: 0.9, seed: 2, stop: [3, 4, 5] };
    const alone = [];
    for (const request of requests) alone.push(...(await generate(model, [request], options)));
    for (const slots of [2, 3, 64]) expect(await generate(model, requests, { ...options, slots })).toEqual(alone);
    expect((await logps(model, alone, { temperature: 0.9 })).logp).toEqual(alone.map(({ logp }) => logp));
    model.dispose();
  });

  test("gradients agree with the unshared ones, have the same bits for every split and device, and with recomputation", async () => {
    const episodes = grouped(new Random("gradients"));
    let wanted: Map<string, Float32Array> | undefined;
    for (const on of devices) {
      const model = await lively(config, on);
      for (const microBatch of [undefined, 1, 4, 7])
        for (const recompute of [false, true]) {
          const got = await gradients(model, episodes, { microBatch, recompute });
          wanted ??= got;
          expect(got).toEqual(wanted);
        }
      model.dispose();
    }
    const model = await lively(config, devices[0]);
    const plain = await gradients(model, episodes, { sharePrompts: false });
    const largest = (x: Float32Array) => x.reduce((m, y) => Math.max(m, Math.abs(y)), 0);
    for (const [name, unshared] of plain) {
      // the softmax does not see a bias of k: its gradient is 0 but for the rounding of sums as large as its weight's
      const tolerance = 5e-6 * largest(plain.get(name.replace(/\.k\.bias$/, ".k.weight"))!);
      wanted!.get(name)!.forEach((x, i) => expect(Math.abs(x - unshared[i])).toBeLessThanOrEqual(tolerance));
    }
    model.dispose();
  });

  test("rows that no loss reads go no further than the last layer's keys and values: no bit of the others or of a gradient changes", async () => {
    const batch = packEpisodes(promptGroups(grouped(new Random("rows"))));
    const denominator = batch.y.length;
    for (const on of devices) {
      const model = await lively(config, on);
      for (const recompute of [false, true]) {
        const learned = async (pick: () => { hidden: Tensor; rows: Int32Array }) => {
          let size = 0;
          accumulate([batch], undefined, () => {
            const { hidden, rows } = pick();
            size = hidden.shape[0];
            return ops.linearNll(hidden, model.head, rows, batch.y, { cuSeqlens: batch.cuRows, denominator }).loss;
          });
          const { hidden, rows } = pick();
          const { logp } = ops.linearLogprob(hidden, model.head, rows, batch.y, {});
          return { size, bits: [await logp.read(), ...(await taken(model)).values()] };
        };
        const whole = await learned(() => ({ hidden: model.hidden(batch, { recompute }), rows: batch.rows }));
        const scored = await learned(() => model.hiddenRows(batch, { recompute }));
        expect(scored.bits).toEqual(whole.bits);
        expect(scored.size).toBe(new Set(batch.rows).size);
        expect(scored.size).toBeLessThan(whole.size);
      }
      model.dispose();
    }
  });

  test("PPO on groups: the same weights for every micro-batch, device and with recomputation, ratios of 1 at first", async () => {
    const prompts = promptGroups(grouped(new Random("ppo"))).map(([{ prompt }]) => prompt);
    const requests = prompts.flatMap((prompt, index) =>
      Array.from({ length: 3 }, (_, sample) => ({ prompt, index, sample })),
    );
    let wanted: Buffer | undefined;
    for (const [on, change] of [
      [devices[0], {}],
      [devices.at(-1)!, { microBatch: 3 }],
      [devices[1], { microBatch: 1, recompute: true }],
    ] as const) {
      const [policy, reference] = [await lively(config, on), await lively(config, on)];
      const [reward, critic] = [await lively(config, on, "score", 2), await lively(config, on, "score", 2)];
      for await (const _ of ppo({ policy, reference, reward, critic }, () => requests, { ...ppoConfig, ...change })); // throws where a ratio is not 1
      const got = Buffer.concat([await weightsOf(policy), await weightsOf(critic)]);
      wanted ??= got;
      expect(got.equals(wanted)).toBe(true);
      for (const model of [policy, reference, reward, critic]) model.dispose();
    }
  });
});

test("PPO and the best of eight run each prompt once in every pass", async () => {
  const on = devices[0];
  const tokens: number[] = []; // of each pass
  const call = on.call.bind(on);
  on.call = (op, args) => {
    if (op.name === "embedding" && (args[1] as Tensor).shape[0] === llama.vocabulary)
      tokens.push((args[0] as Tensor).size);
    call(op, args);
  };
  const models = {
    policy: await lively(llama, on),
    reference: await lively(llama, on),
    reward: await lively(llama, on, "score"),
    critic: await lively(llama, on, "score"),
  };
  try {
    const [prompts, maxTokens] = [[Array.from({ length: 30 }, (_, i) => i), [1, 2, 3, 4]], 5];
    const requests = requestsFor(prompts, 8);
    const sampling = [30 + 4, 16]; // the prompts, then token by token: a step is recorded once
    const best = await generate(models.policy, requests, { maxTokens, seed: 1 });
    await scores(models.reward, best);
    expect(tokens.splice(0)).toEqual([...sampling, 30 + 4 + 16 * maxTokens]);
    for await (const _ of ppo(models, () => requests, {
      ...ppoConfig,
      maxTokens,
      updates: 1,
      epochs: 1,
      minibatches: 1,
    }));
    const learning = 30 + 4 + 16 * (maxTokens - 1); // the last token predicts nothing
    expect(tokens).toEqual([...sampling, 30 + 4 + 16 * maxTokens, learning, learning, learning, learning]); // reward, reference, value; policy, critic
  } finally {
    on.call = call;
  }
  for (const model of Object.values(models)) model.dispose();
});

test("a micro-batch bounds a forward pass over many completions of one prompt", async () => {
  const on = devices[0];
  const model = await lively(llama, on);
  const episodes = Array.from({ length: 9 }, (_, i) => ({ prompt: [1, 2, 3], completion: [i, 5, 6] }));
  const passes: number[] = [];
  const call = on.call.bind(on);
  on.call = (op, args) => {
    if (op.name === "embedding" && args[1] === model.parameter("embedding").value)
      passes.push((args[0] as Tensor).size);
    call(op, args);
  };
  try {
    const { logp } = await logps(model, episodes, { microBatch: 4 });
    expect(passes).toEqual([3 + 4 * 2, 3 + 4 * 2, 5]);
    expect(logp).toEqual((await logps(model, episodes)).logp);
  } finally {
    on.call = call;
  }
  model.dispose();
});

test("a planned run counts the keys of what a sequence continues", async () => {
  await using on = new PlannedDevice(1, { flops: 1, bandwidth: 1, call: 0 });
  const flops = (lengths: number[], prefix?: number[]) => {
    const cuSeqlens = Int32Array.from([0, ...lengths], (_, b) => lengths.slice(0, b).reduce((a, n) => a + n, 0));
    const x = Tensor.empty([cuSeqlens.at(-1)!, 1, 8], "f32", on);
    on.workDone();
    ops.attention(x, x, x, cuSeqlens, { prefix: prefix && Int32Array.from(prefix) });
    return on.workDone().flops;
  };
  const [prompt, whole, other] = [flops([5]), flops([8]), flops([7])];
  expect(flops([5, 3, 2], [-1, 0, 0])).toBe(whole + other - prompt);
  expect(flops([5, 3, 2])).toBe(prompt + flops([3, 2]));
});

test("recomputation bounds the memory of twelve layers", async () => {
  const on = await device("cpu");
  const model = Transformer.random({ ...llama, layers: 12, width: 64, headSize: 16, mlp: 192 }, "logits", on, 0);
  const random = new Random("memory");
  const episodes = Array.from({ length: 16 }, () => ({
    prompt: [random.below(97)],
    completion: Array.from({ length: 95 }, () => random.below(97)),
  }));
  const peak = async (recompute: boolean) => {
    await gradients(model, episodes, { recompute });
    const before = on.memory().current;
    on.resetPeak();
    await gradients(model, episodes, { recompute });
    return on.memory().peak - before;
  };
  const [plain, recomputed] = [await peak(false), await peak(true)];
  expect(recomputed).toBeLessThan(plain / 3);
  model.dispose();
  await on.close();
});

test("what norms and activations give is not kept, nor what is added to the residual: a layer keeps ten numbers of the eighteen that it computes for a token and channel", async () => {
  await using on = await device("cpu");
  const width = 64;
  const batch = packSequences([Array.from({ length: 200 }, (_, i) => i % 97)]);
  const kept = (config: ModelConfig, layers: number) => {
    const model = Transformer.random(
      { ...config, layers, width, heads: 4, kvHeads: 4, headSize: width / 4, mlp: 4 * width, context: 200 },
      "logits",
      on,
      0,
    );
    const before = on.memory().current;
    const tape = new Tape();
    const hidden = tape.record(() => model.hidden(batch));
    const bytes = on.memory().current - before;
    for (const one of [tape, hidden, model]) one.dispose();
    return bytes;
  };
  const layer = (config: ModelConfig) => (kept(config, 6) - kept(config, 2)) / 4 / (4 * 200 * width);
  expect(layer(gpt2)).toBeLessThan(11); // input, q, k, v, o, what goes into the MLP's norm, and four of the MLP; a few numbers a token
  expect(layer(llama)).toBeLessThan(15); // and four more of the gate
});
