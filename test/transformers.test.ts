import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { root } from "../lib/device/native.js";
import { device, ops, Tensor, type Device } from "../lib/index.js";
import { loadModel, readConfig, saveModel } from "../lib/model/checkpoint.js";
import { families } from "../lib/model/config.js";
import { packSequences } from "../lib/model/packed.js";
import { Transformer } from "../lib/model/transformer.js";
import type { Episode } from "../lib/rlhf/batch/episode.js";
import { packEpisodes, packWhole } from "../lib/rlhf/batch/pack.js";
import { nll } from "../lib/rlhf/offline/sft.js";
import { accumulate } from "../lib/rlhf/learn/update.js";
import { peerPython } from "./python.js";

// Logits, log-probs, scores and gradients of transformers for tiny models, in f64: test/fixtures, made by models.py.

const fixtures = join(root, "test/fixtures");
const names = readdirSync(fixtures).filter((name) => existsSync(join(fixtures, name, "config.json")));
const python = peerPython("transformers", "the models written here, loaded by transformers");

/** The f32 tensors of one safetensors file. */
async function tensorsOf(file: string): Promise<Map<string, Float32Array>> {
  const bytes = await readFile(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, start)) as Record<string, { data_offsets: [number, number] }>;
  const tensors = new Map<string, Float32Array>();
  for (const [name, { data_offsets: [begin, end] = [0, 0] }] of Object.entries(header))
    if (name !== "__metadata__")
      tensors.set(
        name,
        new Float32Array(bytes.buffer.slice(bytes.byteOffset + start + begin, bytes.byteOffset + start + end)),
      );
  return tensors;
}

/** Is within 2e-5 of the largest value: plain f32 in torch is off by up to 2e-6 of it; NaN never is. */
function expectNear(got: ArrayLike<number>, wanted: ArrayLike<number> | undefined, what: string): void {
  if (!wanted) throw new Error(`${what} is not in the fixture`);
  if (got.length !== wanted.length) throw new Error(`${what} has ${got.length} numbers, wanted ${wanted.length}`);
  const allowed = 2e-5 * Array.from(wanted).reduce((most, x) => Math.max(most, Math.abs(x)), 0.05);
  for (let i = 0; i < wanted.length; i++)
    if (!(Math.abs(got[i] - wanted[i]) <= allowed))
      throw new Error(`${what}[${i}] is ${got[i]}, wanted ${wanted[i]} within ${allowed}`);
}

let on: Device;
beforeAll(async () => {
  on = await device("cpu");
});
afterAll(() => on.close());

/** The gradients under their Hugging Face names: written as if they were the weights of a model. */
async function gradients(model: Transformer): Promise<Map<string, Float32Array>> {
  const holder = new Transformer(model.config, model.headKind, on);
  for (const [name, parameter] of model.parameters) holder.set(name, parameter.gradient()!);
  const folder = await mkdtemp(join(tmpdir(), "rlhf-gradients-"));
  try {
    await saveModel(holder, folder);
    return await tensorsOf(join(folder, "model.safetensors"));
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function outputs(model: Transformer, sequences: number[][]): Promise<Float32Array> {
  const packed = packSequences(sequences);
  const hidden = model.hidden(packed);
  const all = Int32Array.from(packed.ids, (_, i) => i);
  const found = model.headKind === "score" ? model.score(hidden, all) : model.logits(hidden);
  return (await found.read()) as Float32Array;
}

test("there is a model of every family with logits, and one with a score", async () => {
  const found = await Promise.all(names.map(async (name) => readConfig(join(fixtures, name))));
  for (const head of ["logits", "score"])
    expect(new Set(found.filter((one) => one.head === head).map(({ config }) => config.kind))).toEqual(
      new Set(Object.keys(families)),
    );
});

describe.each(names)("%s", (name) => {
  const folder = join(fixtures, name);
  let model: Transformer;
  let expected: Map<string, Float32Array>;
  let ids: number[][];
  let loss: number;
  beforeAll(async () => {
    model = await loadModel(folder, on);
    expected = await tensorsOf(join(folder, "expected.safetensors"));
    ({ ids, loss } = JSON.parse(await readFile(join(folder, "expected.json"), "utf8")) as {
      ids: number[][];
      loss: number;
    });
  });
  afterAll(() => model.dispose());

  test("computes what transformers computes, alone and in a batch", async () => {
    const what = model.headKind === "score" ? "values" : "logits";
    const together = await outputs(model, ids);
    let at = 0;
    for (const [i, sequence] of ids.entries()) {
      const alone = await outputs(model, [sequence]);
      expectNear(alone, expected.get(`${what}.${i}`), `${what}.${i}`);
      expect(together.slice(at, at + alone.length)).toEqual(alone);
      at += alone.length;
    }
    expect(at).toBe(together.length);
  });

  test("has the loss and the gradients of transformers", async () => {
    const episodes: Episode[] = ids.map((sequence) => ({
      prompt: sequence.slice(0, 1),
      completion: sequence.slice(1),
    }));
    const stats = Tensor.from(new Float64Array(model.headKind === "score" ? 8 : 12), undefined, on);
    if (model.headKind === "logits") {
      const { rows, y, cuRows, ...packed } = packEpisodes(episodes);
      const { logp } = ops.linearLogprob(model.hidden(packed), model.head, rows, y, { temperature: 1 });
      const logps = await logp.read();
      for (const i of ids.keys())
        expectNear(logps.slice(cuRows[i], cuRows[i + 1]), expected.get(`logprobs.${i}`), `logprobs.${i}`);
      accumulate(episodes, undefined, (part) => nll(model, part, y.length, stats));
    } else {
      const batch = packWhole(episodes);
      expectNear(await model.score(model.hidden(batch), batch.rows).read(), expected.get("scores"), "scores");
      const form = "bradley-terry";
      accumulate([0], undefined, () => {
        const scores = model.score(model.hidden(batch), batch.rows);
        return ops.preferenceLoss(scores, Int32Array.of(0), Int32Array.of(1), { form, denominator: 1, stats }).loss;
      });
    }
    expectNear([(await stats.read())[0]], [loss], "loss");
    const found = await gradients(model);
    const wanted = [...expected.keys()].filter((key) => key.startsWith("grad."));
    expect([...found.keys()].map((key) => `grad.${key}`).sort()).toEqual(wanted.sort());
    for (const [key, gradient] of found) expectNear(gradient, expected.get(`grad.${key}`), `grad.${key}`);
  });

  test("is written as it was read", async () => {
    const copy = await mkdtemp(join(tmpdir(), "rlhf-model-"));
    try {
      await saveModel(model, copy);
      const again = await loadModel(copy, on);
      expect(again.config).toEqual(model.config);
      for (const [key, { value }] of model.parameters)
        expect(await again.parameter(key).value.read()).toEqual(await value.read());
      again.dispose();
    } finally {
      await rm(copy, { recursive: true });
    }
  });
});

(python ? test : test.skip)("transformers loads what is written here, with the same outputs", async () => {
  const folder = await mkdtemp(join(tmpdir(), "rlhf-export-"));
  try {
    const asked: [directory: string, ids: number[][]][] = [];
    const ours: Float32Array[][] = [];
    for (const name of names) {
      const { ids } = JSON.parse(await readFile(join(fixtures, name, "expected.json"), "utf8")) as { ids: number[][] };
      const model = await loadModel(join(fixtures, name), on);
      await saveModel(model, join(folder, name));
      asked.push([join(folder, name), ids]);
      ours.push(await Promise.all(ids.map((sequence) => outputs(model, [sequence]))));
      model.dispose();
    }
    const { stdout, stderr } = spawnSync(python!, [join(fixtures, "check_export.py")], {
      input: JSON.stringify(asked),
      encoding: "utf8",
      maxBuffer: 2 ** 28,
    });
    if (stdout === "") throw new Error(stderr);
    for (const [m, theirs] of (
      JSON.parse(stdout) as { missing: string[]; unexpected: string[]; logits?: number[][][]; values?: number[][] }[]
    ).entries()) {
      expect({ name: names[m], ...theirs }).toMatchObject({ name: names[m], missing: [], unexpected: [] });
      for (const [i, got] of ours[m].entries())
        expectNear(got, (theirs.logits ?? theirs.values)![i].flat(), `${names[m]}, sequence ${i}`);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});
