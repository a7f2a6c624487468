import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";
import {
  accumulate,
  AdamW,
  generate,
  loadModel,
  loadModels,
  logps,
  ops,
  packSequences,
  ppo,
  ppoLearner,
  rewardModel,
  saveAdapter,
  saveModel,
  scores,
  sft,
  sftLearner,
  Tensor,
  Transformer,
  type Device,
  type Episode,
  type LoraOptions,
  type ModelConfig,
} from "../lib/index.js";
import { loraA } from "../lib/model/lora.js";
import { readSafetensorsFile, writeSafetensors } from "../lib/model/safetensors.js";
import { promptGroups } from "../lib/rlhf/batch/episode.js";
import { packWhole } from "../lib/rlhf/batch/pack.js";
import { tokensIn } from "../lib/rlhf/batch/units.js";
import { nll } from "../lib/rlhf/offline/sft.js";
import { holdToGradient } from "./hold.js";
import { episodes, everyCpu, gpt2, lively, llama, plainAdam, ppoConfig, weightsOf } from "./models.js";
import { Random } from "./random.js";
import { normal, type Case, type Widened } from "./truth.js";
import { withAdapter, mergeAdapter } from "../lib/model/adapt.js";

// LoRA: an adapter that is trained beside frozen weights, which all models of a stage share.

const devices: Device[] = [];
let folder: string;
beforeAll(async () => {
  devices.push(...(await everyCpu()));
  folder = await mkdtemp(join(tmpdir(), "rlhf-lora-"));
});
afterAll(async () => {
  await Promise.all(devices.map((on) => on.close()));
  await rm(folder, { recursive: true });
});

const options: LoraOptions = { rank: 3, alpha: 6 };

/** An adapter that is not 0. */
async function adapted(base: Transformer, chosen = options, seed = 5, head = base.headKind): Promise<Transformer> {
  const model = withAdapter(base, chosen, seed, head);
  const random = new Random("adapter", seed);
  for (const { name, value } of model.trained)
    if (name.endsWith("loraB")) value.write(Float32Array.from({ length: value.size }, () => 0.2 * random.normal()));
  return model;
}

const trainedBits = async (model: Transformer) =>
  Buffer.concat(await Promise.all(model.trained.map(async ({ value }) => Buffer.from((await value.read()).buffer))));
const grouped = (random: Random): Episode[] =>
  episodes(random, 4).flatMap(({ prompt }) => episodes(random, 1 + random.below(3)).map((one) => ({ ...one, prompt })));

async function gradients(
  model: Transformer,
  batch: Episode[],
  { sharePrompts, microBatch, recompute }: { sharePrompts?: boolean; microBatch?: number; recompute?: boolean } = {},
) {
  using stats = Tensor.from(new Float64Array(12), [12], model.device);
  accumulate(promptGroups(batch, sharePrompts), microBatch, (part) =>
    nll(model, part, tokensIn(batch), stats, { recompute }),
  );
  const all = new Map<string, Float32Array>();
  for (const parameter of model.parameters.values()) {
    const gradient = parameter.gradient();
    if (gradient) all.set(parameter.name, (await gradient.read()) as Float32Array);
    parameter.zeroGrad();
  }
  return all;
}

const largest = (x: ArrayLike<number>) => Array.from(x).reduce((most, y) => Math.max(most, Math.abs(y)), 0);
function expectNear(got: ArrayLike<number>, wanted: ArrayLike<number>, what: string, relative = 2e-5): void {
  expect([what, got.length]).toEqual([what, wanted.length]);
  const allowed = relative * Math.max(0.05, largest(wanted));
  for (let i = 0; i < wanted.length; i++)
    if (!(Math.abs(got[i] - wanted[i]) <= allowed))
      throw new Error(`${what}[${i}] is ${got[i]}, wanted ${wanted[i]} within ${allowed}`);
}

test("the layer's gradients are those of its formula, by central differences", async () => {
  const scale = 0.75;
  const reference = ({ x, weight, bias, a, b }: Widened) => {
    const [[N, I], [O], [r]] = [x.shape, weight.shape, a.shape] as number[][];
    const dot = (row: (k: number) => number, k: number) =>
      Array.from({ length: k }, (_, i) => row(i)).reduce((sum, y) => sum + y, 0);
    const low = Float64Array.from({ length: N * r }, (_, i) =>
      dot((k) => x[Math.floor(i / r) * I + k] * a[(i % r) * I + k], I),
    );
    const y = Float64Array.from({ length: N * O }, (_, i) => {
      const [n, o] = [Math.floor(i / O), i % O];
      return (
        dot((k) => x[n * I + k] * weight[o * I + k], I) + bias[o] + scale * dot((k) => low[n * r + k] * b[o * r + k], r)
      );
    });
    return { y };
  };
  const draw = (random: Random): Case[] =>
    [[5, 7, 9, 2] as const, [1, 33, 4, 1] as const].map(([N, O, I, r]) => ({
      x: normal(random, [N, I]),
      weight: normal(random, [O, I]),
      bias: normal(random, [O]),
      a: normal(random, [r, I]),
      b: normal(random, [O, r]),
    }));
  const call = ({ x, weight, bias, a, b }: Record<string, never>) => ({
    y: ops.loraLinear(ops.scale(x, 1), weight, bias, { a, b, scale }),
  });
  await holdToGradient(devices.at(-1)!, {
    op: "loraLinear",
    reference,
    draw,
    gradient: { wrt: ["x", "weight", "bias", "a", "b"], outputs: ["y"], call },
  });
});

const configs: [string, ModelConfig, LoraOptions][] = [
  ["llama, tied head", llama, options],
  [
    "llama, some targets, head of its own",
    { ...llama, tied: false },
    { rank: 2, alpha: 3, targets: ["q", "v", "down"] },
  ],
  ["gpt2, head of its own", { ...gpt2, tied: false }, options],
];
describe.each(configs)("%s", (_, config, chosen) => {
  test("begins with the bits of the base, whatever its A", async () => {
    const on = devices[0];
    const [base, scoring] = [await lively(config, on), await lively(config, on, "score")];
    const [model, critic] = [withAdapter(base, chosen, 3), withAdapter(scoring, chosen, 3)];
    const batch = grouped(new Random("begin"));
    expect(await logps(model, batch)).toEqual(await logps(base, batch));
    expect(await scores(critic, batch)).toEqual(await scores(scoring, batch));
    expect((await trainedBits(model)).equals(await trainedBits(withAdapter(base, chosen, 3)))).toBe(true);
    expect((await trainedBits(model)).equals(await trainedBits(withAdapter(base, chosen, 4)))).toBe(false);
    for (const one of [base, scoring, model, critic]) one.dispose();
  });

  test("merged, computes the same within rounding, and trains by the gradients that its products have there", async () => {
    const on = devices[0];
    const base = await lively(config, on);
    const model = await adapted(base, chosen);
    const merged = mergeAdapter(model);
    const batch = grouped(new Random("merged"));
    const [{ logp }, { logp: wanted }, { logp: unlike }] = [
      await logps(model, batch),
      await logps(merged, batch),
      await logps(base, batch),
    ];
    logp.forEach((one, i) => expectNear(one, wanted[i], `logp ${i}`));
    expect(largest(logp[0].map((x, i) => x - unlike[0][i]))).toBeGreaterThan(1e-2);

    const [low, full] = [await gradients(model, batch), await gradients(merged, batch)];
    const { rank: r, alpha, targets } = model.lora!;
    expect([...low.keys()].sort()).toEqual(model.trained.map(({ name }) => name).sort());
    const values = new Map(
      await Promise.all(model.trained.map(async ({ name, value }) => [name, await value.read()] as const)),
    );
    const dA = new Map<string, Float64Array>();
    for (let layer = 0; layer < config.layers; layer++)
      for (const target of targets) {
        const name = `layers.${layer}.${target}`;
        const [A, B, dW] = [
          values.get(loraA(name, config))!,
          values.get(`${name}.loraB`)!,
          full.get(`${name}.weight`)!,
        ];
        const [O, I] = [B.length / r, A.length / r];
        const dB = new Float64Array(B.length);
        const sum = dA.get(loraA(name, config)) ?? new Float64Array(A.length); // of GPT-2's three
        for (let o = 0; o < O; o++)
          for (let k = 0; k < r; k++)
            for (let i = 0; i < I; i++) {
              dB[o * r + k] += (alpha / r) * dW[o * I + i] * A[k * I + i];
              sum[k * I + i] += (alpha / r) * dW[o * I + i] * B[o * r + k];
            }
        dA.set(loraA(name, config), sum);
        expectNear(low.get(`${name}.loraB`)!, dB, `gradient of ${name}.loraB`, 1e-4);
      }
    for (const [name, sum] of dA) expectNear(low.get(name)!, sum, `gradient of ${name}`, 1e-4);
    for (const one of [base, model, merged]) one.dispose();
  });

  test("no gradient of a frozen weight is computed", async () => {
    const on = devices[0];
    const base = await lively(config, on);
    const model = await adapted(base, chosen);
    const shapes = new Set(model.trained.map(({ value }) => value.shape.join()));
    const seen = new Set<string>();
    const call = on.call.bind(on);
    on.call = (op, args) => {
      op.arguments.forEach(({ name, kind }, i) => {
        const rows = op.name === "embeddingGrad" && (args[i] as Tensor | undefined)?.shape[0] !== config.vocabulary; // of activations
        if (/^d(weight|table|gain|bias)$/.test(name) && kind !== "in" && args[i] && !rows)
          seen.add((args[i] as Tensor).shape.join());
      });
      call(op, args);
    };
    try {
      await gradients(model, grouped(new Random("frozen")).slice(0, 3)); // fewer rows than a vocabulary of 97, which theirs would be taken for
    } finally {
      on.call = call;
    }
    expect(seen).toEqual(shapes);
    for (const one of [base, model]) one.dispose();
  });

  test("gradients have the same bits for every split, device and with recomputation, and agree with those of unshared prompts", async () => {
    const batch = grouped(new Random("split"));
    let wanted: Map<string, Float32Array> | undefined;
    for (const on of devices) {
      const base = await lively(config, on);
      const model = await adapted(base, chosen);
      for (const microBatch of [undefined, 1, 4])
        for (const recompute of [false, true]) {
          const got = await gradients(model, batch, { microBatch, recompute });
          wanted ??= got;
          expect(got).toEqual(wanted);
        }
      if (on === devices[0])
        for (const [name, got] of await gradients(model, batch, { sharePrompts: false }))
          expectNear(wanted!.get(name)!, got, name);
      for (const one of [base, model]) one.dispose();
    }
  });

  test("samples with the log-probs of training, alone and in a batch", async () => {
    let wanted: Float32Array[] | undefined;
    for (const on of [devices[0], devices.at(-1)!]) {
      const base = await lively(config, on);
      const model = await adapted(base, chosen);
      const requests = grouped(new Random("samples")).map(({ prompt }, index) => ({ prompt, index, sample: 0 }));
      const sampled = await generate(model, requests, { maxTokens: 20, temperature: 0.9, seed: 2, slots: 3 });
      const { logp } = await logps(model, sampled, { temperature: 0.9 });
      expect(logp).toEqual(sampled.map((one) => one.logp));
      wanted ??= logp;
      expect(logp).toEqual(wanted);
      for (const one of [base, model]) one.dispose();
    }
  });

  test.each(["f32", "bf16"] as const)(
    "PPO in %s from an adapter that is not 0: first ratios are 1, the KL begins with 0, only adapter and score move, same bits for every split",
    async (weights) => {
      const prompts = promptGroups(grouped(new Random("ppo"))).map(([{ prompt }]) => prompt);
      const requests = prompts.flatMap((prompt, index) => [0, 1].map((sample) => ({ prompt, index, sample })));
      let wanted: Buffer | undefined;
      for (const [on, change] of [
        [devices[0], {}],
        [devices.at(-1)!, { microBatch: 3 }],
        [devices[1], { microBatch: 1, recompute: true }],
      ] as const) {
        const base = await lively(config, on);
        if (weights === "bf16") base.toBf16();
        const reference = await adapted(base, chosen);
        const reward = await adapted(base, chosen, 6, "score");
        if (weights === "bf16") for (const model of [reference, reward]) model.toBf16();
        const [policy, critic] = [withAdapter(reference), withAdapter(reward)];
        const [frozen, before] = [
          Buffer.concat([await weightsOf(base), await weightsOf(reference), await weightsOf(reward)]),
          await trainedBits(policy),
        ];
        const kl: number[] = [];
        const models = { policy, reference, reward, critic };
        for await (const metrics of ppo(models, () => requests, { ...ppoConfig, ...change, weights }))
          kl.push(metrics.kl); // throws where a ratio is not 1
        expect(kl[0]).toBe(0);
        expect(kl[1]).not.toBe(0);
        expect(
          Buffer.concat([await weightsOf(base), await weightsOf(reference), await weightsOf(reward)]).equals(frozen),
        ).toBe(true);
        expect((await trainedBits(policy)).equals(before)).toBe(false);
        expect(critic.trained.map(({ name }) => name)).toContain("score");
        const got = Buffer.concat([await trainedBits(policy), await trainedBits(critic)]);
        wanted ??= got;
        expect(got.equals(wanted)).toBe(true);
        for (const model of [base, policy, reference, reward, critic]) model.dispose();
      }
    },
  );
});

test("policy and reference, reward model and critic are one copy of the weights; moments are the adapters' alone", async () => {
  const on = devices[0];
  const wide = { ...llama, layers: 3, width: 128, headSize: 32, mlp: 384, vocabulary: 2000 };
  const used = () => on.memory().current;
  const start = used();
  const reference = Transformer.random(wide, "logits", on, 1);
  const weights = used() - start;
  const policy = withAdapter(reference, { rank: 4, alpha: 8 }, 1);
  const reward = withAdapter(reference, { rank: 4, alpha: 8 }, 2, "score");
  const critic = withAdapter(reward);
  const adapters = used() - start - weights;
  const trained = policy.trained.reduce((sum, { value }) => sum + 4 * value.size, 0);
  expect(trained).toBeLessThan(weights / 10);
  expect(adapters).toBeLessThan(3 * 1.25 * trained); // an allocation is up to a fifth larger than asked
  const learner = ppoLearner({ policy, critic }, ppoConfig);
  expect(used() - start - weights - adapters).toBeLessThan(2 * 2 * 1.25 * trained);
  learner[Symbol.dispose]();
  for (const model of [reference, policy, reward, critic]) model.dispose();
  expect(used()).toBe(start);
});

test("learns by SFT and from comparisons, resumed to the same bits", async () => {
  const on = devices[0];
  const base = await lively(llama, on);
  const frozen = await weightsOf(base);
  const random = new Random("learns");
  const [batch, pairs] = [
    episodes(random, 6),
    Array.from({ length: 4 }, () => ({ episodes: episodes(random, 2), pairs: [{ chosen: 0, rejected: 1 }] })),
  ];
  const schedule = { ...plainAdam, learningRate: 1e-2, schedule: "constant" as const, warmup: 0, steps: 30 };
  const losses: number[] = [];
  const whole = withAdapter(base, options, 1);
  for await (const { loss } of sft(whole, () => batch, schedule)) losses.push(loss);
  expect(losses.at(-1)!).toBeLessThan(0.7 * losses[0]);

  const part = withAdapter(base, options, 1);
  const learner = sftLearner(part, schedule);
  for await (const { step } of sft(part, () => batch, schedule, learner)) if (step === 11) break;
  const rest = withAdapter(part);
  const again = sftLearner(rest, schedule);
  again.restore(learner.state());
  again.optimizers.model.restore(learner.optimizers.model.steps, await learner.optimizers.model.state());
  for await (const _ of sft(rest, () => batch, schedule, again));
  expect((await trainedBits(rest)).equals(await trainedBits(whole))).toBe(true);

  const reward = withAdapter(base, options, 1, "score");
  let accuracy = 0;
  for await (const metrics of rewardModel(reward, () => pairs, schedule)) ({ accuracy } = metrics);
  expect(accuracy).toBe(1);
  expect((await weightsOf(base)).equals(frozen)).toBe(true);
  for (const one of [base, whole, part, rest, reward]) one.dispose();
});

describe.each(["gpt2-lora-tiny", "llama-lora-tiny", "llama-reward-lora-tiny"])("PEFT's %s", (name) => {
  const from = join(root, "test/fixtures", name);
  const on = () => devices.at(-1)!;
  let model: Transformer;
  let expected: Map<string, { data: ArrayLike<number> }>;
  let ids: number[][];
  let loss: number;
  beforeAll(async () => {
    model = await loadModel(from, on());
    expected = (await readSafetensorsFile(join(from, "expected.safetensors"))).tensors;
    ({ ids, loss } = JSON.parse(await readFile(join(from, "expected.json"), "utf8")) as {
      ids: number[][];
      loss: number;
    });
  });
  afterAll(() => model.dispose());

  const outputs = async (of: Transformer, sequence: number[]) => {
    const packed = packSequences([sequence]);
    const hidden = of.hidden(packed);
    return (await (
      of.headKind === "score"
        ? of.score(
            hidden,
            Int32Array.from(packed.ids, (_, i) => i),
          )
        : of.logits(hidden)
    ).read()) as Float32Array;
  };
  const what = () => (model.headKind === "score" ? "values" : "logits");
  /** Writes tensors by the names of ours as those of an adapter, and reads them by PEFT's. */
  const named = async (values: ReadonlyMap<string, Tensor>) => {
    const holder = withAdapter(model);
    for (const { name } of model.trained) holder.set(name, values.get(name)!);
    const to = join(folder, `${name}-named`);
    await saveAdapter(holder, to, join(root, "test/fixtures/llama-tiny"));
    return (await readSafetensorsFile(join(to, "adapter_model.safetensors"))).tensors;
  };

  test("computes what PEFT computes, merged too, with its loss and its gradients", async () => {
    const merged = mergeAdapter(model);
    for (const [i, sequence] of ids.entries()) {
      const wanted = expected.get(`${what()}.${i}`)!.data;
      expectNear(await outputs(model, sequence), wanted, `sequence ${i}`);
      expectNear(await outputs(merged, sequence), wanted, `sequence ${i}, merged`);
    }
    const batch: Episode[] = ids.map((sequence) => ({ prompt: sequence.slice(0, 1), completion: sequence.slice(1) }));
    const stats = Tensor.from(new Float64Array(model.headKind === "score" ? 8 : 12), undefined, on());
    if (model.headKind === "logits") accumulate(batch, undefined, (part) => nll(model, part, tokensIn(batch), stats));
    else {
      const { rows, ...packed } = packWhole(batch);
      accumulate([0], undefined, () => {
        const found = model.score(model.hidden(packed), rows);
        return ops.preferenceLoss(found, Int32Array.of(0), Int32Array.of(1), {
          form: "bradley-terry",
          denominator: 1,
          stats,
        }).loss;
      });
    }
    expectNear([(await stats.read())[0]], [loss], "loss");
    const found = await named(new Map(model.trained.map((parameter) => [parameter.name, parameter.gradient()!])));
    expect([...found.keys()].map((key) => `grad.${key}`).sort()).toEqual(
      [...expected.keys()].filter((key) => key.startsWith("grad.")).sort(),
    );
    for (const [key, { data }] of found) expectNear(data, expected.get(`grad.${key}`)!.data, key);
    merged.dispose();
  });

  test("is written as it was read", async () => {
    const to = join(folder, `${name}-again`);
    await saveAdapter(model, to, join(from, "..", name.includes("gpt2") ? "gpt2-tiny" : "llama-tiny"));
    const [wanted, got] = [
      await readSafetensorsFile(join(from, "adapter_model.safetensors")),
      await readSafetensorsFile(join(to, "adapter_model.safetensors")),
    ];
    const sorted = (tensors: ReadonlyMap<string, unknown>) => [...tensors].sort(([a], [b]) => (a < b ? -1 : 1));
    expect(sorted(got.tensors)).toEqual(sorted(wanted.tensors));
    const config = async (at: string) =>
      JSON.parse(await readFile(join(at, "adapter_config.json"), "utf8")) as Record<string, unknown>;
    const theirs = await config(from);
    for (const [key, value] of Object.entries(await config(to)))
      if (!["target_modules", "base_model_name_or_path", "modules_to_save"].includes(key))
        expect([key, value]).toEqual([key, theirs[key]]);
    const again = await loadModel(to, on());
    expect(again.lora).toEqual(model.lora);
    expect((await trainedBits(again)).equals(await trainedBits(model))).toBe(true);
    again.dispose();
  });

  // RLHF_PEER_PYTHON names a Python that has the packages of test/fixtures/requirements.txt.
  const python = process.env.RLHF_PEER_PYTHON;
  (python ? test : test.skip)(
    "is loaded by PEFT from what is written here, with the same outputs, merged too",
    async () => {
      const to = join(folder, `${name}-written`);
      await saveAdapter(model, to, join(from, "..", name.includes("gpt2") ? "gpt2-tiny" : "llama-tiny"));
      const args = [join(root, "test/fixtures/check_adapter.py"), to, JSON.stringify(ids)];
      const { stdout } = await promisify(execFile)(python!, args, { maxBuffer: 2 ** 26 });
      const { unmerged, merged } = JSON.parse(stdout) as Record<string, number[][][]>;
      for (const [i, sequence] of ids.entries())
        for (const theirs of [unmerged, merged])
          expectNear(await outputs(model, sequence), theirs[i].flat(), `sequence ${i}`);
    },
  );
});

describe("an adapter's files", () => {
  const from = join(root, "test/fixtures/llama-lora-tiny");
  const base = join(root, "test/fixtures/llama-tiny");
  const fails = async (
    wanted: RegExp,
    change: (
      config: Record<string, unknown>,
      tensors: Map<string, { shape: readonly number[]; data: Float32Array }>,
    ) => void,
  ) => {
    const at = await mkdtemp(join(folder, "wrong-"));
    const config = {
      ...(JSON.parse(await readFile(join(from, "adapter_config.json"), "utf8")) as Record<string, unknown>),
      base_model_name_or_path: base,
    };
    const { tensors } = await readSafetensorsFile(join(from, "adapter_model.safetensors"));
    change(config, tensors as Map<string, { shape: readonly number[]; data: Float32Array }>);
    await writeFile(join(at, "adapter_config.json"), JSON.stringify(config));
    await writeSafetensors(join(at, "adapter_model.safetensors"), tensors);
    await expect(loadModel(at, devices[0])).rejects.toThrow(
      expect.objectContaining({ code: "MODEL", message: expect.stringMatching(wanted) }),
    );
  };
  const q = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";

  test("are refused by name where they are not what this package computes", async () => {
    await fails(/peft_type is "IA3", wanted LORA/, (config) => (config.peft_type = "IA3"));
    await fails(/use_dora is true/, (config) => (config.use_dora = true));
    await fails(/use_rslora is true/, (config) => (config.use_rslora = true));
    await fails(/corda_config is \{"cache_file":"x"\}/, (config) => (config.corda_config = { cache_file: "x" }));
    await fails(/rank_pattern is \{"q_proj":8\}/, (config) => (config.rank_pattern = { q_proj: 8 }));
    await fails(/bias is "all", wanted none/, (config) => (config.bias = "all"));
    await fails(/init_lora_weights is "pissa"/, (config) => (config.init_lora_weights = "pissa"));
    await fails(/r is 0, wanted a whole number from 1/, (config) => (config.r = 0));
    await fails(
      /base_model_name_or_path is "somewhere\/else", wanted the model directory/,
      (config) => (config.base_model_name_or_path = "somewhere/else"),
    );
    await fails(/which is an adapter itself/, (config) => (config.base_model_name_or_path = join(folder, "both")));
    await fails(/q_proj.lora_A.weight has shape \[3,32\], wanted \[4,32\]/, (config) => (config.r = 4));
    await fails(/layers.1.self_attn.q_proj.lora_B.weight is missing/, (_, tensors) => tensors.delete(q));
    await fails(/holds extra, which is no part/, (_, tensors) =>
      tensors.set("extra", { shape: [1], data: new Float32Array(1) }),
    );
    await fails(/score.weight is missing/, (config) => (config.task_type = "SEQ_CLS"));
    await fails(/nothing for the first block/, (_, tensors) =>
      [...tensors.keys()].filter((key) => key.includes("layers.0")).forEach((key) => tensors.delete(key)),
    );
  });
  beforeAll(async () => {
    await cp(base, join(folder, "both"), { recursive: true });
    await writeFile(join(folder, "both", "adapter_config.json"), "{}");
  });

  test("with anything in any key of the config, or cut off at any length, are read or refused by the file's name", async () => {
    const at = await mkdtemp(join(folder, "odd-"));
    const config = {
      ...(JSON.parse(await readFile(join(from, "adapter_config.json"), "utf8")) as object),
      base_model_name_or_path: base,
    };
    const weights = await readFile(join(from, "adapter_model.safetensors"));
    let read = 0;
    const tried = async (text: string, bytes: Uint8Array) => {
      await writeFile(join(at, "adapter_config.json"), text);
      await writeFile(join(at, "adapter_model.safetensors"), bytes);
      try {
        (await loadModel(at, devices[0])).dispose();
        read++;
      } catch (error) {
        expect(error).toMatchObject({
          code: expect.stringMatching(/^(MODEL|SAFETENSORS)$/),
          message: expect.stringContaining(at),
        });
      }
    };
    for (const key of Object.keys(config))
      for (const value of [null, true, -1, 0.5, 1e308, "x", [], [1], {}, { a: 1 }])
        await tried(JSON.stringify({ ...config, [key]: value }), weights);
    expect(read).toBeGreaterThan(0);
    read = 0;
    const text = JSON.stringify(config);
    for (let length = 0; length < text.length; length += 7) await tried(text.slice(0, length), weights);
    for (let length = 0; length < weights.length; length += 97) await tried(text, weights.subarray(0, length));
    expect(read).toBe(0);
  });

  test("of a model without the first part of its names are read too", async () => {
    const at = await mkdtemp(join(folder, "headless-"));
    const config = JSON.parse(await readFile(join(from, "adapter_config.json"), "utf8")) as Record<string, unknown>;
    await writeFile(join(at, "adapter_config.json"), JSON.stringify({ ...config, base_model_name_or_path: base }));
    const { tensors } = await readSafetensorsFile(join(from, "adapter_model.safetensors"));
    await writeSafetensors(
      join(at, "adapter_model.safetensors"),
      new Map([...tensors].map(([key, one]) => [key.replace("model.model.model.", "model.model."), one])),
    );
    const [wanted, got] = [await loadModel(from, devices[0]), await loadModel(at, devices[0])];
    expect((await trainedBits(got)).equals(await trainedBits(wanted))).toBe(true);
    for (const one of [wanted, got]) one.dispose();
  });

  test("over one base share its weights when they are loaded together, in bf16 too", async () => {
    const on = devices[0];
    for (const weights of ["f32", "bf16"] as const) {
      const start = on.memory().current;
      const [whole] = await loadModels([base], on, weights);
      const one = on.memory().current - start;
      whole.dispose();
      const models = await loadModels([base, from, join(root, "test/fixtures/llama-reward-lora-tiny")], on, weights);
      const adapters = models
        .flatMap(({ trained }) => trained)
        .reduce((sum, { value }) => sum + Math.max(64, 4 * value.size), 0);
      expect(on.memory().current - start).toBeLessThanOrEqual(one + 1.25 * adapters + 256); // and the frequencies of each
      expect(models.map(({ headKind, lora }) => [headKind, lora?.targets.length])).toEqual([
        ["logits", undefined],
        ["logits", 3],
        ["score", 7],
      ]);
      for (const model of models) model.dispose();
      expect(on.memory().current).toBe(start);
    }
  });

  test("are not written over the base, nor as a whole model, and what is frozen is not trained", async () => {
    const whole = await loadModel(base, devices[0]);
    const model = withAdapter(whole, options);
    await expect(saveAdapter(model, base, base)).rejects.toThrow(/holds the adapter's base/);
    await expect(saveAdapter(whole, folder, base)).rejects.toThrow(/has no adapter/);
    await expect(saveModel(model, folder)).rejects.toThrow(/saveAdapter writes it/);
    const [frozen] = await loadModels([base], devices[0]);
    expect(() => new AdamW(frozen.trained)).toThrow("all are frozen");
    for (const one of [whole, model, frozen]) one.dispose();
  });
});

test("options that a model cannot have are refused by name", async () => {
  const on = devices[0];
  const [one, other] = [await lively(llama, on), await lively(gpt2, on)];
  expect(() => withAdapter(one, { rank: 0, alpha: 1 })).toThrow("rank is 0, wanted a whole number from 1");
  expect(() => withAdapter(one, { rank: 1, alpha: 0 })).toThrow("alpha is 0, wanted a number above 0");
  expect(() => withAdapter(one)).toThrow("the model has no adapter");
  expect(() => withAdapter(one, { ...options, targets: [] })).toThrow(
    "targets is [], wanted some of q, k, v, o, gate, up, down",
  );
  expect(() => withAdapter(other, { ...options, targets: ["gate"] })).toThrow(
    "targets is [gate], wanted some of q, k, v, o, up, down",
  );
  expect(() => withAdapter(other, { ...options, targets: ["q", "v"] })).toThrow("wanted all of q, k, v or none");
  const model = withAdapter(one, options);
  expect(() => withAdapter(model, { ...options, rank: 4 })).toThrow("wants it merged first");
  for (const each of [one, other, model]) each.dispose();
});
