import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { sampleText } from "../../lib/cli/demo.js";
import { table } from "../../lib/cli/table.js";
import { shown, visible } from "../../lib/device/errors.js";
import { root } from "../../lib/device/native.js";

// A terminal shows texts of models, files and people, and obeys none of them.

/**
 * Escape sequences of 7 and 8 bits, a title, marks of direction, isolates, what has no shape, half
 * of a pair, NUL, carriage return.
 */
const hostile = "h\u001b[2J\u001b]0;t\u0007\u009b31m\u202e\u2066\u200b\ufeff\u00ad\u2028\u{e0041}\ud800\u007f\b\rx";
const inArguments = hostile.replace("\ud800", ""); // which the system does not pass
const OBEYED = /[^\P{C}\n\t]|[\u2028\u2029]/u;

describe("a visible text", () => {
  test("has no character that a terminal obeys or does not show, of all that there are", () => {
    const left: number[] = [];
    for (let code = 0; code <= 0x10ffff; code++)
      if (/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u.test(visible(`a${String.fromCodePoint(code)}a`))) left.push(code);
    expect(left).toEqual([]);
    expect(visible(hostile)).not.toMatch(OBEYED);
    expect(visible("a\nb\tc\r\u001b", { lines: true })).toBe("a\nb\tc\\u000d\\u001b");
  });

  test("keeps what people write, emoji and scripts with joiners too", () => {
    const kept =
      "caf\u00e9 e\u0301 \u4f60\u597d \u05e9\u05dc\u05d5\u05dd \u{1f468}\u200d\u{1f469}\u200d\u{1f467} \u2764\ufe0f\u200d\u{1f525} \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0915\u094d\u200d\u0937";
    expect(visible(kept)).toBe(kept);
  });

  test("of JSON is the same data", () => {
    const value = { [hostile]: [hostile, 1] };
    expect(JSON.parse(visible(JSON.stringify(value)))).toEqual(value);
  });

  test("stands in messages, tables and samples", () => {
    for (const text of [
      shown({ [hostile]: hostile }),
      shown(hostile.repeat(9)),
      shown(Symbol(hostile)),
      table([hostile, "b"], [[hostile, "\n"]]),
    ])
      expect(text.replaceAll("\n", "")).not.toMatch(OBEYED);
    expect(shown(`${"x".repeat(58)}\u{1f600}`)).toBe(`"${"x".repeat(58)}...`); // a pair is not halved
    expect(
      visible(sampleText({ prompt: hostile, base: hostile, policy: hostile } as never), { lines: true }),
    ).not.toMatch(OBEYED);
  });
});

describe("what commands print", () => {
  let folder: string;
  const at = (name: string) => join(folder, name);
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "rlhf-terminal-"));
    const label = {
      kind: "label",
      task: "t",
      annotator: hostile,
      at: "",
      shown: [0, 1],
      seconds: 1,
      ranks: { [hostile]: [1, 2] },
    };
    await writeFile(at(`${inArguments}.jsonl`), `${JSON.stringify(label)}\n`);
    await writeFile(at("bad.jsonl"), `${JSON.stringify(label)}\n${JSON.stringify({ ...label, kind: hostile })}\n`);
    await writeFile(at("prompts.jsonl"), `${JSON.stringify({ prompt: { [hostile]: hostile } })}\n`);
    await writeFile(
      at("pairs.jsonl"),
      `${JSON.stringify({ prompt: hostile, chosen: hostile, rejected: `${hostile}\nno` })}\n`,
    );
    await writeFile(at(`${inArguments}.yaml`), `seed: "${"\\e[2J\\L".repeat(3)}"\n"\\e[2J": 1\n`);
  });
  afterAll(() => rm(folder, { recursive: true }));

  interface Printed {
    code: number;
    text: string;
    out: string;
  }
  const rlhf = (args: readonly string[], { input = "", env = {} }: { input?: string; env?: object } = {}) =>
    new Promise<Printed>((resolve) => {
      const options = { cwd: folder, env: { ...process.env, RLHF_NUM_THREADS: "1", ...env } };
      const child = execFile(
        process.execPath,
        [join(root, "dist/lib/cli/main.js"), ...args],
        options,
        (error, out, errors) => resolve({ code: error ? Number(error.code) : 0, text: out + errors, out }),
      );
      child.stdin!.on("error", () => undefined).end(input);
    });

  const model = inArguments;
  const named = `${inArguments}.jsonl`;
  const commands: Record<string, string[]> = {
    demo: ["--runs", "runs", "--name", inArguments, "--config", `${inArguments}.yaml`],
    sft: ["--data", inArguments, "--out", "o"],
    collect: ["--model", model, "--prompts", named, "--out", "o.jsonl"],
    label: ["--data", named, "--out", "o.jsonl"],
    reward: ["--model", model, "--data", named, "--out", "o"],
    ppo: ["--model", model, "--reward", model, "--prompts", named, "--out", "o"],
    grpo: ["--model", model, "--reward", `${inArguments}.mjs`, "--prompts", named, "--out", "o"],
    eval: ["--base", model, "--policy", model, "--prompts", named, "--out", "o.jsonl"],
    merge: ["--model", model, model, "--out", "o"],
    logp: ["--model", model, "--data", named, "--out", "o.jsonl"],
    score: ["--model", model, "--data", named],
    check: [model],
    "data check": ["bad.jsonl"],
    "data repair": ["prompts.jsonl"],
    plan: ["--set", `ppo.${inArguments}=1`],
    config: [`--${inArguments}`],
    info: [`--${inArguments}`],
    ops: [`--${inArguments}`],
    algorithms: [`--${inArguments}`],
  };

  test("is every command there is", async () => {
    const listed = async (...args: string[]) =>
      [...(await rlhf([...args, "--help"])).out.matchAll(/^ {2}(\w+) .*$/gm)].map(([, name]) => name);
    const [all, ofData] = [await listed(), await listed("data")];
    const names = [
      ...all.filter((name) => !["data", "help"].includes(name)),
      ...ofData.filter((name) => name !== "help").map((name) => `data ${name}`),
    ];
    expect(names.toSorted()).toEqual(Object.keys(commands).toSorted());
  });

  test.each(Object.entries(commands))(
    "of rlhf %s names what it refuses, and commands no terminal",
    async (command, args) => {
      const { code, text } = await rlhf([...command.split(" "), ...args]);
      expect([code, text]).toEqual([1, expect.not.stringMatching(OBEYED)]);
      if (!["data repair"].includes(command)) expect(text).toContain("\\u001b[2J");
    },
  );

  test("of what succeeds commands no terminal either, and as JSON it is the same data", async () => {
    const checked = await rlhf(["data", "check", named]);
    expect([checked.code, checked.text]).toEqual([0, expect.not.stringMatching(OBEYED)]);
    expect(checked.text).toContain(`labels of ${visible(hostile)}`);
    const json = await rlhf(["data", "check", named, "--json"]);
    expect(json.text).not.toMatch(OBEYED);
    expect(JSON.parse(json.out)).toMatchObject({ labels: { annotators: { [hostile]: 1 } } });
    const labelled = await rlhf(["label", "--tty", "--data", "pairs.jsonl", "--out", "p.jsonl"], {
      input: "r\u202e\u200b\u2066why\ra",
      env: { USER: "ana" },
    });
    expect([labelled.code, labelled.text]).toEqual([0, expect.not.stringMatching(OBEYED)]);
    const [row] = (await readFile(at("p.jsonl"), "utf8")).trimEnd().split("\n");
    expect((JSON.parse(row) as { prompt: string }).prompt).toBe(hostile);
    expect(labelled.text).toContain("reason: \\u202e\\u200b\\u2066why");
    const refused = await rlhf(["label", "--tty", "--data", "pairs.jsonl", "--out", "q.jsonl"], {
      env: { USER: inArguments },
    });
    expect([refused.code, refused.text]).toEqual([1, expect.not.stringMatching(OBEYED)]);
  });

  test("goes through one place: nothing else in the library writes to a terminal", async () => {
    const files = (await readdir(join(root, "lib"), { recursive: true })).filter((name) => name.endsWith(".ts"));
    const writers: string[] = [];
    for (const name of files)
      if (/console\.\w+\(|process\.std(out|err)|\} = process;/.test(await readFile(join(root, "lib", name), "utf8")))
        writers.push(name);
    expect(writers.toSorted()).toEqual(["cli/labelling/tty.ts", "cli/main.ts", "cli/progress.ts", "cli/terminal.ts"]);
  });
});
