import { comparisonRow, demonstrationRow, promptRow, type DemonstrationRow } from "../data/preferences.js";
import type { Row } from "../data/row.js";
import { rowFile, textFile } from "../data/rows.js";
import { rangeError, typeError } from "../device/errors.js";
import type { Algorithm, Material } from "../rlhf/algorithms.js";
import { Prompts } from "../rlhf/batch/rows.js";
import { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Sources } from "./material.js";
import type { Inputs } from "./run/inputs.js";

// The files that the command of an algorithm takes, and what is read of them.

/** An option of a command that names a file or a folder, or is a word. */
export interface FileOption {
  name: keyof AlgorithmFiles;
  flags: string;
  about: string;
  required?: true;
  /** No file: a word. */
  isWord?: true;
}

/** The files of an algorithm, by their options. */
export interface AlgorithmFiles {
  model?: string;
  reward?: string;
  data?: string;
  heldOut?: string;
  criterion?: string;
  prompts?: string;
  pretraining?: string;
  out: string;
}

const TEXT_ROWS = "rows (.jsonl, .json, .parquet) with text";
const byMaterial: Record<Material, FileOption[]> = {
  texts: [
    { name: "model", flags: "--model <dir>", about: "start from this model" },
    {
      name: "data",
      flags: "--data <file>",
      about: `text (.txt, .md), or ${TEXT_ROWS}, or with prompt and completion (then the completion is learnt)`,
      required: true,
    },
    { name: "heldOut", flags: "--held-out <file>", about: "text or rows that judge the model" },
  ],
  comparisons: [
    { name: "model", flags: "--model <dir>", about: "the language model to start from", required: true },
    {
      name: "data",
      flags: "--data <file>",
      about:
        "JSONL or Parquet with prompt, chosen, rejected (agreement, margin), or prompt, ranking; the end of text is put after those without sampled: true",
      required: true,
    },
    {
      name: "heldOut",
      flags: "--held-out <file>",
      about: "comparisons that judge it, in place of the share heldOut of the data",
    },
    {
      name: "criterion",
      flags: "--criterion <name>",
      about: "learn this column's share in place of agreement's",
      isWord: true,
    },
  ],
  prompts: [
    { name: "model", flags: "--model <dir>", about: "the policy's start and its reference", required: true },
    { name: "reward", flags: "--reward <dir>", about: "the reward model", required: true },
    { name: "prompts", flags: "--prompts <file>", about: "JSONL with prompt", required: true },
    {
      name: "pretraining",
      flags: "--pretraining <file>",
      about: `text, or ${TEXT_ROWS}, of the pretraining mix, with ptxCoef`,
    },
  ],
};

/** The options of an algorithm's command, beside those that every command has. */
export function fileOptions({ material, models, options }: Algorithm): FileOption[] {
  const all = byMaterial[material].filter(({ name }) => name !== "pretraining" || "ptxCoef" in options.shape);
  const rewards = Object.values(models).filter(({ from }) => from === "reward");
  const reward = rewards.every(({ orFunctions }) => orFunctions)
    ? { flags: "--reward <dir|file>", about: "the reward model, or a file (.mjs, .js) of reward functions" }
    : { about: "the reward model, which the critic starts from" };
  const out: FileOption = {
    name: "out",
    flags: "--out <dir>",
    about: "Hugging Face directory to write",
    required: true,
  };
  return [...all.map((one) => (one.name === "reward" ? { ...one, ...reward } : one)), out];
}

/** What the folder of the run remembers of its files: their content is what it goes on with. */
export function inputsOf(entry: Algorithm, given: AlgorithmFiles): Inputs {
  const inputs: Required<Inputs> = { files: {}, words: {} };
  for (const { name, flags, isWord } of fileOptions(entry))
    if (name !== "out") inputs[isWord ? "words" : "files"][flags.split(" ")[0]] = given[name];
  return inputs;
}

/** Whether a file holds reward functions: it is a module of JavaScript. */
export const isFunctions = (file: string): boolean => /\.m?js$/i.test(file);

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

/**
 * Documents, or demonstrations where the first row has a prompt, rendered for the model in the
 * folder.
 */
async function textsOf(file: string | undefined, folder?: string): Promise<Sources["texts"]["text"]> {
  if (file === undefined) return [];
  if (!hasRows(file)) return documents(file);
  const tokenizer = folder ? await Tokenizer.load(folder) : undefined;
  const chat = tokenizer && (() => tokenizer.chat);
  let parse: ((row: Row) => string | DemonstrationRow) | undefined;
  return rowFile(file, (row) =>
    (parse ??= row.has("prompt") ? (one) => demonstrationRow(one, chat) : (one) => one.text("text"))(row),
  );
}

/** The prompts of a file, tokenised. @throws RangeError `EMPTY` for a file without prompts */
export async function promptsOf(file: string, tokenizer: Tokenizer, folder: string): Promise<Prompts> {
  const rows = rowFile(file, (row) => promptRow(row, () => tokenizer.chat));
  const all = await Prompts.read(rows, tokenizer, folder);
  if (all.length === 0) throw rangeError("EMPTY", `--prompts: ${file} has no prompts`);
  return all;
}

/** The material of an algorithm from the files of its command. */
export async function sourcesOf(material: Material, given: AlgorithmFiles): Promise<Sources[Material]> {
  const { model, data, heldOut, criterion, prompts, pretraining } = given;
  if (material === "texts") return { text: await textsOf(data, model), heldOut: await textsOf(heldOut, model) };
  if (material === "prompts")
    return {
      prompts: (tokenizer, folder) => promptsOf(prompts!, tokenizer, folder),
      ...(pretraining === undefined ? {} : { pretraining: documents(pretraining) }),
    };
  return { data: comparisonsOf(data, criterion), heldOut: comparisonsOf(heldOut, criterion) };
}

/** The comparisons of a file. */
export const comparisonsOf = (file: string | undefined, criterion?: string): Sources["comparisons"]["data"] =>
  file === undefined
    ? undefined
    : (tokenizer) => rowFile(file, (row) => comparisonRow(row, () => tokenizer.chat, criterion));
