import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";
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
