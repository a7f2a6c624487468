import type { Device } from "../device/device.js";
import { device } from "../device/open.js";
import { fmaPeak, readBandwidth } from "../device/limits.js";
import { PlannedDevice } from "../device/planned.js";
import { generate, requestsFor } from "../model/generate.js";
import { loraOf, loraShapes } from "../model/lora.js";
import { Transformer } from "../model/transformer.js";
import type { Episode } from "../rlhf/batch/episode.js";
import { klPerCompletion } from "../rlhf/measure/evaluate.js";
import { logps, scores } from "../rlhf/measure/logp.js";
import { AdamW } from "../rlhf/learn/optimizer.js";
import { ppo, ppoState } from "../rlhf/policy/ppo.js";
import { ranking, rewardModel } from "../rlhf/reward/model.js";
import { sft } from "../rlhf/offline/sft.js";
import { modelConfig, toTrain, withModels } from "./model.js";
import { duration } from "./progress.js";
import type { Config } from "./config/schema.js";
import { SLOTS } from "./stages/collect.js";
import { judge } from "./stages/reward.js";
import { table } from "./table.js";

export interface StagePlan {
  stage: string;
  /** Numbers that are trained or held, all models of the stage. */
  parameters: number;
  weightBytes: number;
  /** First and second moments of what is trained. */
  momentBytes: number;
  /** Gradients, activations, caches and workspace: the rest of the peak. */
  otherBytes: number;
  peakBytes: number;
  flops: number;
  seconds: number;
}

/** Shares of the machine's limits that the demo's stages reach (two cores of an AMD EPYC with AVX-512). */
const REACHED = { flops: 0.55, bandwidth: 0.55 };
const CALL_SECONDS = 1.5e-5;

/** What a stage does, on models of random weights. */
interface Stage {
  name: string;
  numbers: { trained: number; held: number };
  /** Of the models that it holds; f32 where nothing else is said. */
  weights?: "f32" | "bf16";
  /** What it does once, beside its steps. */
  once?: (on: Device) => Promise<unknown>;
  /** One of its steps, */
  step: (on: Device) => Promise<unknown>;
  /** and how many there are. */
  steps: number;
}

/**
 * The stages of a run on a device that runs nothing, prompts as they are drawn, completions at their longest: parameters, memory at its peak, FLOPs,
 * and the time that this machine needs for them.
 */
export async function plan(config: Config, threads?: number): Promise<StagePlan[]> {
  const machine = await device("cpu", { threads });
  const speed = {
    flops: REACHED.flops * (await fmaPeak(machine)),
    bandwidth: REACHED.bandwidth * (await readBandwidth(machine)),
    call: CALL_SECONDS,
  };
  await using on = new PlannedDevice(machine.threads, speed);
  await machine.close();
  const any = Transformer.random(modelConfig(config, undefined), "logits", on, 0);
  const { size } = any;
  const matrices = any.matrices.reduce((sum, { value }) => sum + value.size, 0);
  const heldBytes = { f32: 4, bf16: 4 - (2 * matrices) / size }; // of a number, in the mean
  any.dispose();
  const plans: StagePlan[] = [];
  for (const { name, numbers, weights = "f32", once, step, steps } of stages(config, size)) {
    on.resetPeak();
    await once?.(on);
    on.take();
    await step(on);
    const { flops, seconds } = on.take();
    const { trained, held } = numbers;
    const [weightBytes, momentBytes, { peak }] = [
      4 * trained + Math.round(heldBytes[weights] * held),
      8 * trained,
      on.memory(),
    ];
    plans.push({
      stage: name,
      parameters: trained + held,
      weightBytes,
      momentBytes,
      otherBytes: peak - weightBytes - momentBytes,
      peakBytes: peak,
      flops: flops * steps,
      seconds: seconds * steps,
    });
  }
  return plans;
}

/** The plan for people to read. */
export function planTable(plans: readonly StagePlan[]): string {
  const bytes = (n: number) => (n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(2)} GiB` : `${(n / 2 ** 20).toFixed(1)} MiB`);
  const rows = plans.map(({ stage, parameters, weightBytes, momentBytes, otherBytes, peakBytes, flops, seconds }) => [
    stage,
    `${(parameters / 1e6).toFixed(2)} M`,
    ...[weightBytes, momentBytes, otherBytes, peakBytes].map(bytes),
    `${(flops / 1e12).toFixed(2)} T`,
    duration(seconds),
  ]);
  const total = plans.reduce((sum, { seconds }) => sum + seconds, 0);
  const names = [
    "stage",
    "parameters",
    "weights",
    "moments",
    "gradients, activations, caches",
    "peak",
    "FLOPs",
    "expected",
  ];
  return `${table(names, rows)}\n\n${bytes(Math.max(...plans.map(({ peakBytes }) => peakBytes)))} at most, ${duration(total)} on this machine`;
}

function stages(config: Config, size: number): Stage[] {
  const { seed, prompts, collect, reward, ppo: options, eval: judged, lora } = config;
  const described = modelConfig(config, undefined);
  const adapter =
    lora.rank > 0
      ? loraShapes(described, loraOf(described, lora)).reduce(
          (sum, { shape: [rows, columns] }) => sum + rows * columns,
          0,
        )
      : 0;
  /** Models with their own weights each, or on one base, where `adapters` more are held. */
  const numbers = (trained: number, held: number, adapters: number) =>
    adapter
      ? { trained: trained * adapter, held: size + adapters * adapter }
      : { trained: trained * size, held: held * size };
  const ids = (length: number) => new Int32Array(length);
  const made = (on: Device) => Transformer.random(modelConfig(config, undefined), "logits", on, seed);
  /** As a run loads it: it never holds the f32 of a bf16 model. */
  const stored = (model: Transformer, weights: "f32" | "bf16") => {
    if (weights === "f32") return model;
    model.narrow();
    model.device.resetPeak();
    return model;
  };
  const scoring = (on: Device) => {
    const base = made(on);
    const model = base.copy("score", seed);
    base.dispose();
    return model;
  };
  const beside = (base: Transformer, on: Device, head = base.headKind) =>
    adapter ? toTrain(base, config, head) : head === "score" ? scoring(on) : made(on);
  /** Prompts differ, as they do in a run, or they would be computed once for all. */
  const begun = (i: number, length: number) => ids(length).fill(i % config.model.vocabulary, 0, 1);
  const drawn = (i: number) => begun(i, prompts.minTokens + (i % (prompts.maxTokens - prompts.minTokens + 1)));
  /** Samples of one prompt share it. */
  const requests = (count: number, samples = 1) => {
    const asked = Array.from({ length: Math.ceil(count / samples) }, (_, i) => drawn(i));
    return requestsFor(asked, samples).slice(0, count);
  };
  const episode = (i: number): Episode => ({ prompt: drawn(i), completion: ids(collect.maxTokens) });
  /** All completions of a prompt, for so many prompts. */
  const compared = (count: number) =>
    Array.from({ length: count }, (_, i) => ranking(Array<Episode>(collect.samples).fill(episode(i))));
  const text = (tokens: number) => {
    const { sequenceLength: length } = config.sft;
    return Array.from({ length: Math.max(1, Math.round(tokens / length)) }, (_, i): Episode => ({
      prompt: begun(i, 1),
      completion: ids(length),
    }));
  };
  const all = async (loop: AsyncGenerator<unknown>) => {
    for await (const _ of loop);
  };

  const units = Math.ceil(collect.prompts * (1 - reward.heldOut));
  const wave = Math.min(SLOTS, collect.prompts * collect.samples);
  const evalWave = Math.min(SLOTS, judged.prompts);
  return [
    {
      name: "sft",
      numbers: { trained: size, held: 0 },
      once: (on) => {
        const model = made(on);
        const half = model.config.context >> 1;
        const windows = Array.from({ length: 64 }, (_, i): Episode => ({
          prompt: begun(i, half),
          completion: ids(half),
        }));
        return withModels([model], async () => logps(model, windows));
      },
      step: (on) => {
        const model = made(on);
        return withModels([model], async () => {
          const optimizer = new AdamW(model.trained, config.sft);
          await all(sft(model, () => text(config.sft.batchTokens), { ...config.sft, steps: 1 }, optimizer));
          optimizer.dispose();
        });
      },
      steps: config.sft.steps,
    },
    {
      name: "collect",
      numbers: { trained: 0, held: size },
      weights: collect.weights,
      step: (on) => {
        const model = stored(made(on), collect.weights);
        return withModels([model], () =>
          generate(model, requests(wave, collect.samples), { ...collect, seed, slots: SLOTS }),
        );
      },
      steps: (collect.prompts * collect.samples) / wave,
    },
    {
      name: "reward",
      numbers: numbers(1, 1, 0),
      step: (on) => {
        const base = made(on);
        const model = beside(base, on, "score");
        return withModels([base, model], async () => {
          const optimizer = new AdamW(model.trained, reward);
          const batch = compared(Math.min(reward.batch, units));
          await all(rewardModel(model, () => batch, { ...reward, steps: 1 }, optimizer));
          optimizer.dispose();
        });
      },
      once: (on) => {
        const base = made(on);
        const model = beside(base, on, "score");
        return withModels([base, model], () => judge(model, compared(Math.min(collect.prompts - units, 64))));
      },
      steps: Math.ceil(units / reward.batch) * reward.epochs,
    },
    {
      name: "ppo",
      numbers: numbers(2, 2, 1),
      weights: options.weights,
      step: (on) => {
        const reference = stored(made(on), options.weights);
        const scores = stored(beside(reference, on, "score"), options.weights);
        const models = { policy: beside(reference, on), reference, reward: scores, critic: beside(scores, on) };
        return withModels(Object.values(models), async () => {
          const settings = { ...options, seed, updates: 1 };
          const state = ppoState(models, settings);
          await all(
            ppo(
              models,
              () => requests(options.rolloutBatch, options.samples),
              settings,
              state,
              () => text(options.ptxBatchTokens),
            ),
          );
          state.policy.dispose();
          state.critic.dispose();
        });
      },
      steps: options.updates,
    },
    {
      name: "eval",
      numbers: numbers(0, 3, 2),
      weights: judged.weights,
      step: (on) => {
        const base = stored(made(on), judged.weights);
        const [policy, rewards] = [
          stored(beside(base, on), judged.weights),
          stored(beside(base, on, "score"), judged.weights),
        ];
        return withModels([base, policy, rewards], async () => {
          const completions = [];
          for (const model of [base, policy])
            completions.push(await generate(model, requests(evalWave), { ...judged, seed, slots: SLOTS }));
          await klPerCompletion(policy, base, completions[1]);
          const [before, after] = completions;
          await scores(
            rewards,
            before.flatMap((one, i) => [one, after[i]]),
          );
        });
      },
      steps: judged.prompts / evalWave,
    },
  ];
}
