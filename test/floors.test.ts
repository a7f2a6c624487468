import { readdirSync, readFileSync } from "node:fs";
import { join, posix } from "node:path";
import { expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";

// The floors of lib, and those of the rooms of rlhf. A file imports from its own room and from
// floors below it.
const FLOORS = ["device", "tensor", "files", "tokenizer", "model", "data", "rlhf", "cli", "index.ts"].map((one) => [
  one,
]);
const ROOMS = [
  ["options.ts"],
  ["batch"],
  ["measure", "learn"],
  ["reward", "constitution", "offline"],
  ["policy"],
  ["algorithms.ts"],
];

type Imports = ReadonlyMap<string, readonly string[]>;

/** What a text imports: statically, as types, by re-export or dynamically. */
const importsOf = (text: string): string[] =>
  [...text.matchAll(/\b(?:from|import)\s*\(?\s*["'](\.[^"']*)["']/g)].map(([, path]) => path);

function readImports(): Imports {
  const files = readdirSync(join(root, "lib"), { recursive: true, encoding: "utf8" })
    .map((file) => file.replaceAll("\\", "/"))
    .filter((file) => file.endsWith(".ts"));
  return new Map(
    files.map((file) => [
      file,
      importsOf(readFileSync(join(root, "lib", file), "utf8")).map((path) =>
        posix.join(posix.dirname(file), path).replace(/\.js$/, ".ts"),
      ),
    ]),
  );
}

/** Files that lead back to themselves: one circle for each first import that closes one. */
function circles(imports: Imports): string[] {
  const found: string[] = [];
  const done = new Set<string>();
  const path: string[] = [];
  const visit = (file: string): void => {
    const begin = path.indexOf(file);
    if (begin >= 0) found.push([...path.slice(begin), file].join(" -> "));
    if (begin >= 0 || done.has(file)) return;
    path.push(file);
    for (const next of imports.get(file) ?? []) visit(next);
    path.pop();
    done.add(file);
  };
  for (const file of imports.keys()) visit(file);
  return found;
}

/** Whether a file of `floors` may import another: from its own room, or from a lower floor. */
function allowed(floors: readonly (readonly string[])[], from: string, to: string): boolean {
  const level = (room: string) => floors.findIndex((rooms) => rooms.includes(room));
  return from === to || (level(to) >= 0 && level(to) < level(from));
}

function arrowsUp(imports: Imports): string[] {
  const found: string[] = [];
  for (const [from, targets] of imports)
    for (const to of targets) {
      const [a, b] = [from.split("/"), to.split("/")];
      const isRlhf = a[0] === "rlhf" && b[0] === "rlhf";
      if (!(isRlhf ? allowed(ROOMS, a[1], b[1]) : allowed(FLOORS, a[0], b[0]))) found.push(`${from} -> ${to}`);
    }
  return found;
}

test("every file of lib stands on a floor", () => {
  const rooms = new Set([...readImports().keys()].map((file) => file.split("/")[0]));
  expect([...rooms].filter((room) => !FLOORS.flat().includes(room))).toEqual([]);
  const inRlhf = new Set(
    [...readImports().keys()].filter((file) => file.startsWith("rlhf/")).map((file) => file.split("/")[1]),
  );
  expect([...inRlhf].filter((room) => !ROOMS.flat().includes(room))).toEqual([]);
});

test("every import of lib names a file that is there", () => {
  const imports = readImports();
  for (const [file, targets] of imports)
    for (const target of targets) expect([file, target, imports.has(target)]).toEqual([file, target, true]);
});

test("no file of lib leads back to itself", () => {
  expect(circles(readImports())).toEqual([]);
});

test("no import of lib runs up", () => {
  expect(arrowsUp(readImports())).toEqual([]);
});

test("circles, arrows up and every kind of import are found", () => {
  const text = `import { a } from "./a.js";
    import type { B } from "../b.js";
    export { c } from './c.js';
    import "./d.js";
    const e = await import("./e.js");
    import fs from "node:fs";`;
  expect(importsOf(text)).toEqual(["./a.js", "../b.js", "./c.js", "./d.js", "./e.js"]);
  expect(
    circles(
      new Map([
        ["a", ["b"]],
        ["b", ["c"]],
        ["c", ["b"]],
      ]),
    ),
  ).toEqual(["b -> c -> b"]);
  const up = new Map([
    ["tensor/a.ts", ["device/b.ts", "model/c.ts"]],
    ["rlhf/batch/a.ts", ["rlhf/batch/b.ts", "rlhf/policy/c.ts", "data/d.ts"]],
    ["rlhf/learn/a.ts", ["rlhf/measure/b.ts"]],
    ["cli/a.ts", ["index.ts"]],
  ]);
  expect(arrowsUp(up)).toEqual([
    "tensor/a.ts -> model/c.ts",
    "rlhf/batch/a.ts -> rlhf/policy/c.ts",
    "rlhf/learn/a.ts -> rlhf/measure/b.ts",
    "cli/a.ts -> index.ts",
  ]);
});
