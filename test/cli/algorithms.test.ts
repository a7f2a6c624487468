import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { pages } from "../../bench/readme.js";
import { configText, documentedDefaults, isConfigText, readConfig } from "../../lib/cli/config/config.js";
import { algorithmList } from "../../lib/cli/list.js";
import { root } from "../../lib/device/native.js";
import { algorithms, type Algorithm } from "../../lib/index.js";

// What comes from the list of algorithms: sections of the configuration with their checks,
// commands, the list in words, pages.

const entries = Object.entries<Algorithm>(algorithms);
const rlhf = async (...args: string[]) => {
  const { stdout } = await promisify(execFile)(process.execPath, [join(root, "dist/lib/cli/main.js"), ...args]);
  return stdout;
};

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-algorithms-"));
});
afterAll(() => rm(folder, { recursive: true }));

const file = () => join(folder, "config.yaml");
/** What is said of a configuration that is refused; nothing of one that is taken. */
const refusal = async (text: string): Promise<string> => {
  await writeFile(file(), text);
  return readConfig(file()).then(
    () => "",
    ({ code, message }: { code: string; message: string }) => `${code} ${message.replace(folder, "")}`,
  );
};

describe("rlhf algorithms", () => {
  test("lists each with its models and options, as JSON too", async () => {
    const listed = JSON.parse(await rlhf("algorithms", "--json")) as ReturnType<typeof algorithmList>;
    expect(listed).toEqual(algorithmList());
    expect(listed.map(({ name }) => name)).toEqual(Object.keys(algorithms));
    for (const { name, title, source, models, options } of listed) {
      const entry: Algorithm = algorithms[name as keyof typeof algorithms];
      expect({ title, source, roles: Object.keys(models), options: options.map((one) => one.name) }).toEqual({
        title: entry.title,
        source: entry.source,
        roles: Object.keys(entry.models),
        options: Object.keys(entry.options.shape),
      });
      for (const option of options)
        expect(option).toEqual({
          name: expect.stringMatching(/^[a-z]\w*$/),
          default: expect.anything(),
          range: expect.stringMatching(/./),
          meaning: expect.stringMatching(/./),
        });
    }
    const grpo = listed.find(({ name }) => name === "grpo")!;
    expect(grpo.models).toMatchObject({
      policy: expect.stringMatching(/^trained/),
      reference: expect.stringContaining("klCoef is above 0"),
    });
    expect(grpo.options.find(({ name }) => name === "clipRatioC")).toMatchObject({
      default: ".inf",
      range: "a number from 0, or .inf",
    });
    expect(grpo.options.find(({ name }) => name === "normalisation")).toMatchObject({ range: "trl, verl, openrlhf" });
  });

  test("prints a table for people", async () => {
    const lines = (await rlhf("algorithms")).split("\n");
    for (const [name, { title }] of entries) expect(lines.find((line) => line.startsWith(`${name} `))).toContain(title);
  });

  test("are commands, each with its files and what every run has", async () => {
    for (const [name, { about, material }] of entries) {
      const help = (await rlhf(name, "--help")).replace(/\s+/g, " ");
      expect(help).toContain(about);
      for (const option of ["--config", "--set", "--seed", "--threads", "--device", "--resume", "--model", "--out"])
        expect([name, help]).toEqual([name, expect.stringContaining(option)]);
      expect(help).toContain(material === "prompts" ? "--prompts" : "--data");
    }
    expect(await rlhf("ppo", "--help")).toContain("--pretraining");
    expect(await rlhf("grpo", "--help")).not.toContain("--pretraining");
  });
});

describe("the pages of the docs", () => {
  const folder = "docs/algorithms/";
  const made = async () => [...(await pages())].filter(([path]) => path.startsWith(folder));

  test("are those of the list, with the pictures of the demo's runs", async () => {
    const wanted = await made();
    expect((await readdir(join(root, folder))).toSorted()).toEqual(
      wanted.map(([path]) => path.slice(folder.length)).toSorted(),
    );
    for (const [path, text] of wanted) expect(await readFile(join(root, path), "utf8")).toBe(text);
  });

  const shown = entries.filter(([name, { material }]) => ["sft", "reward"].includes(name) || material === "prompts");
  test.each(shown)("say what %s reached, with its curves and the command", async (name, { material, charts }) => {
    const files = new Map(await made());
    const [, claim] = /\n## Claim\n(.*?)\n## Command\n/s.exec(files.get(`${folder}${name}.md`)!)!;
    const figures = {
      texts: /needs [\d.]+ bits/,
      comparisons: /gets [\d.]+ % of/,
      prompts: /wins [\d.]+ % of .* [\d.]+ nats/s,
    };
    expect(claim).toMatch(figures[material]);
    expect(claim).toMatch(/\nTraining took [\d:]+ on .+ threads\)\.\n/);
    expect(claim).toMatch(/\nrlhf demo( --policy \w+)? --seed \d+\n/);
    expect(claim).toContain(`(${name}.svg)`);
    const picture = files.get(`${folder}${name}.svg`)!;
    for (const { title } of charts.slice(0, 2)) expect(picture).toContain(`>${title}</text>`);
    expect(picture.match(/<polyline points="[\d.,-]+ [^"]+"/g)).toHaveLength(Math.min(charts.length, 2));
  });
});

test("a configuration that a run wrote is known as one, also from before the list got an algorithm", async () => {
  const whole = await readConfig(undefined);
  const { grpo: _grpo, ...before } = whole;
  const { model: _model, ...without } = whole;
  const known = [whole, before, without, { ...whole, other: {} }].map((config) =>
    isConfigText(configText(config as never)),
  );
  expect(known).toEqual([true, true, false, true]);
  expect(isConfigText(`${configText(whole)}# mine\n`)).toBe(false);
});

describe.each(entries)("the section %s", (name, { options, usedWhen, rules }) => {
  const all = Object.keys(options.shape);

  test("has every option with its default and what it means", async () => {
    const documented = (await documentedDefaults()).split("\n");
    const begin = documented.indexOf(`${name}:`);
    const lines = documented.slice(begin + 1, begin + 1 + all.length);
    expect(lines.map((line) => line.trim().split(":")[0])).toEqual(all);
    for (const line of lines) expect(line).toMatch(/^ {2}\w+: .+ # ./);
  });

  test.each(all)("names a misspelt %s with its line and the nearest option, and a wrong type of it", async (option) => {
    const misspelt = `${option}x`;
    expect(await refusal(`seed: 1\n${name}:\n  ${misspelt}: 1\n`)).toBe(
      `CONFIG /config.yaml:3: there is no option "${name}.${misspelt}", did you mean ${name}.${option}?`,
    );
    const wrong = await refusal(`${name}:\n\n  ${option}: { a: 1 }\n`);
    expect(wrong).toMatch(new RegExp(`^CONFIG /config\\.yaml:3: ${name}\\.${option} is .*, wanted .`));
  });

  const unused = usedWhen.flatMap(({ options: some, because }) => some.map((one): [string, string] => [one, because]));
  if (unused.length > 0)
    test.each(unused)("says that %s has no use where %s", async (option, because) => {
      const [, other, state] = /^`(\w+)` is (.*)$/.exec(because)!;
      const value = String(options.parse({})[option]);
      expect(await refusal(`${name}:\n  ${option}: ${value}\n  ${other}: ${state}\n`)).toBe(
        `CONFIG /config.yaml:2: ${name}.${option} has no use here: ${name}.${other} is ${state}`,
      );
    });

  const broken: Record<string, string> = { samples: "3", minibatches: "1000", temperature: "0" };
  if (rules.length > 0)
    test.each(rules.map(({ option }) => option))("holds %s to its rule", async (option) => {
      expect(await refusal(`${name}:\n  ${option}: ${broken[option]}\n`)).toMatch(
        new RegExp(`^CONFIG /config\\.yaml:2: ${name}\\.${option} is ${broken[option]}, wanted [^\`]+$`),
      );
    });

  test("fits the context of the model", async () => {
    const option = ["sequenceLength", "maxTokens"].find((one) => all.includes(one));
    if (!option) return;
    const others = { sft: "sequenceLength: 64", ppo: "maxTokens: 9", grpo: "maxTokens: 9" };
    const fitting = Object.entries(others).map(
      ([one, text]) => `${one}: { ${one === name ? `${option}: 999` : text} }\n`,
    );
    expect(await refusal(`model: { context: 64 }\n${fitting.join("")}`)).toMatch(
      new RegExp(`^CONFIG .*: ${name}\\.${option} is 999, wanted at most model\\.context`),
    );
  });
});
