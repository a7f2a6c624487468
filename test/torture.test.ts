import { spawnSync } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { Random, seed } from "./random.js";
import { callsOf, Disk, numbered, type Loss } from "./torture/disk.js";
import { prepare, stages } from "./torture/stages.js";
import { callsFor, harmed, hunted, modes, reference, type Mode, type Place } from "./torture/trial.js";
import { rlhf, shim } from "./torture/victim.js";

// A sample of `npm run torture`: a few calls of each stage, and that the torture finds what is wrong.

const found = await shim();
if ("missing" in found) console.log(`not run: ${found.missing}`);
const here = "missing" in found ? describe.skip : describe;
const random = new Random("torture");

let folder: string;
let place: Place;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-torture-"));
  place = { shim: "path" in found ? found.path : "", sandbox: join(folder, "sandbox") };
});
afterAll(() => rm(folder, { recursive: true }));

here("a run that is harmed ends with the bits of an undisturbed one, and leaves nothing", () => {
  const inputs = () => join(folder, "inputs");
  let kills = 0;
  beforeAll(() =>
    prepare(inputs(), async (args) => {
      const { code, said } = await rlhf(args, place);
      expect([code, said]).toEqual([0, expect.any(String)]);
    }),
  );

  test.each(stages.filter(({ most }) => most === undefined).map((stage) => [stage.name, stage] as const))(
    "%s",
    async (_, stage) => {
      const known = await reference(stage, inputs(), place);
      const drawn = Array.from({ length: 2 }, () => random.pick(Object.keys(modes) as Mode[]));
      for (const mode of drawn) {
        const calls = callsFor(known, mode);
        const at = random.pick(calls);
        const fault = await harmed(known, mode, at, place, random).catch(String);
        expect([mode, at, seed, fault]).toEqual([mode, at, seed, undefined]);
      }
      kills += await hunted(known, 2, place, random); // throws what does not go on
    },
  );

  test("runs were killed, and not only read", () => expect(kills).toBeGreaterThan(0));
});

here("the torture", () => {
  /** Runs a program under the shim, which is killed before call `at`, and loses power. */
  async function lost(program: string, loss: Loss, at: number): Promise<Record<string, string>> {
    const sandbox = join(folder, "program");
    await rm(sandbox, { recursive: true, force: true });
    const log = join(folder, "program.log");
    await rm(log, { force: true });
    spawnSync("mkdir", [sandbox]);
    await writeFile(join(sandbox, "old"), "as it was");
    const disk = await Disk.load(sandbox);
    const env = {
      ...process.env,
      LD_PRELOAD: place.shim,
      TORTURE_ROOT: sandbox,
      TORTURE_LOG: log,
      TORTURE_DATA: "1",
      TORTURE_DO: "kill",
      TORTURE_AT: String(at),
    };
    const { signal, stderr } = spawnSync(
      process.execPath,
      ["-e", `const fs = require("node:fs"); process.chdir(${JSON.stringify(sandbox)}); ${program}`],
      {
        env,
      },
    );
    expect([signal, stderr.toString()]).toEqual(["SIGKILL", ""]);
    const calls = callsOf(await readFile(log));
    expect(numbered(calls).length).toBe(at - 1);
    disk.replay(calls);
    await disk.lose(sandbox, loss, random);
    return Object.fromEntries(
      await Promise.all(
        (await readdir(sandbox)).map(async (name) => [name, await readFile(join(sandbox, name), "utf8")] as const),
      ),
    );
  }
  const end = `fs.mkdirSync("end")`;
  const sync = (path: string) => `{ const f = fs.openSync(${JSON.stringify(path)}, "r"); fs.fsyncSync(f); }`;

  test("loses a name whose folder was not synced, and contents that were not", async () => {
    const write = `fs.writeFileSync("new", "content");`; // opens, writes
    expect(await lost(`${write} ${end}`, "all", 3)).toEqual({ old: "as it was" });
    expect(await lost(`${write} ${end}`, "contents", 3)).toEqual({ old: "as it was", new: "" });
    expect(await lost(`${write} ${sync("new")} ${end}`, "all", 4)).toEqual({ old: "as it was" });
    expect(await lost(`${write} ${sync(".")} ${end}`, "all", 4)).toEqual({ old: "as it was", new: "" });
    expect(await lost(`${write} ${sync("new")} ${sync(".")} ${end}`, "all", 5)).toEqual({
      old: "as it was",
      new: "content",
    });
  });

  test("keeps the old file where a new one was renamed over it and the folder not synced", async () => {
    const replace = `fs.writeFileSync("new", "content"); ${sync("new")} fs.renameSync("new", "old");`;
    expect(await lost(`${replace} ${end}`, "all", 5)).toEqual({ old: "as it was" });
    expect(await lost(`${replace} ${end}`, "contents", 5)).toEqual({ old: "content" });
    expect(await lost(`${replace} ${sync(".")} ${end}`, "all", 6)).toEqual({ old: "content" });
  });

  test("brings back what was removed or cut, and not synced", async () => {
    expect(await lost(`fs.unlinkSync("old"); ${end}`, "all", 2)).toEqual({ old: "as it was" });
    expect(await lost(`fs.unlinkSync("old"); ${sync(".")} ${end}`, "all", 3)).toEqual({});
    expect(await lost(`fs.truncateSync("old", 2); ${end}`, "all", 3)).toEqual({ old: "as it was" });
    expect(await lost(`fs.truncateSync("old", 2); ${sync("old")} ${end}`, "all", 4)).toEqual({ old: "as" });
    const states = new Set<string>();
    for (let i = 0; i < 12; i++)
      states.add(JSON.stringify(await lost(`fs.writeFileSync("old", "new"); ${end}`, "some", 3)));
    expect(states.size).toBeGreaterThan(1);
  });
});
