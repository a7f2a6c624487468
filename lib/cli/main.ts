#!/usr/bin/env node
import { Command, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { constants } from "node:os";
import { join } from "node:path";
import { say, sayJson, warn } from "./terminal.js";
import { visible } from "../device/errors.js";
import type { DeviceKind } from "../device/device.js";
import type { Algorithm, AlgorithmName } from "../rlhf/algorithms.js";
import type { AlgorithmFiles } from "./files.js";

const whole =
  (least: number, most = Infinity) =>
  (text: string): number => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < least || value > most)
      throw new InvalidArgumentError(`wanted a whole number from ${least}${most < Infinity ? ` to ${most}` : ""}`);
    return value;
  };
const number =
  (low: number, high = Infinity) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= low && value <= high))
      throw new InvalidArgumentError(`wanted a number from ${low}${high < Infinity ? ` to ${high}` : ""}`);
    return value;
  };
const collected = (value: string, before: string[]) => [...before, value];

const program = new Command("rlhf")
  .description("All of RLHF on hand-written kernels")
  .showHelpAfterError("(rlhf --help lists the commands)")
  .configureOutput({ writeErr: (text) => void process.stderr.write(visible(text, { lines: true })) });

const threads = new Option("--threads <n>", "compute threads").argParser(whole(1));
const onDevice = new Option(
  "--device <kind>",
  "where it computes; without it the best device that has every op",
).choices(["cpu", "cuda", "webgpu"] as const);
const resume = new Option("--resume", "go on from the last checkpoint, with the same configuration and files").default(
  false,
);

/** A command that is configured. */
const configurable = (name: string, description: string) =>
  program
    .command(name)
    .description(description)
    .option("--config <file>", "YAML configuration")
    .option("--set <name=value>", "override one option, as in --set ppo.klCoef=0.1", collected, [] as string[]);
/** A stage of a run. */
const stage = (name: string, description: string) =>
  configurable(name, description).option("--seed <n>", "seed of all random numbers", whole(0));

/** The commands of the algorithms, by the list. */
async function addAlgorithms(): Promise<void> {
  const [{ algorithms }, { fileOptions }] = await Promise.all([import("../rlhf/algorithms.js"), import("./files.js")]);
  for (const [name, entry] of Object.entries(algorithms) as [AlgorithmName, Algorithm][]) {
    const command: Command = stage(name, entry.about)
      .helpGroup("Algorithms:")
      .addOption(threads)
      .addOption(onDevice)
      .addOption(resume) as never;
    for (const { flags, about, required } of fileOptions(entry))
      if (required) command.requiredOption(flags, about);
      else command.option(flags, about);
    command.action(async (given) => {
      const { resume: resumed, ...options } = given as Common & AlgorithmFiles & { resume: boolean };
      await (await import("./commands.js")).trainFiles(await opened(options), name, options, resumed);
    });
  }
}

stage("demo", "the whole of RLHF in minutes: base model, completions, comparisons, reward model, policy, evaluation")
  .option("--name <name>", "the run's name", "demo")
  .option("--runs <dir>", "where runs are kept", "runs")
  .option("--policy <algorithm>", "the algorithm that trains the policy", "ppo")
  .addOption(threads)
  .addOption(onDevice)
  .addOption(resume)
  .action(async ({ name, runs, policy, resume: resumed, ...options }) => {
    const [{ demo, policyAlgorithm, sampleText, summaryTable }, { readFile }] = await Promise.all([
      import("./demo.js"),
      import("node:fs/promises"),
    ]);
    const algorithm = policyAlgorithm(policy);
    const { config, device, progress } = await opened(options);
    const folder = join(runs, name);
    const summary = await demo(folder, config, device, progress, resumed, algorithm);
    const samples = (await readFile(join(folder, "eval.jsonl"), "utf8"))
      .trimEnd()
      .split("\n")
      .slice(0, 6)
      .map((line) => sampleText(JSON.parse(line)));
    say(`\n${samples.join("\n")}\n\n${summaryTable(summary, folder)}`);
    await device.close();
  });

program
  .command("collect")
  .description("sample completions of prompts")
  .requiredOption("--model <dir>")
  .requiredOption("--prompts <file>", "JSONL with prompt")
  .requiredOption("--out <file>", "JSONL to write")
  .option("--samples <k>", "completions of each prompt", whole(1), 2)
  .option("--max-tokens <r>", "tokens of a completion at most", whole(1), 32)
  .option("--temperature <t>", "0 takes the likeliest token", number(0), 1)
  .option("--top-k <k>", "0 is off", whole(0), 0)
  .option("--top-p <p>", "1 is off", number(0, 1), 1)
  .option("--min-p <p>", "0 is off", number(0, 1), 0)
  .addOption(
    new Option("--weights <dtype>", "bf16: matrices at half the memory, decoding in less time")
      .choices(["f32", "bf16"] as const)
      .default("f32" as const),
  )
  .option("--seed <s>", "seed of all random numbers", whole(0), 0)
  .addOption(threads)
  .addOption(onDevice)
  .addOption(resume)
  .action(async ({ threads, device, resume: resumed, ...options }) =>
    (await import("./commands.js")).collect(await opened({ threads, device, seed: options.seed }), options, resumed),
  );

stage(
  "label",
  "compare completions: people in a browser (--ui) or at the terminal (--tty), or else scripted annotators",
)
  .requiredOption(
    "--data <file>",
    "JSONL of rlhf collect; with people also other rows with prompt, completion or with prompt, chosen, rejected",
  )
  .requiredOption(
    "--out <file>",
    "JSONL with prompt, chosen, rejected, agreement; every label of people is kept in FILE.labels.jsonl beside it",
  )
  .option("--ui", "people label on a page that this machine alone can open", false)
  .option("--port <n>", "of the page; 0 takes any", whole(0, 65535), 0)
  .option("--tty", "a person labels at this terminal", false)
  .option("--annotator <name>", "who labels at the terminal", process.env.USER ?? "me")
  .action(async ({ data, out, ui, tty, annotator, port, ...options }) => {
    if (!ui && !tty) return (await import("./commands.js")).label(await configured(options), { data, out });
    const { labelByPeople } = await import("./labelling/people.js");
    await labelByPeople(await configured(options), { data, out, ui, tty, annotator, port });
  });

stage(
  "eval",
  "compare a policy with its base model on prompts: win rate by the reward model, or else by the sentiment lexicon, KL, rewards, lengths",
)
  .requiredOption("--base <dir>")
  .requiredOption("--policy <dir>")
  .requiredOption("--prompts <file>", "JSONL with prompt")
  .option("--reward <dir>", "a reward model that judges, in place of the sentiment lexicon")
  .requiredOption("--out <file>", "JSONL with both completions of each prompt")
  .addOption(threads)
  .addOption(onDevice)
  .addOption(resume)
  .action(async ({ base, policy, prompts, reward, out, resume: resumed, ...options }) =>
    (await import("./commands.js")).evaluation(await opened(options), { base, policy, prompts, reward, out }, resumed),
  );

program
  .command("merge")
  .description(
    "fold a LoRA adapter into its base, or average the weights of several models that were trained from one base: a model like any other",
  )
  .requiredOption(
    "--model <dirs...>",
    "an adapter, as training writes it with lora.rank, or PEFT; or several models, adapters or not",
  )
  .requiredOption("--out <dir>", "Hugging Face directory to write")
  .addOption(threads)
  .addOption(onDevice)
  .action(async ({ threads, device, ...options }) =>
    (await import("./commands.js")).merge(await opened({ threads, device }), options),
  );

program
  .command("logp")
  .description("log-probs of completions by the training forward pass")
  .requiredOption("--model <dir>")
  .requiredOption("--data <file>", "JSONL of rlhf collect")
  .requiredOption("--out <file>", "the same lines with logprobs, entropy, and value where the model has a head for it")
  .option("--micro-batch <m>", "completions at once", whole(1), 64)
  .option("--temperature <t>", "instead of each line's own", number(0))
  .addOption(threads)
  .addOption(onDevice)
  .action(async ({ threads, device, ...options }) =>
    (await import("./commands.js")).logp(await opened({ threads, device }), options),
  );

program
  .command("score")
  .description("what a reward model says: r in [0, 1] of a completion, P(A preferred to B) of a pair")
  .requiredOption("--model <dir>", "a reward model")
  .option(
    "--data <file>",
    "JSONL or Parquet with prompt, completion, or prompt and a, b or chosen, rejected; - is standard input",
    "-",
  )
  .option("--out <file>", "JSONL to write, standard output without it")
  .addOption(threads)
  .addOption(onDevice)
  .action(async ({ threads, device, ...options }) =>
    (await import("./commands.js")).score(await opened({ threads, device }), options),
  );

const data = program.command("data").description("about files of data");
data
  .command("check")
  .description(
    "counts, duplicates, contradictions, length bias and agreement of a file of prompts, demonstrations, comparisons or labels",
  )
  .argument("<file>", "JSONL or Parquet; - is standard input")
  .option("--json", "as JSON", false)
  .action(async (file, { json }) => {
    const [{ checkData, reportLines }, { table }] = await Promise.all([
      import("../data/check.js"),
      import("./table.js"),
    ]);
    const report = await checkData(file);
    if (json) sayJson(report, 2);
    else say(table([file, "figure"], reportLines(report)));
  });

data
  .command("repair")
  .description("set the damaged lines of a log of labels aside, in FILE.damaged, and keep all others as they are")
  .argument("<file>", "FILE.labels.jsonl of rlhf label")
  .action(async (file) => {
    const { kept, aside, file: beside } = await (await import("../data/label_log.js")).repairLog(file);
    say(
      [
        ...aside,
        `${file}: ${kept} lines are kept, ${aside.length} set aside${aside.length > 0 ? ` in ${beside}` : ""}`,
      ].join("\n"),
    );
  });

program
  .command("check")
  .description("hold the files of a run or a model to their digests; ends with 1 if one is damaged")
  .argument("<path>", "a folder of a run or a model, or one file")
  .option(
    "--accept",
    "take the files as they are: those that were changed on purpose, and a model's without a digest, get new ones",
    false,
  )
  .option("--json", "as JSON", false)
  .action(async (path, { accept: taken, json }) => {
    const [{ accept, check }, { table }, { relative }] = await Promise.all([
      import("./run/check.js"),
      import("./table.js"),
      import("node:path"),
    ]);
    const files = await (taken ? accept(path) : check(path));
    const rows = files.map(({ file, state, note = "" }) => [
      relative(path, file) || file,
      state === "unknown" ? "no digest" : state,
      note,
    ]);
    if (json) sayJson(files, 2);
    else say(table([path, "is", "note"], rows));
    if (files.some(({ state }) => state === "damaged")) process.exitCode = 1;
  });

configurable(
  "plan",
  "what a run needs before it begins: parameters, memory, FLOPs and time of each stage, its completions at their longest, on this machine's CPU",
)
  .addOption(threads)
  .option("--json", "as JSON", false)
  .action(async ({ threads, json, ...options }) => {
    const { plan, planTable } = await import("./plan.js");
    const plans = await plan(await configured(options), threads);
    if (json) sayJson(plans, 2);
    else say(planTable(plans));
  });

program
  .command("config")
  .description("every option with its default and what it means, as YAML")
  .action(async () => say((await (await import("./config/config.js")).documentedDefaults()).trimEnd()));

program
  .command("info")
  .description("this machine as the kernels see it")
  .option("--json", "as JSON", false)
  .action(async ({ json }) => {
    const found = await (await import("./info.js")).info();
    if (json) return sayJson(found, 2);
    for (const [name, value] of Object.entries(found)) {
      const text =
        typeof value === "object"
          ? Array.isArray(value)
            ? value.join(", ")
            : Object.entries(value)
                .map(([key, state]) => `${key}: ${String(state)}`)
                .join("; ")
          : value;
      say(
        `${name.padEnd(14)} ${name === "fmaPeak" ? `${(Number(value) / 1e9).toFixed(0)} GFLOP/s` : name === "readBandwidth" ? `${(Number(value) / 1e9).toFixed(1)} GB/s` : String(text)}`,
      );
    }
  });

program
  .command("ops")
  .description("the list of ops")
  .option("--json", "as JSON", false)
  .action(async ({ json }) => {
    const [{ opList }, { table }] = await Promise.all([import("./info.js"), import("./table.js")]);
    const list = opList();
    if (json) return sayJson(list, 2);
    say(
      table(
        ["op", "inputs", "outputs", "cpu", "webgpu", "cuda", "receipt"],
        list.map(({ name, inputs, outputs, cpu, webgpu, cuda, receipt }) => [
          name,
          ...[inputs, outputs, cpu, webgpu, cuda].map((all) => all.join(" ")),
          receipt ?? "",
        ]),
      ),
    );
  });

program
  .command("algorithms")
  .description("the list of algorithms: models, material, and every option with its default and range")
  .option("--json", "as JSON", false)
  .action(async ({ json }) => {
    const [{ algorithmList, algorithmTable }, { table }] = await Promise.all([
      import("./list.js"),
      import("./table.js"),
    ]);
    if (json) sayJson(algorithmList(), 2);
    else say(table(["algorithm", "title", "models", "material", "source"], algorithmTable()));
  });

interface Common {
  config?: string;
  set?: string[];
  seed?: number;
  threads?: number;
  device?: DeviceKind;
}

async function configured({ config: file, set = [], seed }: Common) {
  const { readConfig } = await import("./config/config.js");
  return readConfig(file, seed === undefined ? set : [...set, `seed=${seed}`]);
}

async function opened({ threads, device: kind, ...options }: Common) {
  const [config, { device }, { progressTo }] = await Promise.all([
    configured(options),
    import("../device/open.js"),
    import("./progress.js"),
  ]);
  return { config, device: await device(kind, { threads }), progress: progressTo() };
}

try {
  await addAlgorithms();
  await program.parseAsync();
} catch (error) {
  const { code, message, stack, signal } = error as Error & { code?: string; signal?: "SIGINT" | "SIGTERM" };
  warn(code ? `rlhf: ${message}` : (stack ?? message)); // an error without a code is ours
  process.exitCode = 1;
  if (signal) {
    const given = process.argv.slice(2).filter((one) => one !== "--resume");
    const quoted = (one: string) => {
      if (/^[\w./=:,-]+$/.test(one)) return one;
      if (visible(one) !== one) return `$'${visible(one.replace(/[\\']/g, "\\$&"))}'`; // bash reads the escapes
      return `'${one.replaceAll("'", "'\\''")}'`;
    };
    warn(`rlhf: go on with: rlhf ${[...given, "--resume"].map(quoted).join(" ")}`);
    process.exit(128 + constants.signals[signal]);
  }
}
