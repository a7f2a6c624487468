import { completionRow } from "../data/completions.js";
import { cutPrompts, stateOfTheUnion, type Address } from "../data/corpus.js";
import { jsonl } from "../data/jsonl.js";
import { rowFile } from "../data/rows.js";
import type { Device } from "../device/device.js";
import { typeError } from "../device/errors.js";
import { native } from "../device/native.js";
import { Random } from "../device/philox.js";
import { readListed, sha256 } from "../files/sums.js";
import { algorithms, type AlgorithmName } from "../rlhf/algorithms.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Config } from "./config/schema.js";
import { comparisonsOf } from "./files.js";
import { cpuName } from "./info.js";
import { duration, type Progress } from "./progress.js";
import { report, type Parts } from "./report/report.js";
import { Run } from "./run/run.js";
import { collectRows } from "./stages/collect.js";
import type { Context } from "./stages/context.js";
import { evaluateModels, type EvalRow } from "./stages/eval.js";
import { labelAll } from "./stages/label.js";
import { table } from "./table.js";
import { train } from "./train.js";

const PROMPT_STREAMS = { collect: 32, policy: 33, eval: 34 };
/**
 * The updates that the samplers outside the policy's training count as: no two stages share random
 * numbers.
 */
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

/**
 * The algorithm of this name that can train the demo's policy.
 * @throws TypeError `ARGUMENT` for another name
 */
export function policyAlgorithm(name: string): AlgorithmName {
  const names = (Object.keys(algorithms) as AlgorithmName[]).filter((one) => algorithms[one].material === "prompts");
  const found = names.find((one) => one === name);
  if (!found) throw typeError("ARGUMENT", `--policy: ${name} trains no policy, wanted ${names.join(" or ")}`);
  return found;
}

/**
 * All of RLHF on two centuries of speeches: from text to a policy that the annotators prefer.
 * @param policy the algorithm that trains the policy
 */
export async function demo(
  folder: string,
  config: Config,
  device: Device,
  progress: Progress,
  resume: boolean,
  policy: AlgorithmName = "ppo",
): Promise<Summary> {
  const inputs = { files: {}, words: { "--policy": policy } };
  using run = await Run.open(folder, config, device, resume, inputs, OUTPUTS);
  const parts = await stages({ config, device, run, progress }, policy);
  const summary = await summarised(run, parts, policy);
  const page = await report(run, policy, { ...parts, summary });
  await run.write({ "summary.json": JSON.stringify(summary, null, 2) + "\n", "report.html": page });
  return summary;
}

/** The commands of the demo, one after another, each with its files. */
async function stages(context: Context, policy: AlgorithmName): Promise<Omit<Parts, "summary">> {
  const { config, run } = context;
  const corpus = stateOfTheUnion();
  const [base, reward, out] = ["base", "reward", "policy"].map((name) => run.path(name));
  const files = { completions: run.path("completions.jsonl"), preferences: run.path("preferences.jsonl") };
  const write = (name: string) => (rows: Iterable<object>) => run.write({ [name]: jsonl(run.path(name), rows) });
  const texts = corpus.train.map(({ text }) => text);
  const cut = (from: readonly Address[], stage: keyof typeof PROMPT_STREAMS, count: number) => (tokenizer: Tokenizer) =>
    cutPrompts(from, tokenizer, { ...config.prompts, count, random: new Random(config.seed, PROMPT_STREAMS[stage]) });
  const { ptxCoef = 0, rolloutBatch, samples, updates } = config[policy];
  const asked = cut(corpus.heldOut, "policy", (rolloutBatch / samples) * updates);
  return {
    sft: await run.stage("sft", async () => {
      const heldOut = firstBytes(corpus.heldOut, HELD_OUT_BYTES);
      await run.write({ "held-out.txt": heldOut });
      return train(context, "sft", { out: base }, { text: texts, heldOut: [heldOut] });
    }),
    collect: await run.stage("collect", () =>
      collectRows(context, base, {
        weights: config.collect.weights,
        sampling: { ...config.collect, update: SAMPLING_ROUND.collect },
        prompts: cut(corpus.heldOut, "collect", config.collect.prompts),
        write: write("completions.jsonl"),
      }),
    ),
    label: await run.stage("label", () => labelled(context, files.completions, write("preferences.jsonl"))),
    reward: await run.stage("reward", () =>
      train(
        context,
        "reward",
        { model: base, out: reward },
        { data: comparisonsOf(files.preferences), heldOut: undefined },
      ),
    ),
    policy: await run.stage(policy, () =>
      train(
        context,
        policy,
        { model: base, reward, out },
        {
          prompts: (tokenizer) => Promise.resolve(asked(tokenizer)),
          asTheyAre: true,
          ...(ptxCoef > 0 ? { pretraining: texts } : {}),
        },
      ),
    ),
    eval: await run.stage("eval", async () => {
      const { result, rows } = await evaluateModels(
        context,
        { base, policy: out, reward },
        {
          sampling: { ...config.eval, update: SAMPLING_ROUND.eval },
          prompts: cut(corpus.evaluation, "eval", config.eval.prompts),
          write: write("eval.jsonl"),
        },
        "sentiment lexicon",
      );
      return { ...result, samples: rows.slice(0, 6) };
    }),
  } as unknown as Omit<Parts, "summary">;
}

async function labelled({ config, progress }: Context, file: string, write: (rows: Iterable<object>) => Promise<void>) {
  const rows = await labelAll(rowFile(file, completionRow), config);
  await write(rows);
  progress.stage("label", rows.length, "comparisons").done(`${rows.length} comparisons`);
  const disagreed = rows.filter(({ agreement }) => agreement !== 1).length;
  return { comparisons: rows.length, disagreed, annotators: config.label.annotators, example: rows[0] };
}

/** The figures that the demo ends with. */
async function summarised(run: Run, parts: Omit<Parts, "summary">, policy: AlgorithmName): Promise<Summary> {
  const { config, device } = run;
  const stages = Object.fromEntries(run.done.map(({ name, seconds }) => [name, seconds]));
  const { samples: _samples, ...figures } = parts.eval;
  const weights = run.path("policy", `${config.lora.rank > 0 ? "adapter_model" : "model"}.safetensors`);
  return {
    seconds: Object.values(stages).reduce((a, b) => a + b, 0),
    stages,
    algorithm: policy,
    ...figures,
    bitsPerByte: parts.sft.bitsPerByte,
    rewardModelAccuracy: parts.reward.accuracy,
    rewardModelCalibrationError: parts.reward.calibration.error,
    referenceSha256: parts.policy.referenceSha256,
    policySha256: sha256(await readListed(weights)),
    seed: config.seed,
    lawVersion: native.lawVersion,
    peakBytes: Math.max(...run.done.map(({ peakBytes }) => peakBytes)),
    isa: device.isa,
    threads: device.threads,
    cpu: cpuName(),
  };
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
