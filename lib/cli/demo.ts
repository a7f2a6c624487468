import { cutPrompts, stateOfTheUnion, type Address } from "../data/corpus.js";
import { byPrompt, completionRow } from "../data/completions.js";
import { jsonl } from "../data/jsonl.js";
import { comparisonRow } from "../data/preferences.js";
import { rowFile } from "../data/rows.js";
import type { Device } from "../device/device.js";
import { native } from "../device/native.js";
import { Random } from "../device/philox.js";
import { loadModel, loadModels } from "../model/checkpoint.js";
import { requestsFor } from "../model/generate.js";
import { readListed, sha256 } from "../files/sums.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { Comparisons, Documents, type Prompt } from "../rlhf/batch/rows.js";
import { textBatches } from "../rlhf/batch/order.js";
import { cpuName } from "./info.js";
import { copyTokenizer, ppoModels, saveTrained, toTrain, withModels } from "./model.js";
import { duration, type Progress } from "./progress.js";
import { report } from "./report/report.js";
import { Run } from "./run/run.js";
import type { Config } from "./config/schema.js";
import { completionRows, sampleAll } from "./stages/collect.js";
import { evaluate, type EvalRow } from "./stages/eval.js";
import { labelAll } from "./stages/label.js";
import { ppoStage } from "./stages/ppo.js";
import { rewardStage } from "./stages/reward.js";
import { sftStage } from "./stages/sft.js";
import { table } from "./table.js";

const PROMPT_STREAMS = { collect: 32, ppo: 33, eval: 34 };
/** The updates that the samplers outside PPO count as, so that no two stages share random numbers. */
const SAMPLING_ROUND = { collect: 2 ** 30, eval: 2 ** 30 + 1 };
/** What the demo writes to its folder, beside what every run does. */
const OUTPUTS = [
  "held-out.txt",
  "completions.jsonl",
  "preferences.jsonl",
  "eval.jsonl",
  "summary.json",
  "base",
  "reward",
  "policy",
];
const HELD_OUT_BYTES = 2 ** 18;

export interface Summary extends Record<string, unknown> {
  seconds: number;
  stages: Record<string, number>;
  winRate: number;
  policySha256: string;
}

/** All of RLHF on two centuries of speeches: from text to a policy that the annotators prefer. */
export async function demo(
  folder: string,
  config: Config,
  device: Device,
  progress: Progress,
  resume: boolean,
): Promise<Summary> {
  using run = await Run.open(folder, config, device, resume, undefined, OUTPUTS);
  const context = { config, device, run, progress };
  const { seed } = config;
  const corpus = stateOfTheUnion();
  const [baseDir, rewardDir, policyDir] = ["base", "reward", "policy"].map((name) => run.path(name));
  const writeRows = (name: string, rows: Iterable<object>) => run.write({ [name]: jsonl(run.path(name), rows) });
  const load = (directory: string, weights?: "f32" | "bf16") => loadModel(directory, device, weights);

  const sft = await run.stage("sft", async () => {
    const heldOut = firstBytes(corpus.heldOut, HELD_OUT_BYTES);
    await run.write({ "held-out.txt": heldOut });
    return sftStage(context, { text: corpus.train.map(({ text }) => text), heldOut: [heldOut], out: baseDir });
  });
  const tokenizer = await Tokenizer.load(baseDir);
  const prompts = (stage: keyof typeof PROMPT_STREAMS, count: number): Prompt[] =>
    cutPrompts(stage === "eval" ? corpus.evaluation : corpus.heldOut, tokenizer, {
      ...config.prompts,
      count,
      random: new Random(seed, PROMPT_STREAMS[stage]),
    });
  const stop = [tokenizer.eosId!];

  const collect = await run.stage("collect", async () => {
    const base = await load(baseDir, config.collect.weights);
    return withModels([base], async () => {
      const sampling = { ...config.collect, seed, stop, update: SAMPLING_ROUND.collect };
      const asked = prompts("collect", config.collect.prompts);
      using completions = await sampleAll(base, asked, sampling, context, "collect");
      const rows = [...completionRows(asked, completions, tokenizer, sampling)];
      await writeRows("completions.jsonl", rows);
      const [first] = byPrompt(rows);
      return {
        prompts: asked.length,
        completions: rows.length,
        example: { prompt: first[0].prompt, completions: first.slice(0, 2).map(({ completion }) => completion) },
      };
    });
  });

  const label = await run.stage("label", async () => {
    const rows = await labelAll(rowFile(run.path("completions.jsonl"), completionRow), config);
    await writeRows("preferences.jsonl", rows);
    const bar = progress.stage("label", rows.length, "comparisons");
    bar.done(`${rows.length} comparisons`);
    const disagreed = rows.filter(({ agreement }) => agreement !== 1).length;
    return { comparisons: rows.length, disagreed, annotators: config.label.annotators, example: rows[0] };
  });

  const reward = await run.stage("reward", async () => {
    const base = await load(baseDir);
    const model = toTrain(base, config, "score");
    return withModels([base, model], async () => {
      const rows = rowFile(run.path("preferences.jsonl"), (row) => comparisonRow(row));
      using compared = await Comparisons.read(rows, tokenizer, { softLabels: config.reward.softLabels, folder });
      const result = await rewardStage(context, model, compared);
      await saveTrained(model, rewardDir, baseDir);
      await copyTokenizer(baseDir, rewardDir);
      return result;
    });
  });

  const ppo = await run.stage("ppo", async () => {
    const models = await ppoModels(device, config, { model: baseDir, reward: rewardDir });
    return withModels(Object.values(models), async () => {
      const { rolloutBatch, samples, updates, ptxCoef, ptxBatchTokens } = config.ppo;
      const each = rolloutBatch / samples; // prompts of an update
      const asked = prompts("ppo", each * updates).map(({ ids }) => ids);
      const batch = (update: number) => requestsFor(asked.slice(update * each, (update + 1) * each), samples);
      const { sequenceLength: length } = config.sft;
      const texts = corpus.train.map(({ text }) => text);
      using tokens = ptxCoef > 0 ? await Documents.read(texts, tokenizer, folder) : undefined;
      const pretraining =
        tokens && textBatches(tokens, { length, batch: Math.max(1, Math.round(ptxBatchTokens / length)), seed });
      const result = await ppoStage(context, models, batch, { ...config.ppo, seed, stop }, pretraining);
      await saveTrained(models.policy, policyDir, baseDir);
      await copyTokenizer(baseDir, policyDir);
      return result;
    });
  });

  const evaluation = await run.stage("eval", async () => {
    const [base, policy, rewardModel] = await loadModels([baseDir, policyDir, rewardDir], device, config.eval.weights);
    return withModels([base, policy, rewardModel], async () => {
      const sampling = { ...config.eval, samples: 1, seed, stop, update: SAMPLING_ROUND.eval };
      const { result, rows } = await evaluate(
        context,
        { base, policy, reward: rewardModel },
        tokenizer,
        prompts("eval", config.eval.prompts),
        sampling,
        "sentiment lexicon",
      );
      await writeRows("eval.jsonl", rows);
      return { ...result, samples: rows.slice(0, 6) };
    });
  });

  const stages = Object.fromEntries(run.done.map(({ name, seconds }) => [name, seconds]));
  const { samples: _samples, ...figures } = evaluation;
  const summary = {
    seconds: Object.values(stages).reduce((a, b) => a + b, 0),
    stages,
    ...figures,
    bitsPerByte: sft.bitsPerByte,
    rewardModelAccuracy: reward.accuracy,
    rewardModelCalibrationError: reward.calibration.error,
    referenceSha256: ppo.referenceSha256,
    policySha256: sha256(
      await readListed(`${policyDir}/${config.lora.rank > 0 ? "adapter_model" : "model"}.safetensors`),
    ),
    seed,
    lawVersion: native.lawVersion,
    peakBytes: Math.max(...run.done.map(({ peakBytes }) => peakBytes)),
    isa: device.isa,
    threads: device.threads,
    cpu: cpuName(),
  };
  const page = await report(run, { sft, collect, label, reward, ppo, eval: evaluation, summary });
  await run.write({ "summary.json": JSON.stringify(summary, null, 2) + "\n", "report.html": page });
  return summary;
}

/** What the demo ends with. */
export function summaryTable(summary: Summary, folder: string): string {
  const s = summary as Record<string, number> & Summary;
  const [low, high] = s.winRateInterval as unknown as [number, number];
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const rows = [
    ["win rate by the annotator", "50.0 %", `${percent(s.winRate)}  (95 %: ${percent(low)} to ${percent(high)})`],
    ["sentiment of a completion", s.scoreBefore.toFixed(2), s.scoreAfter.toFixed(2)],
    ["reward of a completion", s.rewardBefore.toFixed(2), s.rewardAfter.toFixed(2)],
    ["KL to the base model, nats per completion", "0.00", s.klPerCompletion.toFixed(2)],
    ["tokens of a completion", s.lengthBefore.toFixed(1), s.lengthAfter.toFixed(1)],
    ["distinct-2", s.distinct2Before.toFixed(3), s.distinct2After.toFixed(3)],
  ];
  const lines = [
    `base model ${s.bitsPerByte.toFixed(3)} bits per held-out byte; reward model: ${Number.isFinite(s.rewardModelAccuracy) ? `${percent(s.rewardModelAccuracy)} of held-out comparisons right` : "none held out"}`,
    `${duration(s.seconds)} on ${s.cpu} (${s.isa}, ${s.threads} threads), ${(s.peakBytes / 2 ** 20).toFixed(0)} MiB; policy ${s.policySha256.slice(0, 16)}`,
    `${folder}/report.html`,
  ];
  return `${table([`${s.prompts} prompts that no stage saw`, "base", "policy"], rows)}\n\n${lines.join("\n")}`;
}

/** One sample, before and after, for people to read. */
export const sampleText = ({ prompt, base, policy }: EvalRow): string =>
  `\u25b8${prompt}\n  base:  ${base.replace(/\s+/g, " ")}\n  policy:${policy.replace(/\s+/g, " ")}`;

function firstBytes(addresses: readonly Address[], bytes: number): string {
  const text = addresses.map(({ text }) => text).join("\n");
  return Buffer.from(text)
    .subarray(0, bytes)
    .toString("utf8")
    .replace(/\ufffd+$/, "");
}
