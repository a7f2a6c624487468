import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { expect, test } from "@jest/globals";
import { parse } from "yaml";
import { root } from "../lib/device/native.js";
import { algorithms } from "../lib/index.js";
import { blocks, sections, sentences } from "./prose.js";

// Pages for people are plain: short sentences, short recipes, lines of 120 columns, links that lead
// somewhere.

const MEAN = 16; // words of a sentence
const MOST = 30;
const COLUMNS = 120;

const docs = (await readdir(join(root, "docs"), { recursive: true }))
  .filter((name) => name.endsWith(".md") && !name.startsWith("node_modules") && name !== "rlhf-kernels.api.md")
  .map((name) => join("docs", name));
const pages = [
  "README.md",
  "CONTRIBUTING.md",
  "SECURITY.md",
  "bench/notes.md",
  "bench/results/README.md",
  ...docs.toSorted(),
];
const read = (page: string) => readFile(join(root, page), "utf8");

test("sentences and their words are found", () => {
  const page =
    "# A title of words\n\nOne two [three](four.md). `five six.` Seven\neight!\n\n| nine |\n- Ten: **eleven**.\n- Twelve\n\n```\nthirteen.\n```\n";
  expect(blocks(page)).toEqual(["One two three. `five six.` Seven eight!", "Ten: eleven.", "Twelve"]);
  expect(sentences(page).map(({ words }) => words)).toEqual([3, 3, 2, 1]);
  expect([...sections("# a\n## b\n1\n### c\n2\n## d\n3\n", 2)]).toEqual([
    ["b", "\n1\n### c\n2\n"],
    ["d", "\n3\n"],
  ]);
});

test.each(pages)("the sentences of %s are short", async (page) => {
  const all = sentences(await read(page));
  expect(all.filter(({ words }) => words > MOST)).toEqual([]);
  expect(all.reduce((sum, { words }) => sum + words, 0) / all.length).toBeLessThanOrEqual(MEAN);
});

test.each(pages)("the lines of %s fit a screen", async (page) => {
  const text = (await read(page)).replace(/^(\||!\[).*$/gm, "");
  expect(text.split("\n").filter((line) => line.length > COLUMNS)).toEqual([]);
});

test.each(pages)("the links of %s lead to files and headings that are there", async (page) => {
  const text = (await read(page)).replace(/^```.*?^```$/gms, "");
  const links = [...text.matchAll(/\]\(([^)\s]+)\)/g)].map(([, link]) => link);
  for (const link of links.filter((one) => !/^https?:/.test(one))) {
    const [path, heading] = link.split("#");
    const file = path ? join(dirname(page), path) : page;
    expect([link, existsSync(join(root, file))]).toEqual([link, true]);
    if (!heading) continue;
    const titles = [...(await read(file)).matchAll(/^#+ (.*)$/gm)].map(([, title]) =>
      title
        .toLowerCase()
        .replace(/[^\w\- ]/g, "")
        .replace(/ /g, "-"),
    );
    expect(titles).toContain(heading);
  }
});

test("the README has at most 110 lines", async () => {
  expect((await read("README.md")).trimEnd().split("\n").length).toBeLessThanOrEqual(110);
});

test("CONTRIBUTING has five recipes of at most six lines", async () => {
  const recipes = sections(sections(await read("CONTRIBUTING.md"), 2).get("Recipes")!, 3);
  expect(recipes.size).toBe(5);
  const lengths = [...recipes].map(([title, text]) => ({ title, lines: text.trim().split("\n").length }));
  expect(lengths.filter(({ lines }) => lines > 6)).toEqual([]);
});

/** All matches of a pattern's first group in the pages, with the page that has them. */
async function named(pattern: RegExp): Promise<string[]> {
  const texts = await Promise.all(pages.map(read));
  const found = texts.flatMap((text, i) => [...text.matchAll(pattern)].map(([, name]) => `${pages[i]}: ${name}`));
  expect(found).not.toEqual([]);
  return [...new Set(found)];
}
const nameOf = (line: string) => line.replace(/^.*?: /, "");

test("the files that pages name are there", async () => {
  const files = await named(/`((?:bench|docs|kernels|lib|native|test|\.ci)\/[\w./]+)`/g);
  const real = files.filter((line) => !/FAMILY|NAME/.test(line));
  expect(real.filter((line) => !existsSync(join(root, nameOf(line))))).toEqual([]);
});

test("the npm scripts that pages name are those of package.json", async () => {
  const { scripts } = JSON.parse(await read("package.json")) as { scripts: Record<string, string> };
  const lines = await named(/npm run ([\w:]+)/g);
  expect(lines.filter((line) => !(nameOf(line) in scripts))).toEqual([]);
});

test("every command that `rlhf --help` lists stands in docs/cli.md", async () => {
  const { stdout } = spawnSync(process.execPath, ["dist/lib/cli/main.js", "--help"], { cwd: root, encoding: "utf8" });
  const commands = [...stdout.matchAll(/^ {2}([a-z]+)\b/gm)].map(([, name]) => name).filter((name) => name !== "help");
  expect(commands).toEqual(expect.arrayContaining(["demo", "sft", "ppo", "plan"]));
  const page = await read("docs/cli.md");
  expect(commands.filter((name) => !page.includes(`| \`rlhf ${name}\``))).toEqual([]);
});

test("the README has every algorithm of the list", async () => {
  const [, table] = (await read("README.md")).match(/## Algorithms\n(.*?)\n## /s)!;
  const commands = [...table.matchAll(/\| `rlhf (\w+)` \|/g)].map(([, name]) => name);
  expect(commands).toEqual(Object.keys(algorithms));
});

test("the options that pages name are those of `rlhf config`", async () => {
  const { stdout } = spawnSync(process.execPath, ["dist/lib/cli/main.js", "config"], { cwd: root, encoding: "utf8" });
  const config = parse(stdout) as Record<string, Record<string, unknown>>;
  const files = ["json", "jsonl", "md", "mjs", "ts", "txt", "yaml", "html"];
  const lines = await named(/`[^`\n]*?\b([a-z]+\.[a-z][A-Za-z]+)\b[^`\n]*`/g);
  const options = lines.filter((line) => {
    const [section, option] = nameOf(line).split(".");
    return section in config && !files.includes(option);
  });
  expect(options.map(nameOf)).toEqual(expect.arrayContaining(["ppo.klCoef", "lora.rank", "checkpoint.every"]));
  const known = (line: string) => {
    const [section, option] = nameOf(line).split(".");
    return option in config[section];
  };
  expect(options.filter((line) => !known(line))).toEqual([]);
});
