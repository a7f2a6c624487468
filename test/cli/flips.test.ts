import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join, relative } from "node:path";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, jest, test } from "@jest/globals";
import { accept, check } from "../../lib/cli/run/check.js";
import { readConfig } from "../../lib/cli/config/config.js";
import { demo } from "../../lib/cli/demo.js";
import type { Progress } from "../../lib/cli/progress.js";
import { sealed, unsealed } from "../../lib/cli/run/seal.js";
import type { Config } from "../../lib/cli/config/schema.js";
import { root } from "../../lib/device/native.js";
import { readRows } from "../../lib/data/jsonl.js";
import {
  device,
  loadModel,
  readComparisons,
  readCompletions,
  saveAdapter,
  saveModel,
  Tokenizer,
  Transformer,
  type Device,
} from "../../lib/index.js";
import { writeListed } from "../../lib/files/listed.js";
import { readSafetensorsFile, writeSafetensors } from "../../lib/model/safetensors.js";
import { llama } from "../models.js";
import { Random, seed } from "../random.js";
import { withAdapter } from "../../lib/model/adapt.js";

// Files at rest that are damaged: a bit flipped, a sector zeroed, a file cut off. RLHF_FLIPS=1000
// flips so many bits in each state of a run and checks it, flips so many in all and resumes it, and
// says what came of them.

const FLIPS = Number(process.env.RLHF_FLIPS ?? 0);
const CHECKED = FLIPS || 60;
const RESUMED = Math.ceil(FLIPS / 3) || 6;
const SECTOR = 512;
const SUMS = "SHA256SUMS";
const random = new Random("flips");

let on: Device;
let folder: string;
let config: Config;
let said: jest.SpiedFunction<typeof console.error>;
const at = (...parts: string[]) => join(folder, ...parts);

const small = `
model: { layers: 1, width: 16, heads: 2, kvHeads: 2, mlp: 16, vocabulary: 270, context: 48 }
sft: { steps: 4, batchTokens: 96, sequenceLength: 48, warmup: 1 }
prompts: { minTokens: 4, maxTokens: 8 }
collect: { prompts: 6, samples: 2, maxTokens: 6 }
reward: { epochs: 1, batch: 2, warmup: 0 }
ppo: { updates: 4, rolloutBatch: 4, samples: 2, maxTokens: 6, minibatches: 2 }
eval: { prompts: 4, maxTokens: 6 }
checkpoint: { every: 0 }
`;

/** Ends a run when a stage has done so much. */
const until = (stage?: string, count = Infinity): Progress => ({
  stage(name) {
    let done = 0;
    return {
      advance(n) {
        done += n;
        if (name === stage && done >= count) throw new Error("pulled the plug");
      },
      done: () => undefined,
    };
  },
});

/** What a demo ends with, times and memory aside. */
async function outcome(where: string, resume = true, progress = until()) {
  const { seconds: _, stages: _1, peakBytes: _2, ...figures } = await demo(where, config, on, progress, resume);
  return figures;
}

/** A run that has ended, and runs that stopped: with a journal, with checkpoints of PPO. */
const states = ["finished", "sampling", "learning"];
let wanted: Awaited<ReturnType<typeof outcome>>;

beforeAll(async () => {
  on = await device("cpu", { threads: 1 });
  folder = await mkdtemp(join(tmpdir(), "rlhf-flips-"));
  await writeFile(at("small.yaml"), small);
  config = await readConfig(at("small.yaml"));
  await expect(outcome(at("sampling"), false, until("collect", 5))).rejects.toThrow("pulled the plug");
  await cp(at("sampling"), at("learning"), { recursive: true });
  await expect(outcome(at("learning"), true, until("ppo", 3))).rejects.toThrow("pulled the plug");
  await cp(at("learning"), at("finished"), { recursive: true });
  wanted = await outcome(at("finished"));
});
/** How many of what was damaged came to what end. */
const tally: Record<string, number> = {};
const count = (what: string) => (tally[what] = (tally[what] ?? 0) + 1);

afterAll(async () => {
  if (FLIPS) process.stdout.write(`seed ${seed}: ${JSON.stringify(tally, null, 2)}\n`);
  await rm(folder, { recursive: true });
  await on.close();
});
beforeEach(() => {
  said = jest.spyOn(console, "error").mockImplementation(() => undefined);
});
afterEach(() => said.mockRestore());

const filesIn = async (where: string) =>
  (await readdir(where, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile() && entry.name !== ".lock")
    .map(({ parentPath, name }) => join(parentPath, name))
    .sort();

type Damage = "flip" | "sector" | "cut";

/** Damages one file, and says how. Half of the time each file has the same chance, else each byte. */
async function damage(where: string, kind: Damage) {
  const files = await filesIn(where);
  const contents = await Promise.all(files.map((file) => readFile(file)));
  let place = random.below(contents.reduce((sum, { length }) => sum + length, 0));
  const byByte = contents.findIndex(({ length }) => (place -= length) < 0);
  const which = random.uniform() < 0.5 ? byByte : random.below(files.length);
  const [file, before] = [files[which], contents[which]];
  const after = Buffer.from(before);
  const byte = random.below(before.length);
  if (kind === "flip") after[byte] ^= 1 << random.below(8);
  if (kind === "sector")
    after.fill(0, byte - (byte % SECTOR), Math.min(before.length, byte - (byte % SECTOR) + SECTOR));
  await writeFile(file, kind === "cut" ? before.subarray(0, byte) : after);
  return {
    file,
    before,
    after: kind === "cut" ? before.subarray(0, byte) : after,
    what: `seed ${seed}: ${kind} at byte ${byte} of ${relative(folder, file)}`,
  };
}

describe("a saved file", () => {
  test("of tensors: each of its bits, flipped, is found", async () => {
    const file = at("one.safetensors");
    const tensors = new Map([["x", { shape: [3], data: Float32Array.of(1, 2, 3) }]]);
    await writeSafetensors(file, tensors, { format: "pt" });
    const whole = await readFile(file);
    const unseen: number[] = [];
    for (let bit = 0; bit < 8 * whole.length; bit++) {
      const flipped = Buffer.from(whole);
      flipped[bit >> 3] ^= 1 << (bit & 7);
      await writeFile(file, flipped);
      const read = await readSafetensorsFile(file).catch(({ code, message }: Error & { code: string }) => {
        expect([code, message]).toEqual(["SAFETENSORS", expect.stringContaining(file)]);
      });
      if (!read) continue;
      expect([bit, read.verified, read.tensors]).toEqual([bit, false, tensors]);
      unseen.push(bit >> 3);
    }
    // in the name of the digest alone: then the file is one of others, with the same tensors
    const name = whole.indexOf("rlhf.sha256");
    expect(unseen.filter((byte) => byte < name || byte >= name + "rlhf.sha256".length)).toEqual([]);
  });

  test.each([undefined, 2])("of JSON with a checksum: each of its bits, flipped, is found, indented by %p", (space) => {
    const value = { stage: "sft", step: 1, loss: 0.1, text: "caf\u00e9 \ud83d\ude00", none: null };
    const whole = Buffer.from(sealed(value, space));
    expect(unsealed(whole.toString(), "here")).toEqual(value);
    for (let bit = 0; bit < 8 * whole.length; bit++) {
      const flipped = Buffer.from(whole);
      flipped[bit >> 3] ^= 1 << (bit & 7);
      expect(() => unsealed(flipped.toString("utf8"), "here")).toThrow(/^here is damaged/);
    }
  });

  test("of a model, an adapter or a tokenizer is refused by name when a bit of it is flipped", async () => {
    const tiny = { ...llama, layers: 1, width: 8, heads: 2, kvHeads: 2, headSize: 4, mlp: 8, vocabulary: 11 };
    const whole = Transformer.random(tiny, "logits", on, 1);
    await saveModel(whole, at("model", "base"));
    const adapted = withAdapter(whole, { rank: 1, alpha: 2 });
    await saveAdapter(adapted, at("model", "adapter"), at("model", "base"));
    await (await Tokenizer.load(at("finished", "base"))).save(at("model", "tokenizer"));
    for (const one of [whole, adapted]) one.dispose();
    const load = async (file: string) => {
      if (file.includes("tokenizer")) return void (await Tokenizer.load(join(file, "..")));
      (await loadModel(join(file, ".."), on)).dispose();
    };
    for (let round = 0; round < CHECKED; round++) {
      const { file, before, what } = await damage(at("model"), "flip");
      const loaded = await load(file).catch((error: Error & { code: string }) => error);
      if (loaded && basename(file) !== SUMS)
        expect([what, loaded.code, loaded.message]).toEqual([
          what,
          expect.stringMatching(/^(DAMAGED|SAFETENSORS)$/),
          expect.stringContaining(file),
        ]);
      else
        expect([what, loaded === undefined || loaded.message.includes(SUMS), basename(file)]).toEqual([
          what,
          true,
          SUMS,
        ]);
      await writeFile(file, before);
    }
  });
});

describe.each(states)("a run that is %s", (state) => {
  test.each<Damage>(["flip", "sector", "cut"])("is checked: each %s is found, or changes nothing", async (kind) => {
    const run = at(`${state}-checked`);
    await cp(at(state), run, { recursive: true });
    expect((await check(run)).filter(({ state }) => state !== "ok")).toEqual([]);
    for (let round = 0; round < (kind === "flip" ? CHECKED : CHECKED / 4); round++) {
      const { file, before, after, what } = await damage(run, kind);
      const found = (await check(run)).filter(({ state }) => state === "damaged");
      if (found.length === 0 && !before.equals(after))
        expect([what, isHarmless(file, kind, before, after)]).toEqual([what, true]);
      else if (basename(file) !== SUMS && !before.equals(after))
        expect([what, found.map((one) => one.file)]).toEqual([what, [file]]);
      count(`${state}, ${kind}, checked: ${found.length > 0 ? "found" : "changes nothing"}`);
      await writeFile(file, before);
    }
    await rm(run, { recursive: true });
  });

  test.each<Damage>(["flip", "sector", "cut"])(
    "is resumed: a %s is refused by name, or the end has the same bits",
    async (kind) => {
      for (let round = 0; round < (kind === "flip" ? RESUMED : RESUMED / 3); round++) {
        const run = at(`${state}-resumed`);
        await cp(at(state), run, { recursive: true });
        const { file, what } = await damage(run, kind);
        said.mockClear();
        const ended = await outcome(run).catch((error: Error & { code?: string }) => error);
        const told = said.mock.calls.length > 0 ? "told of, and the same bits" : "the same bits";
        count(`${state}, ${kind}, resumed: ${ended instanceof Error ? "refused by name" : told}`);
        if (ended instanceof Error)
          expect([what, ended.code, ended.message]).toEqual([
            what,
            expect.any(String),
            expect.stringContaining(basename(file)),
          ]);
        else expect([what, ended]).toEqual([what, wanted]);
        await rm(run, { recursive: true });
      }
    },
  );
});

/**
 * What may go unseen: a digest in capitals, a list that ends early, and what is done again:
 * samples, a last line that was cut off.
 */
function isHarmless(file: string, kind: Damage, before: Buffer, after: Buffer): boolean {
  if (basename(file) === SUMS)
    return kind === "flip" ? before.toString().toLowerCase() === after.toString().toLowerCase() : kind === "cut";
  const isJournal = file.endsWith(join("checkpoints", "collect.jsonl"));
  if (!isJournal && !file.endsWith(join("learning-checked", "metrics.jsonl"))) return false; // only here the last line has no checkpoint after it
  const last = before.lastIndexOf("\n", -2) + 1;
  return (isJournal && kind === "cut") || before.subarray(0, last).equals(after.subarray(0, last));
}

describe("rlhf check", () => {
  const rlhf = (...args: string[]) =>
    promisify(execFile)(process.execPath, [join(root, "dist/lib/cli/main.js"), "check", ...args]).then(
      ({ stdout }) => ({ code: 0, stdout }),
      ({ code, stdout }: { code: number; stdout: string }) => ({ code, stdout }),
    );

  test("names each file, says which are damaged, and ends with 1 for one", async () => {
    const run = at("told");
    await cp(at("finished"), run, { recursive: true });
    await writeFile(join(run, "notes.txt"), "mine");
    expect(await rlhf(run)).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/notes.txt +no digest[^]*base\/model.safetensors +ok/),
    });
    const metrics = await readFile(join(run, "metrics.jsonl"), "utf8");
    await writeFile(join(run, "metrics.jsonl"), metrics.replace('"step":2', '"step":3'));
    const { code, stdout } = await rlhf(run, "--json");
    const damaged = (JSON.parse(stdout) as { state: string }[]).filter((one) => one.state === "damaged");
    expect([code, damaged]).toEqual([1, [{ file: join(run, "metrics.jsonl"), state: "damaged", note: "line 2" }]]);
    expect(await rlhf(join(run, "base", "config.json"))).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("ok"),
    });
    expect((await rlhf(join(run, "absent"))).code).toBe(1);
  });

  test("takes what was changed on purpose, if asked", async () => {
    const base = at("told", "base");
    const file = join(base, "config.json");
    await writeFile(file, (await readFile(file, "utf8")).replace("{", '{ "mine": 1,'));
    await expect(loadModel(base, on)).rejects.toMatchObject({
      code: "DAMAGED",
      message: expect.stringContaining(`rlhf check --accept ${base}`),
    });
    expect((await accept(base)).every(({ state }) => state === "ok")).toBe(true);
    (await loadModel(base, on)).dispose();
  });

  test("is not needed where a run's files are used: they are held to their digests", async () => {
    const run = at("used");
    await cp(at("finished"), run, { recursive: true });
    for (const [name, read] of [
      ["completions.jsonl", readCompletions],
      ["preferences.jsonl", readComparisons],
    ] as [string, (file: string) => Promise<unknown>][]) {
      const file = join(run, name);
      const text = await readFile(file, "utf8");
      await read(file);
      await writeFile(file, text.replace('"prompt":"', '"prompt":"y'));
      await expect(read(file)).rejects.toMatchObject({ code: "DAMAGED", message: expect.stringContaining(file) });
    }
    const zipped = gzipSync(await readFile(at("finished", "eval.jsonl")));
    await writeListed(run, { "zipped.jsonl.gz": zipped });
    const count = async () => (await readRows(join(run, "zipped.jsonl.gz"), (row) => row)).length;
    expect(await count()).toBe(4);
    zipped[4] ^= 1; // the time of the last change, which gunzip does not mind
    await writeFile(join(run, "zipped.jsonl.gz"), zipped);
    await expect(count()).rejects.toMatchObject({ code: "DAMAGED" });
  });

  test("holds files to a list that others made, and lists a model of others if asked", async () => {
    const model = at("others", "model");
    await cp(join(root, "test/fixtures/llama-tiny"), model, { recursive: true });
    expect(new Set((await check(at("others"))).map(({ state }) => state))).toEqual(new Set(["unknown"]));
    await promisify(execFile)("bash", ["-c", `sha256sum --binary ./model/* > ${SUMS}`], { cwd: at("others") });
    const config = await readFile(join(model, "config.json"), "utf8");
    await writeFile(join(model, "config.json"), config.toUpperCase());
    const found = (await check(at("others"))).filter(({ state }) => state !== "unknown");
    expect(found.map(({ file, state }) => `${basename(file)} ${state}`).sort()).toEqual(
      [SUMS, "config.json", "expected.json", "expected.safetensors", "model.safetensors"].map(
        (name) => `${name} ${name === "config.json" ? "damaged" : "ok"}`,
      ),
    );
    await writeFile(join(model, "config.json"), config);

    await accept(model);
    (await loadModel(model, on)).dispose();
    const weights = await readFile(join(model, "model.safetensors"));
    weights[weights.length - 1] ^= 1;
    await writeFile(join(model, "model.safetensors"), weights);
    await expect(loadModel(model, on)).rejects.toMatchObject({
      code: "SAFETENSORS",
      message: expect.stringContaining("stands in SHA256SUMS"),
    });
  });

  test("gives up a line of metrics that cannot be mended: then the run goes on to the same bits", async () => {
    const run = at("given-up");
    await cp(at("learning"), run, { recursive: true });
    const file = join(run, "metrics.jsonl");
    const metrics = await readFile(file);
    metrics[20] ^= 0x80;
    await writeFile(file, metrics);
    await expect(outcome(run)).rejects.toMatchObject({
      code: "RESUME",
      message: expect.stringMatching(/metrics.jsonl:1 is damaged.*check --accept/),
    });
    await accept(run);
    expect(await outcome(run)).toEqual(wanted);
    expect((await check(run)).filter(({ state }) => state === "damaged")).toEqual([]);
  });

  test("finds a run's metrics that lack whole lines, a file that is missing, and no fault in what a crash leaves", async () => {
    const run = at("torn");
    await cp(at("sampling"), run, { recursive: true });
    const journal = join(run, "checkpoints", "collect.jsonl");
    const lines = await readFile(journal);
    await truncate(journal, lines.length - 3);
    expect((await check(run)).filter(({ note }) => note)).toEqual([
      { file: journal, state: "ok", note: expect.stringContaining("cut off") },
    ]);
    const metrics = await readFile(join(run, "metrics.jsonl"));
    await truncate(join(run, "metrics.jsonl"), metrics.lastIndexOf("\n", -2) + 1);
    await rm(join(run, "base", "tokenizer_config.json"));
    expect((await check(run)).filter(({ state }) => state === "damaged").map(({ file }) => basename(file))).toEqual([
      "metrics.jsonl",
      "tokenizer_config.json",
    ]);
  });
});
