// No function is longer than a screen or two: 100 lines in kernels and native, 80 in lib. Headers
// of kernels are short too.
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";

interface Function {
  name: string;
  lines: number;
}

/** The source with spaces for comments, strings and preprocessor lines: the same lines, and only braces that count. */
function bare(source: string): string {
  const blank = (text: string) => text.replace(/[^\n]/g, " ");
  return source
    .replace(/\/\*[^]*?\*\/|\/\/[^\n]*|R"\(([^]*?)\)"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'/g, blank)
    .replace(/^[ \t]*#(?:[^\n]*\\\n)*[^\n]*/gm, blank);
}

/** What stands before a block, without attributes: theirs are not a function's parentheses. */
const plain = (header: string) =>
  header.replace(/__attribute__\s*\(\(.*?\)\)|alignas\([^)]*\)|@\w+(?:\([^)]*\))?/gs, "");
const CONTAINER = /\b(?:namespace|struct|class|union|enum)\b[^()]*$|^\s*extern\s*$/;

/**
 * Functions of a C++, CUDA or WGSL source, and macros of several lines. A lambda counts with the
 * function around it.
 */
function functions(source: string): Function[] {
  const text = bare(source);
  const lineOf = (at: number) => text.slice(0, at).split("\n").length;
  const found: Function[] = [];
  const scan = (from: number): number => {
    let start = from; // of the declaration that is being read
    for (let at = from; at < text.length; at++) {
      if (text[at] === "}") return at;
      if (text[at] === ";") start = at + 1;
      if (text[at] !== "{") continue;
      const header = plain(text.slice(start, at));
      const container = CONTAINER.test(header);
      const end = container ? scan(at + 1) : closing(text, at);
      if (!container && header.includes("(")) {
        const name = /KERNEL\((\w+)/.exec(header)?.[1] ?? /([~\w]+)\s*\(/.exec(header)?.[1];
        const first = start + text.slice(start).search(/\S/);
        found.push({ name: name ?? header.trim(), lines: lineOf(end) - lineOf(first) + 1 });
      }
      at = end;
      start = at + 1;
    }
    return text.length;
  };
  scan(0);
  for (const [macro, name] of source.matchAll(/^[ \t]*#[ \t]*define[ \t]+(\w+)(?:[^\n]*\\\n)+[^\n]*/gm))
    found.push({ name, lines: macro.split("\n").length });
  return found;
}

/** Where the block that opens at a brace is closed. */
function closing(text: string, open: number): number {
  let depth = 0;
  for (let at = open; at < text.length; at++) {
    if (text[at] === "{") depth++;
    if (text[at] === "}" && --depth === 0) return at;
  }
  return text.length;
}

const sources = (folder: string, endings: RegExp) =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .map((file) => join(folder, file))
    .filter((file) => endings.test(file))
    .sort();

const over = (source: string, most: number) =>
  functions(source)
    .filter(({ lines }) => lines > most)
    .map(({ name, lines }) => `${name} has ${lines} lines`);

test("a function's lines are counted from its first to its last", () => {
  const source = `namespace n {
// of no function: {
template <class T>
__attribute__((noinline)) void one(T x) {
  f([&] { return "}"; });
}
struct alignas(16) Two {
  int x = 1;
  int two() const {
    return '{';
  }
};
KERNEL(three, Params, 128) {
}
@compute @workgroup_size(256)
fn four(a: u32) -> u32 {
  return a;
}
#define FIVE(x) \\
  void x() { \\
  }
}`;
  const counted = functions(source).map(({ name, lines }) => `${name} ${lines}`);
  expect(counted).toEqual(["one 4", "two 3", "three 2", "four 4", "FIVE 3"]);
  expect(over(source, 3)).toEqual(["one has 4 lines", "four has 4 lines"]);
});

test.each(["kernels", "native"])("no function of %s is over 100 lines", (folder) => {
  const files = sources(folder, /\.(?:cc|cu|h|wgsl)$/);
  const all = files.flatMap((file) => {
    const source = readFileSync(join(root, file), "utf8");
    expect([file, functions(source).length > 0 || !/^\w.*\) \{$/m.test(bare(source))]).toEqual([file, true]);
    return over(source, 100).map((what) => `${file}: ${what}`);
  });
  expect(files.length).toBeGreaterThan(10);
  expect(all).toEqual([]);
});

test("the header of a kernel has at most 24 lines and names notes that exist", () => {
  const files = sources("kernels", /\.(?:cc|cu|h|wgsl)$/);
  const headers = files.map((file) => ({
    file,
    header: /^(?:\/\/[^\n]*\n)*/.exec(readFileSync(join(root, file), "utf8"))![0],
  }));
  const lines = ({ header }: { header: string }) => header.split("\n").length - 1;
  expect(headers.filter((one) => lines(one) > 24).map(({ file }) => file)).toEqual([]);
  const named = headers.flatMap(({ header }) => header.match(/kernels\/notes\/\w+\.md/g) ?? []);
  const notes = sources("kernels/notes", /\.md$/).filter((file) => !file.endsWith("README.md"));
  expect([...new Set(named)].sort()).toEqual(notes);
});

test("no function of lib is over 80 lines", () => {
  const config = join(root, "build/lengths.json");
  const rules = { "max-lines-per-function": ["error", { max: 80 }] };
  mkdirSync(join(root, "build"), { recursive: true });
  writeFileSync(config, JSON.stringify({ categories: { correctness: "off" }, rules }));
  const lint = (place: string) => {
    const { stdout } = spawnSync(join(root, "node_modules/.bin/oxlint"), ["-c", config, "--format", "json", place], {
      cwd: root,
      encoding: "utf8",
    });
    return (JSON.parse(stdout) as { diagnostics: { message: string; filename: string }[] }).diagnostics;
  };
  const long = join(root, "build/long.ts");
  writeFileSync(long, `export function long(): void {\n${"  void 0;\n".repeat(80)}}\n`);
  expect(lint("build/long.ts").map(({ message }) => message)).toEqual([expect.stringContaining("`long`")]);
  expect(lint("lib").map(({ message, filename }) => `${filename}: ${message}`)).toEqual([]);
});
