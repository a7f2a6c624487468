// The rooms of the C++ sources, from the ground up. A room includes itself and rooms below it.
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";

const ROOMS = [
  "native/package", // what keeps a prebuilt addon loading on old systems
  "native/list", // the list of ops, its tables, and what a kernel is given
  "native/cpu", // threads, the choice of an instruction set
  "native/cuda", // GPUs and their driver
  "native/simt", // the simulated GPU
  "kernels/cpu",
  "kernels/cuda",
  "native/abi", // the C interface
  "native/node", // the addon
];

/** Every source, and the files that it includes, but for those of systems. */
const includes = new Map<string, string[]>();
for (const folder of ["native", "kernels"])
  for (const name of readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })) {
    if (!/\.(h|cc|cu)$/.test(name)) continue;
    const file = join(folder, name);
    const text = readFileSync(join(root, file), "utf8");
    includes.set(
      file,
      [...text.matchAll(/^\s*#\s*include\s*"([^"]+)"/gm)].map(([, path]) => {
        const beside = normalize(join(dirname(file), path));
        return path.startsWith("native/") || path.startsWith("kernels/") ? path : beside;
      }),
    );
  }
const floorOf = (file: string) => ROOMS.indexOf(dirname(file));
const arrows = [...includes].flatMap(([from, all]) => all.map((to) => [from, to] as const));

test("every source stands in a room, and every include is one of them", () => {
  expect(includes.size).toBeGreaterThan(80);
  expect(arrows.length).toBeGreaterThan(150);
  expect([...includes.keys()].filter((file) => floorOf(file) < 0)).toEqual([]);
  expect(arrows.filter(([, to]) => !includes.has(to))).toEqual([]);
  expect(ROOMS.filter((room) => ![...includes.keys()].some((file) => dirname(file) === room))).toEqual([]);
});

test("no room includes one above it", () => {
  expect(arrows.filter(([from, to]) => floorOf(to) > floorOf(from))).toEqual([]);
});

test("the kernels know of native the list and the language of the simulated GPU", () => {
  const known = arrows.filter(([from, to]) => from.startsWith("kernels/") && to.startsWith("native/"));
  expect(known.filter(([, to]) => dirname(to) !== "native/list" && to !== "native/simt/language.h")).toEqual([]);
  expect(arrows.filter(([from, to]) => from.startsWith("kernels/cuda") && to.startsWith("kernels/cpu"))).toEqual([]);
});

test("no file includes itself, by whatever way", () => {
  const done = new Set<string>();
  function visit(file: string, path: readonly string[]): string[] | undefined {
    if (path.includes(file)) return [...path.slice(path.indexOf(file)), file];
    if (done.has(file)) return undefined;
    for (const to of includes.get(file) ?? []) {
      const circle = visit(to, [...path, file]);
      if (circle) return circle;
    }
    done.add(file);
    return undefined;
  }
  expect([...includes.keys()].map((file) => visit(file, [])).filter((circle) => circle !== undefined)).toEqual([]);
});
