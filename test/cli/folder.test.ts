import { closeSync, openSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, jest, test } from "@jest/globals";
import { readConfig } from "../../lib/cli/config/config.js";
import { Folder, readMarker } from "../../lib/cli/run/folder.js";
import { merge } from "../../lib/cli/commands.js";
import { progressTo } from "../../lib/cli/progress.js";
import { Run } from "../../lib/cli/run/run.js";
import { Lock } from "../../lib/files/lock.js";
import { native } from "../../lib/device/native.js";
import { device, saveAdapter, saveModel, Transformer, type Device } from "../../lib/index.js";
import { makeFolder, writeFileDurably } from "../../lib/files/durable.js";
import { llama } from "../models.js";
import { Random } from "../random.js";
import { withAdapter } from "../../lib/model/adapt.js";

// What a run overwrites or removes, a run made. What a killed process left behind goes.

let on: Device;
let folder: string;
beforeAll(async () => {
  on = await device("cpu", { threads: 1 });
});
afterAll(() => on.close());
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-folder-"));
});
afterEach(() => rm(folder, { recursive: true }));

const random = new Random("folder");
const at = (...parts: string[]) => join(folder, ...parts);
const opened = async (to = folder, resume = false, outputs: string[] = []) =>
  Run.open(to, await readConfig(undefined), on, resume, undefined, outputs);
const RUN_FILES = ["inputs.json", "stages.json", "metrics.jsonl", "checkpoints", "offending.jsonl", "report.html"];

describe("a run", () => {
  test.each([...RUN_FILES, "model.safetensors", "base", ".lock", ".rlhf"])(
    "is refused a folder with somebody's %s, and leaves it as it is",
    async (name) => {
      for (const isFolder of [false, true]) {
        const there = isFolder && !name.startsWith(".") ? join(name, "thesis.txt") : name;
        await mkdir(join(at(there), ".."), { recursive: true });
        await writeFile(at(there), "years of work");
        for (const resume of [false, true])
          await expect(opened(folder, resume, ["model.safetensors", "base"])).rejects.toMatchObject({
            code: "FOLDER",
            message: expect.stringContaining(name),
          });
        expect(await readFile(at(there), "utf8")).toBe("years of work");
        expect(await readdir(folder)).toEqual([name]);
        await rm(at(name), { recursive: true });
      }
    },
  );

  test("uses a folder of unrelated files, touches none of them, and goes again without what it made", async () => {
    await mkdir(at("checkpoints"));
    await mkdir(at("notes"));
    for (const name of ["thesis.txt", ".thesis.txt.0123456789ab", "notes/model.safetensors"])
      await writeFile(at(name), name);
    {
      using run = await opened();
      await run.log({ stage: "sft", step: 1 });
      await run.stage("sft", async () => ({}));
      await run.remove();
    }
    expect((await readdir(folder, { recursive: true })).sort()).toEqual([
      ".thesis.txt.0123456789ab",
      "notes",
      "notes/model.safetensors",
      "thesis.txt",
    ]);
    {
      using run = await opened(at("c.jsonl.partial"));
      await run.remove();
    }
    expect(await readdir(folder)).not.toContain("c.jsonl.partial");
  });

  test("may follow another in its folder, but not replace what was put there between", async () => {
    (await opened(folder, false, ["model.safetensors"]))[Symbol.dispose]();
    await writeFile(at("model.safetensors"), "of the run");
    await writeFile(at("summary.json"), "somebody's");
    (await opened(folder, false, ["model.safetensors"]))[Symbol.dispose]();
    await expect(opened(folder, false, ["summary.json"])).rejects.toMatchObject({
      code: "FOLDER",
      message: expect.stringContaining("summary.json"),
    });
  });

  test("that was killed once a stage was done, and before its checkpoints were removed, makes way for its successor", async () => {
    for (const resume of [true, false]) {
      {
        using run = await opened();
        await run.stage("sft", async () => ({ loss: 1 }));
      }
      await mkdir(at("checkpoints"), { recursive: true });
      for (const name of [
        "sft-00000001.safetensors",
        "sft-00000001.safetensors.damaged",
        ".sft-00000002.safetensors.0123456789ab.rlhf",
      ])
        await writeFile(at("checkpoints", name), "");
      using run = await opened(folder, resume);
      expect(run.done.length).toBe(Number(resume));
      expect(await readdir(folder)).not.toContain("checkpoints");
    }
  });

  test("that has not ended is not forgotten, those of its checkpoints that are of no more use are", async () => {
    {
      using run = await opened();
      await run.stage("sft", async () => ({ loss: 1 }));
      await mkdir(at("checkpoints"));
      for (const name of ["sft-00000001.safetensors", "ppo-00000001.safetensors"])
        await writeFile(at("checkpoints", name), "");
    }
    await expect(opened()).rejects.toMatchObject({
      code: "RESUME",
      message: expect.stringContaining("go on with --resume"),
    });
    using _ = await opened(folder, true);
    expect(await readdir(at("checkpoints"))).toEqual(["ppo-00000001.safetensors"]);
  });

  test("that was killed before it began is begun, with or without --resume", async () => {
    (await opened())[Symbol.dispose]();
    await rm(at("inputs.json"));
    await writeFile(at("stages.json"), "of a run that is forgotten");
    await writeFile(at("metrics.jsonl"), "of a run that is forgotten");
    using run = await opened(folder, true);
    expect(run.done).toEqual([]);
    for (const name of ["stages.json", "metrics.jsonl"]) expect(await readdir(folder)).not.toContain(name);
  });

  test("tells of a marker that is damaged and writes it anew; an empty one takes a folder for a run's", async () => {
    (await opened())[Symbol.dispose]();
    const whole = await readFile(at(".rlhf"));
    const damaged = Array.from({ length: 20 }, () => {
      const flipped = Buffer.from(whole);
      flipped[random.below(whole.length)] ^= 1 << random.below(8);
      return flipped;
    });
    const said = jest.spyOn(console, "error").mockImplementation(() => undefined);
    for (const marker of [...damaged, whole.subarray(0, -1), Buffer.alloc(whole.length), Buffer.alloc(0)]) {
      await writeFile(at(".rlhf"), marker);
      await expect(readMarker(folder)).rejects.toMatchObject({
        code: "FOLDER",
        message: expect.stringContaining(".rlhf is damaged"),
      });
      (await opened(folder, true))[Symbol.dispose]();
      expect(String(said.mock.lastCall)).toContain(".rlhf is damaged");
      expect([...(await readMarker(folder))!]).toEqual(expect.arrayContaining(RUN_FILES));
    }
    said.mockRestore();
  });

  test("stage whose outcome was taken away is done again", async () => {
    let times = 0;
    const work = async () => ({ times: ++times });
    using run = await opened();
    for (const stands of [true, true, false]) await run.stage("collect", work, () => stands);
    expect(times).toBe(2);
  });
});

describe("models", () => {
  const whole = () => Transformer.random(llama, "logits", on, 1);
  const adapted = () => withAdapter(whole(), { rank: 2, alpha: 4, targets: ["q"] }, 1);

  test("an adapter and a whole model are not saved into one folder", async () => {
    await saveModel(whole(), at("whole"));
    await saveAdapter(adapted(), at("adapter"), at("whole"));
    await expect(saveModel(whole(), at("adapter"))).rejects.toMatchObject({
      code: "LORA",
      message: expect.stringContaining("holds an adapter"),
    });
    await saveModel(whole(), at("other"));
    await expect(saveAdapter(adapted(), at("other"), at("whole"))).rejects.toMatchObject({
      code: "LORA",
      message: expect.stringContaining("holds a whole model"),
    });
  });

  test("merge writes to a folder that it made, as often as asked, and to no other", async () => {
    for (const name of ["a", "b", "somebody's"]) await saveModel(whole(), at(name));
    for (const name of ["a", "b"]) await writeFile(at(name, "tokenizer.json"), "{}");
    const [before, names] = [await readFile(at("somebody's", "config.json")), await readdir(at("somebody's"))];
    const merged = async (out: string) =>
      merge(
        { config: await readConfig(undefined), device: await device("cpu", { threads: 1 }), progress: progressTo() },
        { model: [at("a"), at("b")], out },
      );
    await expect(merged(at("somebody's"))).rejects.toMatchObject({
      code: "FOLDER",
      message: expect.stringContaining("config.json"),
    });
    expect(await readFile(at("somebody's", "config.json"))).toEqual(before);
    expect(await readdir(at("somebody's"))).toEqual(names);
    const said = jest.spyOn(console, "log").mockImplementation(() => undefined);
    for (let i = 0; i < 2; i++) await merged(at("average"));
    said.mockRestore();
    for (const name of [".rlhf", "config.json", "model.safetensors", "tokenizer.json"])
      expect(await readdir(at("average"))).toContain(name);
  });
});

describe("what is being written", () => {
  const left = ".model.safetensors.0123456789ab.rlhf";

  test("and was left by a process that was killed goes with the next write in its folder", async () => {
    await writeFile(at(left), "half");
    await writeFile(at(".cache.0123456789ab"), "somebody's");
    await writeFileDurably(at("x.json"), "{}");
    expect((await readdir(folder)).sort()).toEqual([".cache.0123456789ab", "x.json"]);
  });

  test("by a process that is alive stays", async () => {
    const file = openSync(at(left), "w");
    native.lock(file);
    await writeFileDurably(at("x.json"), "{}");
    expect((await readdir(folder)).sort()).toEqual([left, "x.json"]);
    closeSync(file);
    await writeFileDurably(at("x.json"), "{}");
    expect(await readdir(folder)).toEqual(["x.json"]);
  });

  test("by many at once in one folder is whole", async () => {
    const names = Array.from({ length: 40 }, (_, i) => `${i}.json`);
    await Promise.all(names.map((name) => writeFileDurably(at(name), name)));
    for (const name of names) expect(await readFile(at(name), "utf8")).toBe(name);
    expect((await readdir(folder)).length).toBe(40);
  });
});

test("folders are made with those above them; where a file is in the way, it is named", async () => {
  await makeFolder(at("a", "b", "c"));
  await makeFolder(at("a", "b", "c"));
  expect(await readdir(at("a", "b"))).toEqual(["c"]);
  await writeFile(at("file"), "");
  for (const path of [at("file"), at("file", "x")])
    await expect(makeFolder(path)).rejects.toMatchObject({ code: "WRITE", message: expect.stringContaining(path) });
});

test("a lock goes with its owner, and is nobody's other file", async () => {
  const path = at("x.lock");
  for (const torn of ["", "proc", "process 12", "\0\0\0"]) {
    await writeFile(path, torn);
    new Lock(path, "one")[Symbol.dispose]();
    expect(await readdir(folder)).toEqual([]);
  }
  await writeFile(path, "years of work");
  expect(() => new Lock(path, "one")).toThrow(/x\.lock cannot be opened: it holds something else/);
  expect(await readFile(path, "utf8")).toBe("years of work");
  using one = await Folder.open(at("one"), []);
  await expect(Folder.open(one.path, [])).rejects.toMatchObject({
    code: "LOCKED",
    message: expect.stringContaining(`process ${process.pid} on `),
  });
});
