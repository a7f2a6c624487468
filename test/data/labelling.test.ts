import { execFile, fork, type ChildProcess } from "node:child_process";
import { appendFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "@jest/globals";
import { tasksOf } from "../../lib/cli/labelling/tasks.js";
import { krippendorff } from "../../lib/data/agreement.js";
import { checkData } from "../../lib/data/check.js";
import { withCrc } from "../../lib/files/crc.js";
import { LabelLog, repairLog, type LabelEntry } from "../../lib/data/label_log.js";
import { Positions } from "../../lib/data/positions.js";
import { alphaOf, OVERALL } from "../../lib/data/votes.js";
import { Labelling, task, type Task } from "../../lib/data/labelling.js";
import { root } from "../../lib/device/native.js";
import { Random as Philox } from "../../lib/device/philox.js";
import { Random, seed } from "../random.js";

let folder: string;
let file: string;
const opened: LabelLog[] = [];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "rlhf-labelling-"));
  file = join(folder, "x.labels.jsonl");
});
afterEach(async () => {
  for (const log of opened.splice(0)) await log.close();
  await rm(file, { force: true });
});
afterAll(() => rm(folder, { recursive: true }));

async function log(): Promise<LabelLog> {
  const one = await LabelLog.open(file);
  opened.push(one);
  return one;
}
const tasks = (count: number, size = 2): Task[] =>
  Array.from({ length: count }, (_, i) =>
    task(
      `p${i}`,
      Array.from({ length: size }, (_, k) => `${i} ${"abcdefghi"[k]}`),
    ),
  );
const labelling = async (all: readonly Task[], options: { criteria?: string[]; twice?: number } = {}) =>
  new Labelling(all, await log(), { criteria: [OVERALL], twice: 0, seed: 1, ...options });
/** Ranks that put the completions in the order of the alphabet. */
const alphabetical = (completions: readonly unknown[]) =>
  completions.map((text) => 1 + completions.filter((other) => String(other) < String(text)).length);
const seconds = 1;

describe("Krippendorff's alpha", () => {
  test("is that of the published example at interval level", () => {
    // Krippendorff 2011, section C: four observers, twelve units, missing data; alpha at interval level is 0.849
    const observers = [
      [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
      [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
      [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
      [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
    ];
    const units = observers[0].map((_, unit) => observers.map((values) => values[unit]).filter((value) => value > 0));
    expect(krippendorff(units)).toBeCloseTo(0.849, 3);
  });

  test("is 1 in full agreement, about 0 by chance, and undefined where there is nothing to compare", () => {
    expect(krippendorff([[1, 1], [0, 0, 0], [0.5]])).toBe(1);
    const random = new Random("alpha");
    expect(
      Math.abs(krippendorff(Array.from({ length: 4000 }, () => [random.below(2), random.below(2)]))!),
    ).toBeLessThan(0.08);
    expect(krippendorff([[1], [0]])).toBeUndefined();
    expect(krippendorff([[1, 1]])).toBeUndefined();
  });
});

describe("handing out", () => {
  test("gives each annotator each task once at most, and of all tasks the wanted share to two", async () => {
    const all = tasks(200);
    const session = await labelling(all, { twice: 0.3 });
    const seen = new Map<string, string[]>();
    for (const turn of Array.from({ length: 1000 }, (_, i) => ["ana", "ben", "eve"][i % 3])) {
      const shown = await session.next(turn);
      if (!shown) continue;
      seen.set(shown.task, [...(seen.get(shown.task) ?? []), turn]);
      const ranks = alphabetical(shown.completions);
      await session.answer(turn, shown.task, {
        kind: "label",
        ranks: { overall: /[13579]$/.test(shown.prompt as string) ? ranks.map((rank) => 3 - rank) : ranks },
        seconds,
      });
    }
    expect(seen.size).toBe(200);
    for (const annotators of seen.values()) expect(new Set(annotators).size).toBe(annotators.length);
    const twice = [...seen.values()].filter(({ length }) => length === 2).length;
    expect([twice > 35, twice < 85, Math.max(...[...seen.values()].map(({ length }) => length))]).toEqual([
      true,
      true,
      2,
    ]);
    expect(session.progress("ana")).toMatchObject({
      labels: 200 + twice,
      wanted: 200 + twice,
      alpha: { overall: 1 },
      shared: twice,
    });
  });

  test("does not give two annotators the same task at once, unless two are wanted", async () => {
    const session = await labelling(tasks(3));
    const first: string[] = [];
    for (const name of ["ana", "ben", "eve"]) first.push((await session.next(name))!.task);
    expect(new Set(first).size).toBe(3);
    expect(await session.next("dan")).toBeUndefined();
    expect((await session.next("ana"))!.task).toBe(first[0]);
    const later = Date.now() / 1000 + 3600; // nobody answers
    expect(await session.next("dan", later)).toBeDefined();
  });

  test("shows the completions in a random order, the same for the same annotator", async () => {
    const all = tasks(400);
    const session = await labelling(all);
    let firsts = 0;
    for (let shown = await session.next("ana"); shown; shown = await session.next("ana")) {
      expect(await session.next("ana")).toEqual(shown);
      firsts += Number(shown.completions[0] === all.find(({ id }) => id === shown.task)!.completions[0]);
      await session.answer("ana", shown.task, { kind: "skip", seconds });
    }
    expect([firsts > 150, firsts < 250]).toEqual([true, true]);
  });
});

describe("labels", () => {
  test("of people become soft labels, by the texts and not by the order shown; each criterion has its column", async () => {
    const session = await labelling(tasks(1), { criteria: ["helpful", "harmless"], twice: 1 });
    const say = async (annotator: string, helpful: "a" | "b" | "tie", harmless: "a" | "b") => {
      const shown = (await session.next(annotator))!;
      const ranks = (wanted: string) =>
        shown.completions.map((text) => (wanted === "tie" || (text as string).endsWith(wanted) ? 1 : 2));
      await session.answer(annotator, shown.task, {
        kind: "label",
        ranks: { helpful: ranks(helpful), harmless: ranks(harmless) },
        strength: { helpful: "clearly" },
        seconds,
      });
    };
    await say("ana", "b", "a");
    expect(session.preferences()).toEqual([
      {
        prompt: "p0",
        chosen: "0 b",
        rejected: "0 a",
        agreement: 1,
        annotators: 1,
        clearly: 1,
        helpful: 1,
        harmless: 0,
      },
    ]);
    await say("ben", "tie", "b");
    expect(session.preferences()).toEqual([
      {
        prompt: "p0",
        chosen: "0 b",
        rejected: "0 a",
        agreement: 0.75,
        annotators: 2,
        clearly: 1,
        helpful: 0.75,
        harmless: 0.5,
      },
    ]);
  });

  test("of a ranking become all its pairs", async () => {
    const session = await labelling(tasks(1, 4));
    const shown = (await session.next("ana"))!;
    await session.answer("ana", shown.task, {
      kind: "label",
      ranks: { overall: alphabetical(shown.completions) },
      seconds,
    });
    expect(session.preferences().map(({ chosen, rejected }) => `${chosen as string} > ${rejected as string}`)).toEqual([
      "0 a > 0 b",
      "0 a > 0 c",
      "0 a > 0 d",
      "0 b > 0 c",
      "0 b > 0 d",
      "0 c > 0 d",
    ]);
  });

  test("can be taken back, one after the other; what is flagged is shown to nobody else and not learnt from", async () => {
    const session = await labelling(tasks(3), { twice: 1 });
    const order: string[] = [];
    for (const kind of ["label", "flag", "skip"] as const) {
      const shown = (await session.next("ana"))!;
      order.push(shown.task);
      await session.answer("ana", shown.task, {
        kind,
        ...(kind === "label" ? { ranks: { overall: [1, 2] } } : {}),
        seconds,
      });
    }
    expect(session.preferences()).toHaveLength(1);
    expect(await session.next("ana")).toBeUndefined();
    expect([(await session.next("ben"))!.task, session.progress("ana").mine]).toEqual([order[0], 3]);
    for (const id of order.toReversed()) expect((await session.undo("ana"))!.task).toBe(id);
    expect(await session.undo("ana")).toBeUndefined();
    expect([session.preferences().length, session.progress("ana").mine]).toEqual([0, 0]);
  });

  test.each<[string, object]>([
    ["kind", { kind: "like", seconds }],
    ["seconds", { kind: "skip", seconds: -1 }],
    ["ranks", { kind: "label", seconds }],
    ["ranks.overall", { kind: "label", ranks: { overall: [1, 3] }, seconds }],
    ["ranks.overall", { kind: "label", ranks: { overall: [1] }, seconds }],
    ["strength.overall", { kind: "label", ranks: { overall: [1, 2] }, strength: { overall: "very" }, seconds }],
    ["reason", { kind: "skip", reason: 3, seconds }],
    ["ranks", { kind: "skip", ranks: { overall: [1, 2] }, seconds }],
    ["ranks", { kind: "label", ranks: { overall: [1, 2], more: [1, 2] }, seconds }],
    ["ranks", { kind: "label", ranks: JSON.parse('{"overall": [1, 2], "__proto__": [1, 2]}') as object, seconds }],
    ["ranks.overall", { kind: "label", ranks: { overall: [1, 1.5] }, seconds }],
    ["seconds", { kind: "skip", seconds: 1e307 }],
    ["seconds", { kind: "skip", seconds: Infinity }],
    ["seconds", { kind: "skip", seconds: "1" }],
    ["reason", { kind: "skip", reason: "x".repeat(2001), seconds }],
    ["reason", { kind: "skip", reason: "half of a pair: \ud800", seconds }],
    ["reason", { kind: "skip", reason: "\0", seconds }],
    ["more", { kind: "skip", seconds, more: 1 }],
    ["an object", null as never],
  ])("are refused by %s, and leave no line", async (what, answer) => {
    const session = await labelling(tasks(1));
    const { task: id } = (await session.next("ana"))!;
    await expect(session.answer("ana", id, answer as never)).rejects.toMatchObject({
      code: "ANSWER",
      message: expect.stringContaining(what),
    });
    await expect(session.answer("ben", id, { kind: "skip", seconds })).rejects.toMatchObject({ code: "STALE" });
    expect(await readFile(file, "utf8")).toBe("");
  });

  test("are found again by a session that opens the log", async () => {
    const all = tasks(20);
    const first = await labelling(all, { twice: 0.5 });
    for (let i = 0; i < 15; i++) {
      const shown = (await first.next("ana"))!;
      await first.answer("ana", shown.task, {
        kind: i % 5 ? "label" : "skip",
        ...(i % 5 ? { ranks: { overall: alphabetical(shown.completions) } } : {}),
        reason: i ? "why" : "",
        seconds,
      });
      if (i === 7) await first.undo("ana");
    }
    const wanted = [first.preferences(), first.progress("ana"), await first.next("ana")];
    await opened.pop()!.close();
    const again = await labelling(all, { twice: 0.5 });
    expect([again.preferences(), again.progress("ana"), await again.next("ana")]).toEqual(wanted);
  });
});

describe("requests at once", () => {
  const skip = { kind: "skip", seconds } as const;

  test("see what the ones before have changed: a task that is being answered is not handed out again", async () => {
    const session = await labelling(tasks(50));
    const { task: id } = (await session.next("ana"))!;
    const label = { kind: "label" as const, ranks: { overall: [1, 2] }, seconds };
    const [, next, other] = await Promise.all([
      session.answer("ana", id, label),
      session.next("ana"),
      session.next("ben"),
    ]);
    expect(new Set([id, next!.task, other!.task]).size).toBe(3);
    const { task: second } = next!;
    const [first, again] = await Promise.allSettled([
      session.answer("ana", second, skip),
      session.answer("ana", second, { ...skip, kind: "flag" }),
    ]);
    expect([first.status, again]).toMatchObject(["fulfilled", { reason: { code: "STALE" } }]);
  });

  test("count once each: the same answer or undo sent again changes nothing, one of an earlier turn is refused", async () => {
    const session = await labelling(tasks(5));
    const lines = async () => (await readFile(file, "utf8")).split("\n").length - 1;
    const [one, two] = [await session.view("ana"), await session.view("ana")];
    expect(two).toEqual(one); // two windows
    const sent = { kind: "label" as const, ranks: { overall: [1, 2] }, seconds };
    await Promise.all(
      [1, 2, 3].map((longer) => session.answer("ana", one.shown!.task, { ...sent, seconds: longer }, one.turn)),
    );
    expect([await lines(), session.progress("ana").mine]).toEqual([1, 1]);
    const contrary = session.answer("ana", one.shown!.task, { ...sent, ranks: { overall: [2, 1] } }, one.turn);
    await expect(contrary).rejects.toMatchObject({ code: "STALE" });
    for (let i = 0; i < 2; i++) await session.answer("ana", (await session.next("ana"))!.task, sent);
    const { turn } = await session.view("ana");
    const undone = await Promise.all([1, 2, 3, 4].map(() => session.undo("ana", turn)));
    expect([new Set(undone.map((shown) => shown!.task)).size, session.progress("ana").mine, await lines()]).toEqual([
      1, 2, 4,
    ]);
    await Promise.all([session.undo("ana"), session.undo("ana"), session.undo("ana")]); // of the present turn: one label each
    expect([session.progress("ana").mine, await lines()]).toEqual([0, 6]);
    const late = session.answer("ana", one.shown!.task, sent, one.turn); // it was undone
    await expect(late).rejects.toMatchObject({ code: "STALE" });
    await expect(session.undo("ana", turn)).rejects.toMatchObject({ code: "STALE" });
    expect(await lines()).toBe(6);
  });

  test("of one annotator more than there may be are refused", async () => {
    const session = await labelling(tasks(2));
    for (let i = 0; i < 1000; i++) await session.next(`n${i}`);
    await expect(session.next("one more")).rejects.toMatchObject({ code: "LIMIT" });
    await session.next("n7");
  });
});

describe("kept counts", () => {
  test("are those of walking all labels, and the next task is the first that is open, whatever was said before", async () => {
    const random = new Random("counts");
    const all = tasks(40, 3);
    const options = { criteria: ["a", "b"], twice: 0.5 };
    const session = await labelling(all, options);
    const word = (id: string) => Number.parseInt(id.slice(0, 8), 16);
    const order = new Philox(1, 41).shuffle(all.map(({ id }) => id));
    const wanted = (id: string) => 1 + Number(new Philox(1, 42, word(id)).uniform() < options.twice);
    const names = ["ana", "ben", "eve", "dan"];
    for (let step = 0; step < 400; step++) {
      const name = random.pick(names);
      if (random.uniform() < 0.25) await session.undo(name);
      else {
        const shown = await session.next(name);
        if (!shown) continue;
        const kind = random.pick(["label", "label", "label", "label", "skip", "flag"] as const);
        const ranks = () => shown.completions.map(() => 1 + random.below(3));
        await session.answer(name, shown.task, {
          kind,
          seconds,
          ...(kind === "label" ? { ranks: { a: ranks(), b: ranks() } } : {}),
        });
      }
      if (step % 10 > 0) continue;
      const given = new Map<string, Map<string, LabelEntry>>(all.map(({ id }) => [id, new Map<string, LabelEntry>()]));
      for (const entry of opened.at(-1)!.entries)
        if (entry.kind === "undo") given.get(entry.task)!.delete(entry.annotator);
        else given.get(entry.task)!.set(entry.annotator, entry);
      const lists = [...given.values()].map((entries) => [...entries.values()]);
      const labelsOf = (entries: Iterable<LabelEntry>) => [...entries].filter(({ kind }) => kind === "label").length;
      const shared = lists.filter((entries) => labelsOf(entries) > 1);
      const alpha = Object.fromEntries(
        options.criteria.map((criterion) => [criterion, alphaOf(shared, criterion) ?? null]),
      );
      const isOpen = (id: string, name: string) => {
        const entries = given.get(id)!;
        return (
          !entries.has(name) &&
          ![...entries.values()].some(({ kind }) => kind === "flag") &&
          labelsOf(entries.values()) < wanted(id)
        );
      };
      for (const one of names) {
        const mine = lists.flat().filter(({ annotator }) => annotator === one).length;
        const again = new Labelling(all, opened.at(-1)!, { seed: 1, ...options }); // nobody holds a task
        expect({ seed, step, ...session.progress(one) }).toEqual({ seed, step, ...again.progress(one) });
        expect({ seed, step, ...again.progress(one) }).toMatchObject({
          mine,
          labels: labelsOf(lists.flat()),
          shared: shared.length,
          alpha,
        });
        expect({ seed, step, next: (await again.next(one))?.task }).toEqual({
          seed,
          step,
          next: order.find((id) => isOpen(id, one)),
        });
      }
    }
  });

  test("make a request of 100,000 labels as cheap as one of ten, and such a log is read in moments", async () => {
    const all = tasks(100_000);
    const said = (id: string, i: number) => ({
      kind: "label",
      task: id,
      annotator: ["ana", "ben", "eve"][i % 3],
      at: "2026-01-01T00:00:00.000Z",
      shown: [0, 1],
      seconds: (i % 100) / 10,
      ranks: { overall: [1, 2] },
    });
    await writeFile(file, all.map(({ id }, i) => `${withCrc(JSON.stringify(said(id, i)))}\n`).join(""));
    const start = performance.now();
    const session = await labelling(all, { twice: 1 });
    expect(session.progress("ana")).toMatchObject({ labels: 100_000, wanted: 200_000 });
    const opening = performance.now() - start;
    await session.next("ana");
    const begun = performance.now();
    for (let i = 0; i < 100; i++) {
      const { shown, turn } = await session.view("ana");
      await session.answer("ana", shown!.task, { kind: "label", ranks: { overall: [1, 2] }, seconds }, turn);
      if (i % 2) await session.undo("ana");
    }
    const requests = (performance.now() - begun) / 250;
    expect(session.progress("ana")).toMatchObject({ labels: 100_050, shared: 50 });
    // three seconds and half a millisecond where they were measured; 230 ms when all labels were walked
    expect({ opening, isSoon: opening < 15_000 }).toMatchObject({ isSoon: true });
    expect({ requests, isCheap: requests < 25 }).toMatchObject({ isCheap: true });
  });

  test("rest on a set of positions that finds the first from a place on", () => {
    const random = new Random("positions");
    for (const size of [1, 31, 32, 33, 1024, 1025, 40_000]) {
      const set = new Positions(size);
      const all = new Set<number>();
      for (let i = 0; i < 200; i++) {
        const position = random.below(size);
        if (random.uniform() < 0.5) {
          set.add(position);
          all.add(position);
        } else {
          set.delete(position);
          all.delete(position);
        }
        const from = random.below(size);
        const wanted = Math.min(...[...all].filter((one) => one >= from));
        expect({ seed, size, from, first: set.first(from) ?? Infinity }).toEqual({ seed, size, from, first: wanted });
        expect(new Positions(size, set).first()).toBe(set.first());
      }
      expect(set.first(size)).toBeUndefined();
    }
  });
});

describe("the log of labels", () => {
  const entry = (i: number): LabelEntry => ({
    kind: "skip",
    task: "t",
    annotator: `n${i}`,
    at: "2026",
    shown: [0, 1],
    seconds: i,
    reason: "\u00e9".repeat(i % 7),
  });

  test("cut at any byte, opens with the whole lines before, and goes on", async () => {
    const before = await log();
    for (let i = 0; i < 3; i++) await before.append(entry(i));
    await opened.pop()!.close();
    const whole = await readFile(file);
    for (let length = 0; length <= whole.length; length++) {
      await writeFile(file, whole.subarray(0, length));
      const again = await log();
      const lines = whole.subarray(0, length).toString("latin1").split("\n").length - 1;
      expect([length, again.entries.length]).toEqual([length, lines]);
      await again.append(entry(9));
      await opened.pop()!.close();
      const text = await readFile(file, "utf8");
      expect(
        text
          .trimEnd()
          .split("\n")
          .map((line) => (JSON.parse(line) as LabelEntry).seconds),
      ).toEqual([...[0, 1, 2].slice(0, lines), 9]);
    }
  });

  test("that is not one, or is damaged in the middle, is refused with its line, untouched", async () => {
    for (const text of [
      '{"prompt":"a","chosen":"b","rejected":"c"}\n',
      '{"prompt":"a"}\n{"prompt":"b"}',
      `{"kind\n${JSON.stringify(entry(1))}\n`,
    ]) {
      await writeFile(file, text);
      await expect(log()).rejects.toMatchObject({ message: expect.stringContaining(`${file}:1`) });
      expect(await readFile(file, "utf8")).toBe(text);
    }
  });

  /** A log of three lines with checksums, and the texts of these lines. */
  async function three(): Promise<string[]> {
    const before = await log();
    for (let i = 0; i < 3; i++)
      await before.append({ ...entry(i), kind: "label", ranks: { overall: [1, 2] }, reason: "caf\u00e9 \ud83d\ude00" });
    await opened.pop()!.close();
    return (await readFile(file, "utf8")).trimEnd().split("\n");
  }

  test("has every flipped bit found, or it changes nothing", async () => {
    await three();
    const whole = await readFile(file);
    const wanted = (await log()).entries;
    await opened.pop()!.close();
    const random = new Random("flip");
    for (let at = 0; at < whole.length; at++) {
      const flipped = Buffer.from(whole);
      flipped[at] ^= 1 << random.below(8);
      await writeFile(file, flipped);
      const found = await log().then(
        (one) => one.entries,
        (error: Error & { code: string }) => error,
      );
      await opened.pop()?.close();
      if (Array.isArray(found)) expect({ seed, at, found }).toEqual({ seed, at, found: wanted });
      else {
        expect(["JSON", "COLUMN"]).toContain(found.code);
        expect(found.message).toContain("rlhf data repair");
        expect(await readFile(file)).toEqual(flipped);
      }
    }
  });

  test("of an earlier version, without checksums, is read as before", async () => {
    const old = entry(5);
    await writeFile(file, `${JSON.stringify(old)}\n`);
    expect((await log()).entries).toEqual([old]);
    await opened.at(-1)!.append(entry(6));
    expect((await checkData(file)).labels).toMatchObject({ skipped: 2 });
  });

  test("with damaged lines loses none of the others: a repair sets these aside", async () => {
    const [first, second, third] = await three();
    const poisoned = second.replace('"seconds":1', '"seconds":null');
    const flipped = third.replace('"task":"t"', '"task":"u"');
    await writeFile(file, `${first}\n${poisoned}\n${flipped}\n${third}\n{"kind":"lab`);
    await expect(log()).rejects.toMatchObject({
      message: expect.stringMatching(/x\.labels\.jsonl:2: .*rlhf data repair/),
    });
    await expect(checkData(file)).rejects.toMatchObject({
      code: "COLUMN",
      message: expect.stringContaining("checksum"),
    });
    const { kept, aside } = await repairLog(file);
    expect([kept, aside]).toEqual([2, [expect.stringContaining(`${file}:2`), expect.stringContaining(`${file}:3`)]]);
    expect(await readFile(file, "utf8")).toBe(`${first}\n${third}\n`);
    expect(await readFile(`${file}.damaged`, "utf8")).toBe(`${poisoned}\n${flipped}\n`);
    expect((await log()).entries.map(({ seconds: i }) => i)).toEqual([0, 2]);
    await expect(repairLog(file)).rejects.toMatchObject({ code: "LOCKED" });
    await opened.pop()!.close();
    expect(await repairLog(file)).toMatchObject({ kept: 2, aside: [] });
    await rm(`${file}.damaged`);
    await writeFile(file, '{"prompt":"a"}\n');
    await expect(repairLog(file)).rejects.toMatchObject({ code: "FILE" });
    expect(await readFile(file, "utf8")).toBe('{"prompt":"a"}\n');
  });

  test("refuses what it would not read again, and nothing is written", async () => {
    const one = await log();
    for (const more of [
      { seconds: Infinity },
      { seconds: -1 },
      { shown: [0, 0] },
      { ranks: { overall: [1, 3] } },
      { more: 1 },
      { at: undefined },
    ])
      await expect(one.append({ ...entry(0), ...more } as never)).rejects.toMatchObject({ code: "ANSWER" });
    expect(await readFile(file, "utf8")).toBe("");
    await one.append(entry(1));
    expect((await readFile(file, "utf8")).split("\n")).toHaveLength(2);
  });

  test("on a disk that is full keeps what was acknowledged, and takes a label that fits", async () => {
    const script = join(folder, "full.mjs");
    await writeFile(
      script,
      `import { LabelLog } from ${JSON.stringify(join(root, "dist/lib/data/label_log.js"))};
      const log = await LabelLog.open(process.argv[2]);
      const entry = (i, length) => ({ kind: "skip", task: "t", annotator: "n", at: "", shown: [0, 1], seconds: i, reason: "x".repeat(length) });
      const told = [];
      for (let i = 0; i < 40; i++)
        await log.append(entry(i, i % 2 ? 10 : 900)).then(() => told.push(i), ({ code }) => told.push(code));
      await log.close();
      console.log(JSON.stringify(told));`,
    );
    const { stdout } = await promisify(execFile)("bash", [
      "-c",
      `ulimit -f 8; exec ${process.execPath} ${script} ${file}`,
    ]);
    const told = JSON.parse(stdout) as (number | string)[];
    expect(told).toContain("FILE");
    expect(told.slice(told.indexOf("FILE")).some((one) => typeof one === "number")).toBe(true);
    expect((await log()).entries.map(({ seconds: i }) => i)).toEqual(told.filter((one) => one !== "FILE"));
    expect(opened.at(-1)!.torn).toBe(false);
  });

  /** A process that appends without end, and sends the number of each label that is acknowledged. */
  async function writer(): Promise<ChildProcess> {
    const script = join(folder, "writer.mjs");
    await writeFile(
      script,
      `import { LabelLog } from ${JSON.stringify(join(root, "dist/lib/data/label_log.js"))};
      const log = await LabelLog.open(process.argv[2]);
      for (let i = log.entries.length; ; i++) {
        await log.append({ kind: "skip", task: "t", annotator: "n", at: "", shown: [0, 1], seconds: i, reason: "x".repeat((i * 37) % 5000) });
        process.send(i);
      }`,
    );
    return fork(script, [file]);
  }

  test("is open to one process at a time, until that ends, however it ends", async () => {
    const refused = (pid: number) =>
      expect(log()).rejects.toMatchObject({ code: "LOCKED", message: expect.stringContaining(`process ${pid} on `) });
    await log();
    await refused(process.pid);
    await opened.pop()!.close();
    const child = await writer();
    await new Promise((resolve) => child.once("message", resolve));
    await refused(child.pid!);
    const gone = new Promise((resolve) => child.on("close", resolve));
    child.kill("SIGKILL");
    await gone;
    await log();
  });

  test("of a process killed at any time holds every label that was acknowledged", async () => {
    const random = new Random("kill");
    let told = -1;
    for (let kill = 0; kill < 8; kill++) {
      const child = await writer();
      const gone = new Promise((resolve) => child.on("close", resolve));
      await new Promise((resolve) => child.once("message", (i) => resolve((told = i as number))));
      child.on("message", (i) => (told = i as number));
      setTimeout(() => child.kill("SIGKILL"), random.uniform(0, 60));
      await gone;
      const { entries } = await log();
      expect({ seed, told, holds: entries.length > told }).toEqual({ seed, told, holds: true });
      expect(entries.map(({ seconds: i }) => i)).toEqual(entries.map((_, i) => i));
      await opened.pop()!.close();
    }
  });
});

describe("tasks", () => {
  const at = () => join(folder, "c.jsonl");
  const write = (...rows: object[]) => writeFile(at(), rows.map((row) => JSON.stringify(row)).join("\n"));

  test("are the pairs of a prompt's completions that differ, or so many to rank", async () => {
    await write(...["a", "b", "", "a", "c", "d"].map((completion) => ({ prompt: "p", completion })), {
      prompt: "q",
      completion: "e",
    });
    const texts = async (size: number, pairs: "all" | "disjoint" = "all") =>
      (await tasksOf(at(), { pairs, size })).map(({ completions }) => completions.join(""));
    expect(await texts(2)).toEqual(["ab", "ac", "ad", "bc", "bd", "cd"]);
    expect(await texts(2, "disjoint")).toEqual(["ab", "cd"]);
    expect(await texts(3)).toEqual(["abc"]);
    expect(await texts(4)).toEqual(["abcd"]);
  });

  test("may be comparisons that are made again", async () => {
    await write({ prompt: "p", chosen: "a", rejected: "b" }, { prompt: "p", chosen: "a", rejected: "a" });
    expect((await tasksOf(at(), { pairs: "all", size: 2 })).map(({ completions }) => completions)).toEqual([
      ["a", "b"],
    ]);
  });
});

describe("checking a file", () => {
  test("counts duplicates, contradictions, equal texts, the longer ones and agreement", async () => {
    const rows = [
      { prompt: "p", chosen: "long", rejected: "b", agreement: 0.8 },
      { prompt: "p", chosen: "long", rejected: "b", agreement: 0.4 },
      { prompt: "p", chosen: "b", rejected: "long" },
      { prompt: "", chosen: "x", rejected: "x" },
      { prompt: "q", ranking: ["aa", "b", "cc"] },
    ];
    const path = join(folder, "check.jsonl");
    await writeFile(path, rows.map((row) => JSON.stringify(row)).join("\n"));
    expect(await checkData(path)).toMatchObject({
      rows: { preferences: 4, rankings: 1 },
      prompts: 3,
      emptyPrompts: 1,
      duplicates: 1,
      comparisons: {
        pairs: 7,
        equal: 1,
        contradictions: 1,
        longerPreferred: 3 / 5, // long > b twice and aa > b, against b > long and b > cc
        agreement: { rows: 2, mean: expect.closeTo(0.6, 12), against: 1 },
      },
    });
  });

  test("tells of a log who labelled, how often what came first won, and how far people agree", async () => {
    const session = await labelling(tasks(30), { twice: 1 });
    for (const annotator of ["ana", "ben"])
      for (let shown = await session.next(annotator); shown; shown = await session.next(annotator))
        await session.answer(annotator, shown.task, { kind: "label", ranks: { overall: [1, 2] }, seconds: 2 });
    await session.undo("ben");
    const { labels } = await checkData(file);
    expect(labels).toMatchObject({
      annotators: { ana: 30, ben: 29 },
      skipped: 0,
      flagged: 0,
      firstPreferred: 1,
      secondsMedian: 2,
    });
    expect(labels!.alpha.overall).toBe(session.progress("ana").alpha.overall);
    expect(Math.abs(labels!.alpha.overall!)).toBeLessThan(0.6); // both always took the first, in orders of their own
    await appendFile(file, '{"kind":"like","task":"t","annotator":"n"}\n');
    await expect(checkData(file)).rejects.toMatchObject({ code: "COLUMN", message: expect.stringContaining('"kind"') });
  });
});
