// Fuzzing guided by coverage: node dist/test/guided.js READER RUNS SEED FOLDER, a process for each
// reader. From whole files on, bytes and words are changed, and what reaches a block of dist/lib
// that nothing reached before (V8's precise coverage) is changed further. Each input is read, or
// refused by an error with a code of the reader's that names the file; in its time, in memory that
// it may take. The last input lies in FOLDER. Prints what it found as JSON.
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { Session } from "node:inspector/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { readConfig } from "../lib/cli/config/config.js";
import { root } from "../lib/device/native.js";
import {
  device,
  loadModel,
  readComparisons,
  readCompletions,
  readDemonstrations,
  readPrompts,
  saveAdapter,
  saveModel,
  Tokenizer,
  trainBpe,
  Transformer,
} from "../lib/index.js";
import type { Chat } from "../lib/index.js";
import { families } from "../lib/model/config.js";
import { readSafetensors } from "../lib/model/safetensors.js";
import { llama } from "./models.js";
import { Random } from "./random.js";
import { withAdapter } from "../lib/model/adapt.js";

export interface Found {
  taken: number;
  refused: number;
  /** Inputs that reached what nothing reached before, those that were there at first aside. */
  kept: number;
  /** Characters of the code that were reached. */
  reached: number;
  fault?: string;
}

/** What is read, the codes of its refusals, and whole files to begin with, of which the first is taken. */
interface Reader {
  file: string;
  codes: string[];
  begin: () => Promise<(string | Uint8Array)[]>;
  read: () => Promise<unknown>;
  /** Makes a file that was changed a little more like a whole one. */
  mend?: (bytes: Buffer) => Buffer;
}

const [, , name, runs, seed, folder] = process.argv;
const at = (...parts: string[]) => join(folder, ...parts);
const on = await device("cpu", { threads: 1 });

const small = { ...llama, layers: 1, width: 8, heads: 2, kvHeads: 2, headSize: 4, mlp: 8, vocabulary: 11 };
async function saved(config: typeof small, where: string): Promise<void> {
  const model = Transformer.random(config, "logits", on, 1);
  await saveModel(model, where);
  await rm(join(where, "SHA256SUMS"));
  model.dispose();
}
async function adapter(): Promise<void> {
  await saved(small, at("base"));
  const base = await loadModel(at("base"), on);
  const model = withAdapter(base, { rank: 1, alpha: 2, targets: ["q", "v"] });
  await saveAdapter(model, folder, at("base"));
  await rm(at("SHA256SUMS"));
  for (const each of [base, model]) each.dispose();
}
const loaded = async () => (await loadModel(folder, on)).dispose();

/** The file as one of others, which holds no digest. */
const anonymous = (bytes: Buffer) =>
  Buffer.from(bytes.toString("latin1").replace("rlhf.sha256", "none.sha256"), "latin1");

/** The header's length is that of what stands before the data. */
function measured(bytes: Buffer): Buffer {
  const end = bytes.lastIndexOf("}}");
  if (end < 8) return bytes;
  const all = Buffer.from(bytes);
  all.writeBigUInt64LE(BigInt(end + 2 - 8));
  return all;
}

const { tokenizer, tokenizerConfig } = trainBpe(["the cat sat on the mat"], {
  vocabulary: 260,
  specials: ["<|endoftext|>"],
});
const template =
  "{% for message in messages %}{{ message['role'] + ': ' + message.content | trim }}{% endfor %}{{ eos_token }}";
const { chat } = new Tokenizer({ tokenizer, tokenizerConfig: { ...tokenizerConfig, chat_template: template } });
const talk = [
  { role: "user", content: "Hello?" },
  { role: "assistant", content: "Yes." },
];
const line = (...rows: object[]) => rows.map((row) => JSON.stringify(row)).join("\n");
const rows = (read: (file: string, chat: Chat) => Promise<unknown>, ...files: string[]): Reader => ({
  file: "rows.jsonl",
  codes: ["JSON", "COLUMN", "CHAT"],
  begin: async () => files,
  read: () => read(at("rows.jsonl"), () => chat),
});

const readers: Record<string, Reader> = {
  safetensors: {
    file: "model.safetensors",
    codes: ["SAFETENSORS"],
    mend: measured,
    begin: async () => {
      await saved(small, folder);
      const header =
        '{"__metadata__":{"format":"pt"},"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"b":{"dtype":"BOOL","shape":[1,3],"data_offsets":[8,11]}}';
      const own = await readFile(at("model.safetensors"));
      return [anonymous(own), own, measured(Buffer.concat([Buffer.alloc(8), Buffer.from(header), Buffer.alloc(11)]))];
    },
    read: () => readSafetensors(folder),
  },
  index: {
    file: "model.safetensors.index.json",
    codes: ["SAFETENSORS"],
    begin: async () => {
      await saved(small, at("whole"));
      await writeFile(at("a.safetensors"), await readFile(at("whole", "model.safetensors")));
      const names = [...(await readSafetensors(at("whole"))).keys()];
      return [
        JSON.stringify({
          metadata: { total_size: 1 },
          weight_map: Object.fromEntries(names.map((tensor) => [tensor, "a.safetensors"])),
        }),
      ];
    },
    read: () => readSafetensors(folder),
  },
  config: {
    file: "config.json",
    codes: ["MODEL"],
    begin: async () => {
      const configOf = async (config: typeof small) => {
        await saved(config, folder);
        return readFile(at("config.json"), "utf8");
      };
      const others: string[] = [];
      for (const family of Object.values(families)) others.push(await configOf({ ...small, ...family }));
      return [await configOf(small), ...others]; // all with the same weights
    },
    read: loaded,
  },
  adapter: {
    file: "adapter_config.json",
    codes: ["MODEL"],
    begin: async () => {
      await adapter();
      return [await readFile(at("adapter_config.json"), "utf8")];
    },
    read: loaded,
  },
  adapterWeights: {
    file: "adapter_model.safetensors",
    codes: ["MODEL", "SAFETENSORS"],
    mend: measured,
    begin: async () => {
      await adapter();
      return [anonymous(await readFile(at("adapter_model.safetensors")))];
    },
    read: loaded,
  },
  tokenizer: {
    file: "tokenizer.json",
    codes: ["TOKENIZER"],
    begin: async () => {
      await writeFile(at("tokenizer_config.json"), JSON.stringify(tokenizerConfig));
      return [JSON.stringify(tokenizer)];
    },
    read: async () => {
      const tokenizer = await Tokenizer.load(folder);
      tokenizer.decode(tokenizer.encode("the cat\u00e9<|endoftext|> sat"));
    },
  },
  template: {
    file: "tokenizer_config.json",
    codes: ["TOKENIZER", "CHAT"],
    begin: async () => {
      await writeFile(at("tokenizer.json"), JSON.stringify(tokenizer));
      return [JSON.stringify({ ...tokenizerConfig, chat_template: template })];
    },
    read: async () => (await Tokenizer.load(folder)).chat.render(talk),
  },
  prompts: rows(readPrompts, line({ prompt: "a b" }, { prompt: talk.slice(0, 1) })),
  demonstrations: rows(
    readDemonstrations,
    line({ prompt: "a", completion: " b" }, { prompt: talk.slice(0, 1), completion: talk.slice(1) }),
  ),
  comparisons: rows(
    readComparisons,
    line(
      { prompt: "a", chosen: " b", rejected: " c", agreement: 0.7, margin: 1 },
      { prompt: "a", ranking: ["b", "c", "d"] },
    ),
    line(
      { chosen: "\n\nHuman: a\n\nAssistant: b", rejected: "\n\nHuman: a\n\nAssistant: c" },
      { chosen: talk, rejected: [talk[0], { ...talk[1], content: "No." }] },
    ),
  ),
  completions: rows(
    readCompletions,
    line({
      prompt: "a",
      completion: " b",
      prompt_ids: [1],
      completion_ids: [2, 3],
      logprobs: [-0.5, -1],
      temperature: 1,
      stopped: true,
      index: 0,
      sample: 0,
    }),
  ),
  yaml: {
    file: "config.yaml",
    codes: ["CONFIG"],
    begin: async () => [
      "seed: 3\nmodel: { layers: 2, width: 32, heads: 2 }\nsft: { steps: 24, warmup: 2 }\nppo:\n  klController: adaptive\n  topK: 5\ncheckpoint: { every: auto }\n",
    ],
    read: () => readConfig(at("config.yaml")),
  },
};

const ROOM = 1 << 24;
const SLOW = 10_000; // milliseconds
const reader = readers[name];

/** What is wrong with how an input was dealt with, or whether it was taken. */
async function fault(): Promise<string | boolean> {
  const before = process.memoryUsage().arrayBuffers;
  const begun = performance.now();
  let taken = true;
  try {
    await reader.read();
  } catch (error) {
    const { code, message, stack } = error as Error & { code?: string };
    if (!reader.codes.includes(code ?? "")) return `no error of ours: ${stack ?? message}`;
    if (!message.includes(folder) && !message.includes(reader.file)) return `the file is not named: ${message}`;
    taken = false;
  }
  if (performance.now() - begun > SLOW) return `it took ${performance.now() - begun} ms`;
  if (process.memoryUsage().arrayBuffers - before > ROOM)
    return `it took ${process.memoryUsage().arrayBuffers - before} bytes`;
  if (on.memory().current > 0) return `${on.memory().current} bytes of the device are held`;
  return taken;
}

const session = new Session();
session.connect();
await session.post("Profiler.enable");
await session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
const lib = pathToFileURL(join(root, "dist/lib/")).href;
const seen = new Map<string, Uint8Array>();

/** How many characters of the library ran since the last call that had never run. */
async function fresh(): Promise<number> {
  const { result } = await session.post("Profiler.takePreciseCoverage");
  let count = 0;
  for (const { url, functions } of result.filter((script) => script.url.startsWith(lib)))
    for (const { ranges } of functions) {
      const [{ startOffset: start, endOffset: end, count: calls }, ...blocks] = ranges;
      if (calls === 0) continue;
      const ran = new Uint8Array(end - start).fill(1);
      for (const block of blocks) ran.fill(block.count > 0 ? 1 : 0, block.startOffset - start, block.endOffset - start); // the inner ones come later
      const key = `${url} ${start} ${end}`;
      const all = seen.get(key) ?? new Uint8Array(end - start);
      seen.set(key, all);
      for (let i = 0; i < ran.length; i++) if (ran[i] > all[i]) count += all[i] = 1;
    }
  return count;
}

const random = new Random(name, Number(seed));
const TOKEN = /"(?:[^"\\]|\\.)*"|[-+.\w]+/g;
const words = [
  "-1",
  "0",
  "0.5",
  "1e999",
  "9007199254740993",
  "4294967296",
  "null",
  "true",
  '""',
  "[]",
  "{}",
  '"__proto__"',
  "[".repeat(3000),
  `${"[".repeat(1e5)}${"]".repeat(1e5)}`,
  `"${"x".repeat(1e5)}"`,
  '{"SpecialToken":null}',
  "{%",
  "}}",
  "\n",
  "\ud83d",
];

function mutated(bytes: Buffer, other: Buffer): Buffer {
  let all = bytes;
  for (let changes = random.pick([1, 1, 1, 2, 4]); changes > 0; changes--) {
    const [begin, length] = [random.below(all.length + 1), random.below(random.pick([4, 64]))];
    const spliced = (cut: number, ...put: Uint8Array[]) =>
      Buffer.concat([all.subarray(0, begin), ...put, all.subarray(begin + cut)]);
    const from = random.below(other.length + 1);
    const tokens = [...all.toString("latin1").matchAll(TOKEN)];
    const kind = tokens.length > 0 ? random.below(8) : random.below(4);
    if (kind === 0) all = spliced(1, Buffer.of(random.below(256)));
    else if (kind === 1) all = spliced(length);
    else if (kind === 2) all = spliced(0, all.subarray(begin, begin + length));
    else if (kind === 3) all = spliced(0, other.subarray(from, from + length));
    else {
      const token = random.pick(tokens);
      all = Buffer.concat([
        all.subarray(0, token.index),
        Buffer.from(random.pick(words)),
        all.subarray(token.index + token[0].length),
      ]);
    }
  }
  return reader.mend && random.below(4) > 0 ? reader.mend(all) : all;
}

await mkdir(folder, { recursive: true });
const inputs = (await reader.begin()).map((file) => Buffer.from(file));
const found: Found = { taken: 0, refused: 0, kept: -inputs.length, reached: 0 };
for (const input of inputs)
  words.push(...(input.toString("latin1").match(TOKEN) ?? []).filter((word) => word.length > 1));
await fresh(); // what made them
seen.clear();

const corpus: Buffer[] = [];
for (let run = 0; run < Number(runs); run++) {
  const input = run < inputs.length ? inputs[run] : mutated(random.pick(corpus), random.pick(corpus));
  await writeFile(at(reader.file), input);
  const outcome = await fault();
  if (typeof outcome === "string") {
    found.fault = outcome;
    break;
  }
  if (run === 0 && !outcome) found.fault = "a whole file is refused";
  found[outcome ? "taken" : "refused"]++;
  const more = await fresh();
  if (more > 0 || run < inputs.length) {
    found.reached += more;
    found.kept++;
    corpus.push(input);
  }
}
console.log(JSON.stringify(found));
await on.close();
