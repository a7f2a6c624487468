// A family of ops has one name on every device: an op's kernel, its function and its truth stand in files of that name.
import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";
import { specs } from "../lib/device/ops.js";
import type { Truth } from "./truth.js";

const FAMILIES =
  `linear logprob linear_head policy_loss value_loss preference_loss advantage rewards moments sequence embedding rope norm
  activation attention kv_cache score sample optimizer elementwise limit`.split(/\s+/);

/** The longest family that a file's name begins with: attention_grad is of attention. */
function familyOf(stem: string): string | undefined {
  const all = FAMILIES.filter((one) => stem === one || stem.startsWith(`${one}_`));
  return all.toSorted((a, b) => b.length - a.length)[0];
}

interface Source {
  stem: string;
  text: string;
}
const sourcesOf = (folder: string, extension: string): Source[] =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith(extension))
    .map((name) => ({ stem: basename(name, extension), text: readFileSync(join(root, folder, name), "utf8") }));

const ops = [...specs.keys()];
const snake = (op: string) => op.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const kernel = (op: string) => RegExp(`^void ${snake(op)}\\(Context&[a-z ]*, const ${snake(op)}_args&`, "m");

/** The files that define an op. */
type Place = (op: string) => string[];
const kernels = (folder: string, extension: string): Place => {
  const sources = sourcesOf(folder, extension);
  return (op) => sources.filter(({ text }) => kernel(op).test(text)).map(({ stem }) => stem);
};
/** Modules whose exports name ops. */
async function modules(folder: string, named: (exports: Record<string, unknown>) => string[]): Promise<Place> {
  const files: { stem: string; ops: string[] }[] = [];
  for (const { stem } of sourcesOf(folder, ".ts"))
    if (stem !== "index")
      files.push({ stem, ops: named((await import(`../${folder}/${stem}.js`)) as Record<string, unknown>) });
  return (op) => files.filter((file) => file.ops.includes(op)).map(({ stem }) => stem);
}
const PLACES: Record<string, Place> = {
  CPU: kernels("kernels/cpu", ".cc"),
  CUDA: kernels("kernels/cuda", ".cu"),
  WebGPU: await modules("lib/device/webgpu/ops", (exports) =>
    Object.values(exports).flatMap((one) => (typeof one === "object" ? Object.keys(one!) : [])),
  ),
  tensors: await modules("lib/tensor/ops", Object.keys),
  truths: await modules("test/ops", (exports) => Object.values(exports).map((one) => String((one as Truth).op))),
};

test("the places define the ops", () => {
  const lacking = (name: string) => ops.filter((op) => PLACES[name](op).length === 0);
  expect(lacking("CPU")).toEqual([]);
  expect(lacking("CUDA")).toEqual(ops.filter((op) => specs.get(op)!.dtypes.cuda.length === 0));
  expect(lacking("truths").filter((op) => !op.startsWith("limit"))).toEqual([]);
  for (const name of ["WebGPU", "tensors"]) expect(ops.length - lacking(name).length).toBeGreaterThan(20);
});

test.each(ops)("%s is of one family everywhere", (op) => {
  const found = Object.entries(PLACES).map(([name, files]) => [name, files(op)] as const);
  for (const [name, files] of found) expect([name, files.slice(1)]).toEqual([name, []]); // defined once
  const families = found.flatMap(([name, [stem]]) => (stem === undefined ? [] : [[name, familyOf(stem)]]));
  const family = families[0][1];
  expect(FAMILIES).toContain(family);
  expect(families).toEqual(families.map(([name]) => [name, family]));
});

test("a family's WGSL is dispatched by the file of its name alone", () => {
  const shaders = sourcesOf("kernels/wgsl", ".wgsl").map(({ stem }) => stem);
  const lists = /(?:\[|\bfiles\([^"()]*)((?:"\w+"(?:, )?)+)[\])]/g; // the files of a kernel, its own one last
  const dispatched = sourcesOf("lib/device/webgpu/ops", ".ts").flatMap(({ stem, text }) =>
    [...text.matchAll(lists)].map(([, list]) => ({ by: stem, shader: list.slice(1, -1).split('", "').at(-1)! })),
  );
  const families = dispatched.filter(({ shader }) => shaders.includes(shader) && familyOf(shader) !== undefined);
  expect(families.filter(({ by, shader }) => familyOf(by) !== familyOf(shader))).toEqual([]);
  const reached = families.map(({ shader }) => familyOf(shader));
  expect(shaders.filter((stem) => familyOf(stem) !== undefined && !reached.includes(familyOf(stem)))).toEqual([]);
});
