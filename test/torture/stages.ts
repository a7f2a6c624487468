import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { Random } from "../random.js";

// A run of each stage, so small that it takes little longer than a start of node, and what must be left of it.

/** What a stage writes to, in a folder that somebody else's files are in too. */
export interface Stage {
  name: string;
  /** The command without `--out` and `--resume`; files by their names among the inputs. */
  args: (input: (name: string) => string) => string[];
  /** The folder or the file that it writes, and whether the folder is there before, with somebody else's file in it. */
  out: string;
  isThere?: true;
  /** Whether it takes `--resume`. */
  resumes: boolean;
  /** Keys that are typed. */
  input?: string;
  /** So many calls, drawn at random, stand for all: it is slow, and made of the other stages. */
  most?: number;
}

const CONFIG = `
model: { layers: 1, width: 16, heads: 2, kvHeads: 2, mlp: 16, vocabulary: 258, context: 32 }
sft: { steps: 4, batchTokens: 64, sequenceLength: 32, warmup: 1 }
prompts: { minTokens: 4, maxTokens: 8 }
collect: { prompts: 4, samples: 2, maxTokens: 4 }
reward: { epochs: 2, batch: 4, warmup: 0 }
ppo: { updates: 3, rolloutBatch: 4, samples: 2, maxTokens: 4, ptxCoef: 0.1, ptxBatchTokens: 32, klController: adaptive, rewardNormalise: true }
grpo: { updates: 3, rolloutBatch: 4, samples: 2, maxTokens: 4, rewardNormalise: true }
eval: { prompts: 2, maxTokens: 4 }
checkpoint: { every: 0 }
`;

type Files = Parameters<Stage["args"]>[0];

const configured = (at: Files) => ["--config", at("config.yaml")];
const sft = (at: Files) => ["sft", "--data", at("text.txt"), "--held-out", at("held-out.txt"), ...configured(at)];
const reward = (at: Files) => ["reward", "--model", at("base"), "--data", at("preferences.jsonl"), ...configured(at)];
const ppo = (at: Files, model: string) => [
  "ppo",
  "--model",
  at("base"),
  "--reward",
  at(model),
  "--prompts",
  at("prompts.jsonl"),
  "--pretraining",
  at("text.txt"),
  ...configured(at),
];
const grpo = (at: Files, reward: string) => [
  "grpo",
  "--model",
  at("base"),
  "--reward",
  at(reward),
  "--prompts",
  at("prompts.jsonl"),
  ...configured(at),
];
const adapted = ["--set", "lora.rank=2"];

export const stages: Stage[] = [
  { name: "sft", args: sft, out: "run", isThere: true, resumes: true },
  { name: "sft, LoRA", args: (at) => [...sft(at), "--model", at("base"), ...adapted], out: "run", resumes: true },
  {
    name: "collect",
    args: (at) => [
      "collect",
      "--model",
      at("base"),
      "--prompts",
      at("prompts.jsonl"),
      "--samples",
      "2",
      "--max-tokens",
      "6",
    ],
    out: "rows.jsonl",
    resumes: true,
  },
  {
    name: "label",
    args: (at) => ["label", "--data", at("completions.jsonl"), ...configured(at)],
    out: "rows.jsonl",
    resumes: false,
  },
  {
    name: "label, people",
    args: (at) => ["label", "--tty", "--annotator", "ana", "--data", at("completions.jsonl"), ...configured(at)],
    input: "a".repeat(100),
    out: "rows.jsonl",
    resumes: false,
  },
  { name: "reward", args: reward, out: "models/run", resumes: true },
  { name: "ppo", args: (at) => ppo(at, "reward"), out: "run", resumes: true },
  { name: "ppo, LoRA", args: (at) => [...ppo(at, "adapter"), ...adapted], out: "run", resumes: true },
  { name: "grpo", args: (at) => grpo(at, "reward"), out: "run", resumes: true },
  { name: "grpo, functions, LoRA", args: (at) => [...grpo(at, "reward.mjs"), ...adapted], out: "run", resumes: true },
  {
    name: "eval",
    args: (at) => [
      "eval",
      "--base",
      at("base"),
      "--policy",
      at("policy"),
      "--reward",
      at("reward"),
      "--prompts",
      at("prompts.jsonl"),
      ...configured(at),
    ],
    out: "rows.jsonl",
    resumes: true,
  },
  {
    name: "score",
    args: (at) => ["score", "--model", at("reward"), "--data", at("completions.jsonl")],
    out: "rows.jsonl",
    resumes: false,
  },
  {
    name: "logp",
    args: (at) => ["logp", "--model", at("base"), "--data", at("completions.jsonl")],
    out: "rows/rows.jsonl",
    resumes: false,
  },
  { name: "merge", args: (at) => ["merge", "--model", at("adapter")], out: "run", isThere: true, resumes: false },
  { name: "demo", args: (at) => ["demo", ...configured(at)], out: "run", resumes: true, most: 30 },
];

/** The command of a stage, as a user types it. */
export function command({ name, args, out }: Stage, inputs: string, sandbox: string): string[] {
  const given = args((file) => join(inputs, file));
  return name === "demo" ? [...given, "--runs", sandbox, "--name", out] : [...given, "--out", join(sandbox, out)];
}

/** Data and models that the stages begin with; `rlhf` runs a command. */
export async function prepare(inputs: string, rlhf: (args: string[]) => Promise<void>): Promise<void> {
  const at = (name: string) => join(inputs, name);
  const random = new Random("torture", 18);
  const words = Array.from({ length: 40 }, () =>
    Array.from({ length: 2 + random.below(6) }, () => String.fromCharCode(97 + random.below(26))).join(""),
  );
  const said = (length: number) => Array.from({ length }, () => words[random.below(words.length)]).join(" ");
  const rows = (count: number, row: () => object) =>
    Array.from({ length: count }, () => JSON.stringify(row())).join("\n");
  await mkdir(inputs, { recursive: true });
  await writeFile(at("config.yaml"), CONFIG);
  await writeFile(at("text.txt"), said(150));
  await writeFile(at("held-out.txt"), said(20));
  await writeFile(
    at("prompts.jsonl"),
    rows(4, () => ({ prompt: said(1) })),
  );
  await writeFile(
    at("preferences.jsonl"),
    rows(8, () => ({ prompt: said(1), chosen: ` ${said(1)}`, rejected: ` ${said(1)}`, agreement: 0.75 })),
  );
  await writeFile(
    at("reward.mjs"),
    "export const e = (_, completions) => completions.map((text) => text.split('e').length);\n",
  );
  await rlhf([...sft(at), "--out", at("base")]);
  await rlhf([...reward(at), "--out", at("reward")]);
  await rlhf([...reward(at), ...adapted, "--out", at("adapter")]);
  await rlhf([...ppo(at, "reward"), "--out", at("policy")]);
  await rlhf([...stages.find(({ name }) => name === "collect")!.args(at), "--out", at("completions.jsonl")]);
}

/** Empties the sandbox, but for files that are somebody else's. */
export async function fresh({ out, isThere }: Stage, sandbox: string): Promise<void> {
  await rm(sandbox, { recursive: true, force: true });
  await mkdir(isThere ? join(sandbox, out) : sandbox, { recursive: true });
  for (const name of ["thesis.txt", ".cache.0123456789ab", ...(isThere ? [`${out}/thesis.txt`] : [])])
    await writeFile(join(sandbox, name), `years of work, ${name}`);
}

/** Times and memory, which no two runs share, and checksums of a text that tells them. */
const VARYING = /^(seconds|at|peakBytes|tokensPerSecond|crc\w*)$/;

/** Every file below the sandbox with a hash of what must not change from run to run. */
export async function left(sandbox: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const entry of await readdir(sandbox, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    const name = relative(sandbox, path);
    if (entry.isDirectory()) found.set(`${name}/`, "folder");
    else
      found.set(
        name,
        createHash("sha256")
          .update(constant(name, await readFile(path)))
          .digest("hex"),
      );
  }
  return found;
}

/** What must not change: a report draws what is compared here anyway, and names its folder. */
function constant(name: string, bytes: Buffer): Buffer | string {
  if (name.endsWith("report.html")) return "report";
  const lines = bytes.toString().split("\n");
  if (name.endsWith("SHA256SUMS"))
    return lines.filter((line) => !/(report\.html|summary\.json)$/.test(line)).join("\n");
  if (name.endsWith(".labels.jsonl")) return lines.map((line) => line && fixed(line)).join("\n");
  if (name.endsWith("summary.json")) return fixed(bytes.toString(), "stages");
  return name.endsWith("stages.json") ? fixed(bytes.toString()) : bytes;
}

/** JSON without what varies. */
const fixed = (text: string, also?: string) =>
  JSON.stringify(JSON.parse(text), (key, value: unknown) => (VARYING.test(key) || key === also ? null : value));

/** How two such lists differ, in words. */
export function differences(got: Map<string, string>, wanted: Map<string, string>): string[] {
  const names = [...new Set([...got.keys(), ...wanted.keys()])].sort();
  return names.flatMap((name) => {
    if (got.get(name) === wanted.get(name)) return [];
    return [`${name} ${got.has(name) ? (wanted.has(name) ? "has other bits" : "is left") : "is missing"}`];
  });
}
