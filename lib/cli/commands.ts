import { existsSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { completionRow, readCompletions, writeCompletions, type CompletionRow } from "../data/completions.js";
import type { Calibration } from "../data/metrics.js";
import { writeJsonl } from "../data/jsonl.js";
import type { Row } from "../data/row.js";
import { orders } from "../data/order.js";
import { comparisonRow, demonstrationRow, promptRow, type DemonstrationRow } from "../data/preferences.js";
import { rowFile, textFile } from "../data/rows.js";
import { rangeError, typeError } from "../device/errors.js";
import type { Device } from "../device/device.js";
import { loadModel, loadModels } from "../model/checkpoint.js";
import { Transformer } from "../model/transformer.js";
import { requestsFor } from "../model/generate.js";
import { baseFolder } from "../files/adapter.js";
import { makeFolder } from "../files/durable.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import { logps, values } from "../rlhf/measure/logp.js";
import { fit } from "./fit.js";
import { Folder } from "./run/folder.js";
import { apart, copyTokenizer, ppoModels, saveTrained, stopIds, toTrain, TRAINED_FILES } from "./model.js";
import type { Inputs } from "./run/inputs.js";
import type { Progress } from "./progress.js";
import { stageReport } from "./report/report.js";
import { Run } from "./run/run.js";
import type { Config } from "./config/schema.js";
import { completionRows, sampleAll } from "./stages/collect.js";
import { evaluate } from "./stages/eval.js";
import { labelAll } from "./stages/label.js";
import { ppoStage } from "./stages/ppo.js";
import { rewardStage, verdict } from "./stages/reward.js";
import { scoreRows } from "./stages/score.js";
import { sftStage, type SftText } from "./stages/sft.js";
import { Comparisons, Documents, Prompts } from "../rlhf/batch/rows.js";
import { textBatches } from "../rlhf/batch/order.js";
import { Random } from "../device/philox.js";
import { table } from "./table.js";
import { say, sayJson } from "./terminal.js";

// The commands of single stages: files in, files out.

interface Opened {
  config: Config;
  device: Device;
  progress: Progress;
}

const PROMPT_ORDER_STREAM = 48;

/**
 * Whether a file has rows, or is one text: its name says so.
 * @throws TypeError `FILE` for another name
 */
function hasRows(file: string): boolean {
  if (/\.(jsonl?(\.gz)?|parquet)$/i.test(file)) return true;
  if (/\.(txt|md)$/i.test(file)) return false;
  throw typeError("FILE", `${file}: wanted a text, .txt or .md, or rows, .jsonl, .json (these also .gz) or .parquet`);
}

/** Documents of a text file (one), or of rows with `text`. */
const documents = (file: string): AsyncIterable<string> =>
  hasRows(file) ? rowFile(file, (row) => row.text("text")) : textFile(file);

/** Documents, or demonstrations where the first row has a prompt, rendered for the model in the folder. */
async function sftText(file: string, folder?: string): Promise<SftText> {
  if (!hasRows(file)) return documents(file);
  const tokenizer = folder ? await Tokenizer.load(folder) : undefined;
  const chat = tokenizer && (() => tokenizer.chat);
  let parse: ((row: Row) => string | DemonstrationRow) | undefined;
  return rowFile(file, (row) =>
    (parse ??= row.has("prompt") ? (one) => demonstrationRow(one, chat) : (one) => one.text("text"))(row),
  );
}

async function prompts(file: string, tokenizer: Tokenizer, { folder }: Run): Promise<Prompts> {
  const all = await Prompts.read(
    rowFile(file, (row) => promptRow(row, () => tokenizer.chat)),
    tokenizer,
    folder,
  );
  if (all.length === 0) throw rangeError("EMPTY", `--prompts: ${file} has no prompts`);
  return all;
}

/** The curves of a stage, beside what it wrote. */
const writeReport = async (run: Run, title: string, calibration?: Calibration) =>
  run.write({ "report.html": await stageReport(run, title, calibration) });

export async function sft(
  { config, device, progress }: Opened,
  files: { data: string; heldOut?: string; model?: string; out: string },
  resume: boolean,
): Promise<void> {
  if (files.model) await apart(config, files.out, "--model", files.model);
  const inputs = { files: { "--data": files.data, "--held-out": files.heldOut, "--model": files.model } };
  using run = await Run.open(files.out, config, device, resume, inputs, TRAINED_FILES);
  const text = await sftText(files.data, files.model);
  const heldOut = files.heldOut ? await sftText(files.heldOut, files.model) : [];
  const result = await run.stage("sft", () =>
    sftStage({ config, device, run, progress }, { text, heldOut, model: files.model, out: files.out }),
  );
  if (files.model) await copyTokenizer(files.model, files.out);
  const told = `loss ${result.loss.toFixed(3)}${result.heldOutBytes > 0 ? `, ${result.bitsPerByte.toFixed(3)} bits per held-out byte` : ""}`;
  await writeReport(run, told);
  say(`${files.out}: ${result.parameters} weights, ${told}`);
  await device.close();
}

/** Does the work of a command that writes one file, in a run that lies beside that until the file is whole. */
async function runBeside<T extends Record<string, unknown>>(
  { config, device }: Opened,
  { stage, out, resume, inputs }: { stage: string; out: string; resume: boolean; inputs: Inputs },
  work: (run: Run) => Promise<T>,
): Promise<T> {
  using run = await Run.open(`${out}.partial`, config, device, resume, inputs);
  const result = await run.stage(
    stage,
    () => work(run),
    () => existsSync(out),
  );
  await run.remove();
  return result;
}

export async function collect(
  { config, device, progress }: Opened,
  {
    model: folder,
    prompts: file,
    out,
    weights,
    ...sampling
  }: {
    model: string;
    prompts: string;
    out: string;
    weights: "f32" | "bf16";
    samples: number;
    maxTokens: number;
    temperature: number;
    topK: number;
    topP: number;
    minP: number;
    seed: number;
  },
  resume: boolean,
): Promise<void> {
  const inputs = { files: { "--model": folder, "--prompts": file } };
  const configured = { ...config, collect: { ...config.collect, ...sampling, weights } };
  await runBeside({ config: configured, device, progress }, { stage: "collect", out, resume, inputs }, async (run) => {
    const [model, tokenizer] = await Promise.all([loadModel(folder, device, weights), Tokenizer.load(folder)]);
    fit("--model", folder, model, "logits", tokenizer);
    const options = { ...sampling, stop: await stopIds(folder, model, tokenizer) };
    using asked = await prompts(file, tokenizer, run);
    using completions = await sampleAll(model, asked, options, { progress, run }, "collect");
    await writeCompletions(out, completionRows(asked, completions, tokenizer, options));
    return { completions: completions.length };
  });
  await device.close();
}

export async function label({ config, device }: Opened, { data, out }: { data: string; out: string }): Promise<void> {
  const rows = await labelAll(rowFile(data, completionRow), config);
  await writeJsonl(out, rows);
  say(`${out}: ${rows.length} comparisons`);
  await device.close();
}

export async function reward(
  { config, device, progress }: Opened,
  {
    model: folder,
    data,
    heldOut,
    criterion,
    out,
  }: { model: string; data: string; heldOut?: string; criterion?: string; out: string },
  resume: boolean,
): Promise<void> {
  await apart(config, out, "--model", folder);
  const inputs = {
    files: { "--model": folder, "--data": data, "--held-out": heldOut },
    words: { "--criterion": criterion },
  };
  using run = await Run.open(out, config, device, resume, inputs, TRAINED_FILES);
  const [base, tokenizer] = [await loadModel(folder, device), await Tokenizer.load(folder)];
  const read = (file: string) => {
    const rows = rowFile(file, (row) => comparisonRow(row, () => tokenizer.chat, criterion));
    return Comparisons.read(rows, tokenizer, { softLabels: config.reward.softLabels, folder: run.folder });
  };
  fit("--model", folder, base, "any", tokenizer);
  const model = toTrain(base, config, "score");
  const result = await run.stage("reward", async () => {
    using compared = await read(data);
    using judging = heldOut === undefined ? undefined : await read(heldOut);
    const done = await rewardStage({ config, device, run, progress }, model, compared, judging);
    await saveTrained(model, out, folder);
    await copyTokenizer(folder, out);
    return done;
  });
  const told = verdict(result);
  await writeReport(run, told, result.heldOut > 0 ? result.calibration : undefined);
  say(`${out}: ${told}`);
  await device.close();
}

export async function ppo(
  { config, device, progress }: Opened,
  files: { model: string; reward: string; prompts: string; pretraining?: string; out: string },
  resume: boolean,
): Promise<void> {
  const {
    seed,
    sft: { sequenceLength: length },
    ppo: options,
  } = config;
  if (options.ptxCoef > 0 !== (files.pretraining !== undefined))
    throw typeError("CONFIG", "--pretraining goes with ppo.ptxCoef above 0, and the other way round");
  await apart(config, files.out, "--model", files.model);
  await apart(config, files.out, "--reward", files.reward);
  const { model, reward, prompts: asking, pretraining: mix } = files;
  const inputs = { files: { "--model": model, "--reward": reward, "--prompts": asking, "--pretraining": mix } };
  using run = await Run.open(files.out, config, device, resume, inputs, TRAINED_FILES);
  const tokenizer = await Tokenizer.load(files.model);
  const models = await ppoModels(device, config, files);
  fit("--model", files.model, models.policy, "logits", tokenizer);
  fit("--reward", files.reward, models.reward, "score", tokenizer);
  using all = await prompts(files.prompts, tokenizer, run);
  const stop = await stopIds(files.model, models.policy, tokenizer);
  const orderOf = orders(all.length, (round) => new Random(seed, PROMPT_ORDER_STREAM).at(round));
  const batch = (update: number) => {
    const each = options.rolloutBatch / options.samples; // prompts of an update
    const asked = Array.from({ length: each }, (_, i) => {
      const place = update * each + i;
      return all.at(orderOf(Math.floor(place / all.length))[place % all.length]).ids;
    });
    return requestsFor(asked, options.samples);
  };
  using tokens = files.pretraining
    ? await Documents.read(documents(files.pretraining), tokenizer, run.folder)
    : undefined;
  const pretraining =
    tokens && textBatches(tokens, { length, batch: Math.max(1, Math.round(options.ptxBatchTokens / length)), seed });
  const result = await run.stage("ppo", async () => {
    const done = await ppoStage(
      { config, device, run, progress },
      models,
      batch,
      { ...options, seed, stop },
      pretraining,
    );
    await saveTrained(models.policy, files.out, files.model);
    await copyTokenizer(files.model, files.out);
    return done;
  });
  const told = `${result.updates} updates of ${options.rolloutBatch} completions`;
  await writeReport(run, told);
  say(`${files.out}: ${told}`);
  await device.close();
}

export async function evaluation(
  opened: Opened,
  files: { base: string; policy: string; prompts: string; reward?: string; out: string },
  resume: boolean,
): Promise<void> {
  const inputs = {
    files: { "--base": files.base, "--policy": files.policy, "--prompts": files.prompts, "--reward": files.reward },
  };
  const { config, device, progress } = opened;
  const result = await runBeside(opened, { stage: "eval", out: files.out, resume, inputs }, async (run) => {
    const tokenizer = await Tokenizer.load(files.policy);
    const folders = [files.base, files.policy, ...(files.reward ? [files.reward] : [])];
    const [base, policy, rewardModel] = await loadModels(folders, device, config.eval.weights);
    fit("--base", files.base, base, "logits", tokenizer);
    fit("--policy", files.policy, policy, "logits", tokenizer);
    if (files.reward) fit("--reward", files.reward, rewardModel, "score", tokenizer);
    const sampling = {
      ...config.eval,
      samples: 1,
      seed: config.seed,
      stop: await stopIds(files.policy, policy, tokenizer),
    };
    using asked = await prompts(files.prompts, tokenizer, run);
    const { result, rows } = await evaluate(
      { progress, run },
      { base, policy, reward: rewardModel },
      tokenizer,
      asked,
      sampling,
    );
    await writeJsonl(files.out, rows);
    return result;
  });
  say(
    table(
      ["figure", "value"],
      Object.entries(result).map(([name, value]) => [
        name,
        Array.isArray(value)
          ? value.map((x) => x.toFixed(4)).join(" to ")
          : typeof value === "number"
            ? String(Number(value.toFixed(4)))
            : String(value),
      ]),
    ),
  );
  await device.close();
}

/** Writes to standard output where no file is named. */
export async function score(
  { device }: Opened,
  { model: folder, data, out }: { model: string; data: string; out?: string },
): Promise<void> {
  const [model, tokenizer] = [await loadModel(folder, device), await Tokenizer.load(folder)];
  fit("--model", folder, model, "score", tokenizer);
  const rows = scoreRows(model, tokenizer, data);
  if (out) await writeJsonl(out, rows);
  else for await (const row of rows) sayJson(row);
  await device.close();
}

export async function logp(
  { device }: Opened,
  {
    model: folder,
    data,
    out,
    microBatch,
    temperature,
  }: { model: string; data: string; out: string; microBatch: number; temperature?: number },
): Promise<void> {
  const model = await loadModel(folder, device);
  const rows = await readCompletions(data);
  const episodes = rows.map(({ prompt_ids, completion_ids }) => ({ prompt: prompt_ids, completion: completion_ids }));
  const results: object[] = rows.map((row) => ({ ...row }));
  if (model.headKind === "score") {
    const value = await values(model, episodes, { microBatch });
    results.forEach((row, i) => {
      Object.assign(row, { value: [...value[i]] });
      delete (row as Partial<CompletionRow>).logprobs; // those of another model
      delete (row as Partial<CompletionRow>).truncated_logprobs;
    });
  } else {
    // lines of one temperature go through the model together
    for (const t of new Set(rows.map((row) => temperature ?? row.temperature))) {
      const chosen = rows.flatMap((row, i) => ((temperature ?? row.temperature) === t ? [i] : []));
      const { logp, entropy } = await logps(
        model,
        chosen.map((i) => episodes[i]),
        { microBatch, temperature: t || 1 },
      );
      chosen.forEach((i, k) =>
        Object.assign(results[i], { temperature: t, logprobs: [...logp[k]], entropy: [...entropy[k]] }),
      );
    }
  }
  await makeFolder(dirname(out));
  await writeJsonl(out, results);
  await device.close();
}

/** Folds an adapter into its base: a model like any other. */
export async function merge(
  { device }: Opened,
  { model: folders, out }: { model: string[]; out: string },
): Promise<void> {
  const models = await loadModels(folders, device);
  if (models.length === 1 && !models[0].lora)
    throw typeError("MODEL", `--model: ${folders[0]} is a whole model, wanted an adapter, or several models`);
  for (const folder of folders)
    if (resolve(out) === resolve(await baseFolder(folder)))
      throw typeError(
        "MODEL",
        `--out: ${out} holds ${resolve(out) === resolve(folder) ? "one of the models" : "the adapter's base"}, wanted another folder`,
      );
  using _ = await Folder.open(out, TRAINED_FILES);
  const model = Transformer.average(models);
  await saveTrained(model, out);
  await copyTokenizer(folders[0], out);
  say(`${out}: ${model.size} weights`);
  await device.close();
}
