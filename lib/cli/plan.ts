import type { Device } from "../device/device.js";
import { device } from "../device/open.js";
import { fmaPeak, readBandwidth } from "../device/limits.js";
import { PlannedDevice } from "../device/planned.js";
import { generate } from "../model/generate.js";
import type { Transformer } from "../model/transformer.js";
import { algorithms, type Algorithm, type AlgorithmName } from "../rlhf/algorithms.js";
import { klPerCompletion } from "../rlhf/measure/evaluate.js";
import { scores } from "../rlhf/measure/score.js";
import type { Config } from "./config/schema.js";
import { modelsByRole, withModels } from "./model.js";
import { duration } from "./progress.js";
import { SLOTS } from "./stages/collect.js";
import {
  adapterSize,
  languageModel,
  requests,
  stored,
  synthetic,
  syntheticModels,
  trainedBeside,
} from "./synthetic.js";
import { table } from "./table.js";

/** What a stage needs. */
export interface StagePlan {
  stage: string;
  /** No stage of the demo: an algorithm that could stand in one's place. */
  isAlternative?: true;
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

const names = Object.keys(algorithms) as AlgorithmName[];

/**
 * Shares of the machine's limits that the demo's stages reach (two cores of an AMD EPYC with
 * AVX-512).
 */
const REACHED = { flops: 0.55, bandwidth: 0.55 };
const CALL_SECONDS = 1.5e-5;

/** What a stage does, on models of random weights. */
interface Stage {
  name: string;
  isAlternative?: true;
  numbers: { trained: number; held: number };
  /** The dtype of the models that it holds, f32 by default. */
  weights?: "f32" | "bf16";
  /** What it does once, beside its steps. */
  once?: (on: Device) => Promise<unknown>;
  /** The work of one step. */
  step: (on: Device) => Promise<unknown>;
  /** How many steps there are. */
  steps: number;
}

/**
 * The stages of a run on a device that runs nothing, prompts as they are drawn, completions at
 * their longest: parameters, memory at its peak, FLOPs, and the time that this machine needs for
 * them.
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
  const any = languageModel(config, on);
  const { size } = any;
  const matrices = any.matrices.reduce((sum, { value }) => sum + value.size, 0);
  const heldBytes = { f32: 4, bf16: 4 - (2 * matrices) / size }; // of a number, in the mean
  any.dispose();
  const plans: StagePlan[] = [];
  for (const { name, isAlternative, numbers, weights = "f32", once, step, steps } of stages(config, size)) {
    on.resetPeak();
    await once?.(on);
    on.workDone();
    await step(on);
    const { flops, seconds } = on.workDone();
    const { trained, held } = numbers;
    const [weightBytes, momentBytes, { peak }] = [
      4 * trained + Math.round(heldBytes[weights] * held),
      8 * trained,
      on.memory(),
    ];
    plans.push({
      stage: name,
      ...(isAlternative ? { isAlternative } : {}),
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

/**
 * The plan for people to read: the demo's stages with their total, then what could train the policy
 * in place of PPO.
 */
export function planTable(plans: readonly StagePlan[]): string {
  const bytes = (n: number) => (n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(2)} GiB` : `${(n / 2 ** 20).toFixed(1)} MiB`);
  const row = ({ stage, parameters, weightBytes, momentBytes, otherBytes, peakBytes, flops, seconds }: StagePlan) => [
    stage,
    `${(parameters / 1e6).toFixed(2)} M`,
    ...[weightBytes, momentBytes, otherBytes, peakBytes].map(bytes),
    `${(flops / 1e12).toFixed(2)} T`,
    duration(seconds),
  ];
  const own = plans.filter(({ isAlternative }) => !isAlternative);
  const others = plans.filter(({ isAlternative }) => isAlternative);
  const total = own.reduce((sum, { seconds }) => sum + seconds, 0);
  const peak = Math.max(...own.map(({ peakBytes }) => peakBytes));
  const titles = [
    "stage",
    "parameters",
    "weights",
    "moments",
    "gradients, activations, caches",
    "peak",
    "FLOPs",
    "expected",
  ];
  const lines = [table(titles, own.map(row)), `${bytes(peak)} at most, ${duration(total)} on this machine`];
  if (others.length > 0) lines.push(`In place of ppo:\n${table(titles, others.map(row))}`);
  return lines.join("\n\n");
}

/** The stages of the demo in their order, then the algorithms that are none of them. */
function stages(config: Config, size: number): Stage[] {
  const policies = names.filter((name) => algorithms[name].material === "prompts" && name !== "ppo");
  return [
    training("sft", config, size),
    sampling(config, size),
    training("reward", config, size),
    training("ppo", config, size),
    evaluation(config, size),
    ...policies.map((name) => ({ ...training(name, config, size), isAlternative: true as const })),
  ];
}

/**
 * Models with their own weights each, or adapters on one base: what is trained, what is held, and
 * adapters held of that.
 */
function numbersOf(config: Config, size: number, trained: number, held: number, adapters: number): Stage["numbers"] {
  const adapter = adapterSize(config);
  return adapter
    ? { trained: trained * adapter, held: size + adapters * adapter }
    : { trained: trained * size, held: held * size };
}

/** A round of an algorithm of the list, by its own loop on models of random weights. */
function training(name: AlgorithmName, config: Config, size: number): Stage {
  const entry: Algorithm = algorithms[name];
  const section = config[name];
  const weights = (section.weights ?? "f32") as "f32" | "bf16";
  const { material, rounds, judge } = synthetic[entry.material](section, config);
  const active = Object.entries(entry.models).filter(([, { when }]) => when?.holds(section) ?? true);
  const roles = Object.fromEntries(active);
  const all = Object.values(roles);
  const frozen = all.filter(({ trained }) => !trained);
  const fromNothing = entry.material === "texts"; // its model is drawn, and has no adapter
  const cast = async (on: Device): Promise<Record<string, Transformer>> =>
    fromNothing
      ? { [entry.saves]: languageModel(config, on) }
      : modelsByRole(roles, config, weights, syntheticModels(config, on));
  const work = async (on: Device, use: (models: Record<string, Transformer>) => Promise<unknown>) => {
    const models = await cast(on);
    return withModels(Object.values(models), () => use(models));
  };
  const options = { ...section, seed: config.seed, [entry.rounds]: 1 };
  return {
    name,
    numbers: fromNothing
      ? { trained: size, held: 0 }
      : numbersOf(
          config,
          size,
          all.length - frozen.length,
          frozen.length,
          frozen.filter(({ from }) => from === "reward").length,
        ),
    weights,
    once: (on) => work(on, (models) => judge?.(models[entry.saves]) ?? Promise.resolve()),
    step: (on) =>
      work(on, async (models) => {
        using learner = entry.learner(models, options);
        for await (const _ of entry.run(models, material, options, learner));
      }),
    steps: rounds,
  };
}

function sampling(config: Config, size: number): Stage {
  const { collect, seed } = config;
  const wave = Math.min(SLOTS, collect.prompts * collect.samples);
  return {
    name: "collect",
    numbers: { trained: 0, held: size },
    weights: collect.weights,
    step: (on) => {
      const model = stored(languageModel(config, on), collect.weights);
      const asked = requests(wave, collect.samples, config);
      return withModels([model], () => generate(model, asked, { ...collect, seed, slots: SLOTS }));
    },
    steps: (collect.prompts * collect.samples) / wave,
  };
}

function evaluation(config: Config, size: number): Stage {
  const { eval: options, seed } = config;
  const wave = Math.min(SLOTS, options.prompts);
  return {
    name: "eval",
    numbers: numbersOf(config, size, 0, 3, 2),
    weights: options.weights,
    step: (on) => {
      const base = stored(languageModel(config, on), options.weights);
      const policy = stored(trainedBeside(base, config), options.weights);
      const reward = stored(trainedBeside(base, config, "score"), options.weights);
      return withModels([base, policy, reward], async () => {
        const sample = (model: Transformer) =>
          generate(model, requests(wave, 1, config), { ...options, seed, slots: SLOTS });
        const [before, after] = [await sample(base), await sample(policy)];
        await klPerCompletion(policy, base, after);
        await scores(
          reward,
          before.flatMap((one, i) => [one, after[i]]),
        );
      });
    },
    steps: options.prompts / wave,
  };
}
