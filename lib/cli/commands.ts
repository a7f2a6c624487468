import { existsSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { completionRow, readCompletions, writeCompletions, type CompletionRow } from "../data/completions.js";
import { writeJsonl } from "../data/jsonl.js";
import { rowFile } from "../data/rows.js";
import type { Device } from "../device/device.js";
import { typeError } from "../device/errors.js";
import { makeFolder } from "../files/durable.js";
import { loadModel, loadModels } from "../model/checkpoint.js";
import { baseFolder } from "../files/adapter.js";
import { averageModels } from "../model/adapt.js";
import { algorithms, type Algorithm, type AlgorithmName } from "../rlhf/algorithms.js";
import { logps } from "../rlhf/measure/logp.js";
import { values } from "../rlhf/measure/score.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Config } from "./config/schema.js";
import { inputsOf, isFunctions, promptsOf, sourcesOf, type AlgorithmFiles } from "./files.js";
import { checkFolders, checkModel, copyTokenizer, saveTrained, TRAINED_FILES } from "./model.js";
import type { Progress } from "./progress.js";
import { stageReport } from "./report/report.js";
import { Folder } from "./run/folder.js";
import type { Inputs } from "./run/inputs.js";
import { Run } from "./run/run.js";
import { collectRows } from "./stages/collect.js";
import { evaluateModels } from "./stages/eval.js";
import { labelAll } from "./stages/label.js";
import { scoreRows } from "./stages/score.js";
import { table } from "./table.js";
import { say, sayJson } from "./terminal.js";
import { train } from "./train.js";

// The commands of single stages: files in, files out.

interface Opened {
  config: Config;
  device: Device;
  progress: Progress;
}

/** Trains by an algorithm of the list, from files to a folder. */
export async function trainFiles(
  { config, device, progress }: Opened,
  name: AlgorithmName,
  files: AlgorithmFiles,
  resume: boolean,
): Promise<void> {
  const entry: Algorithm = algorithms[name];
  const { model, reward, pretraining, out } = files;
  if ((config[name].ptxCoef ?? 0) > 0 !== (pretraining !== undefined))
    throw typeError("CONFIG", `--pretraining goes with ${name}.ptxCoef above 0, and the other way round`);
  if (model) await checkFolders(config, out, "--model", model);
  if (reward && !isFunctions(reward)) await checkFolders(config, out, "--reward", reward);
  using run = await Run.open(out, config, device, resume, inputsOf(entry, files), TRAINED_FILES);
  const result = await run.stage(name, async () =>
    train({ config, device, run, progress }, name, files, await sourcesOf(entry.material, files)),
  );
  const { verdict, heldOut = 0, calibration } = result;
  const page = await stageReport(run, `${entry.title}: ${verdict}`, heldOut > 0 ? calibration : undefined);
  await run.write({ "report.html": page });
  say(`${out}: ${verdict}`);
  await device.close();
}

/**
 * Does the work of a command that writes one file, in a run that lies beside that until the file is
 * whole.
 */
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
  await runBeside({ config: configured, device, progress }, { stage: "collect", out, resume, inputs }, (run) =>
    collectRows({ config, device, run, progress }, folder, {
      weights,
      sampling,
      prompts: (tokenizer) => promptsOf(file, tokenizer, run.folder),
      write: (rows) => writeCompletions(out, rows),
    }),
  );
  await device.close();
}

export async function label(config: Config, { data, out }: { data: string; out: string }): Promise<void> {
  const rows = await labelAll(rowFile(data, completionRow), config);
  await writeJsonl(out, rows);
  say(`${out}: ${rows.length} comparisons`);
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
  const { out, prompts, ...folders } = files;
  const result = await runBeside(opened, { stage: "eval", out, resume, inputs }, async (run) => {
    const { result } = await evaluateModels({ config, device, run, progress }, folders, {
      sampling: config.eval,
      prompts: (tokenizer) => promptsOf(prompts, tokenizer, run.folder),
      write: (rows) => writeJsonl(out, rows),
    });
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
  checkModel("--model", folder, model, "score", tokenizer);
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
  const model = averageModels(models);
  await saveTrained(model, out);
  await copyTokenizer(folders[0], out);
  say(`${out}: ${model.size} weights`);
  await device.close();
}
