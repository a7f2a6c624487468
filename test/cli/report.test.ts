import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { readConfig } from "../../lib/cli/config/config.js";
import { jsonElement, markup } from "../../lib/cli/report/html.js";
import { report, stageReport, type Parts } from "../../lib/cli/report/report.js";
import { Run } from "../../lib/cli/run/run.js";
import { sealed } from "../../lib/cli/run/seal.js";
import { algorithms, device, type Algorithm, type AlgorithmName, type Device } from "../../lib/index.js";
import { Browser, chromium } from "../chromium.js";

// The page of a run: whatever stands in its samples, metrics and names is text there, and nothing
// but the page's own script runs.

const attack = `"'><img src=x onerror="document.title='taken'"><script>document.title='taken'</script>]]>--><!--\u2028\u202e\u0007`;
const text = "preferred </script>";

let on: Device;
let folder: string;
let run: Run;
let page: string;
beforeAll(async () => {
  on = await device("cpu", { threads: 1 });
  folder = await mkdtemp(join(tmpdir(), "rlhf-report-"));
  run = await Run.open(
    join(folder, "<img src=x onerror=document.title=1>&quot;"),
    await readConfig(undefined),
    on,
    false,
  );
  const line = (stage: string, step: number) => ({
    stage,
    step,
    loss: step,
    accuracy: 0.5,
    reward: step,
    kl: step,
    entropy: 1,
    length: 3,
    clipFraction: 0.1,
    valueLoss: 1,
    explainedVariance: 0.2,
    groupsWithoutVariance: 0.3,
    gradientNorm: 1,
    valueGradientNorm: 1,
  });
  const metrics = ["sft", "reward", "ppo"].flatMap((stage) => [1, 2, 3].map((step) => line(stage, step)));
  const hostile = { ...line("sft", 4), loss: attack, [attack]: attack };
  await writeFile(run.path("metrics.jsonl"), [...metrics, hostile].map((row) => `${sealed(row)}\n`).join(""));
  run.done.push({ name: attack, seconds: 1, peakBytes: 0, result: {} });
  const calibration = {
    error: 0.1,
    bins: [{ probability: 0.5, outcome: 0.4, count: 3 }],
  } as Parts["reward"]["calibration"];
  const sample = {
    prompt: attack,
    base: attack,
    policy: attack,
    baseScore: 1,
    policyScore: 2,
  } as Parts["eval"]["samples"][number];
  const number = attack as unknown as number; // of a stages.json that someone wrote
  page = await report(run, "ppo", {
    sft: { parameters: number, tokens: number, bitsPerByte: 1, loss: 1 },
    collect: { prompts: number, completions: number, example: { prompt: attack, completions: [attack, attack] } },
    label: {
      comparisons: number,
      disagreed: number,
      annotators: number,
      example: { prompt: attack, chosen: attack, rejected: text },
    },
    reward: { comparisons: number, heldOut: 7, accuracy: 0.5, calibration },
    policy: { updates: number, episodes: number, tokens: number },
    eval: { prompts: number, winRate: 0.5, winRateInterval: [0.4, 0.6], klPerCompletion: 1, samples: [sample, sample] },
    summary: { cpu: attack, isa: attack, threads: attack, seconds: 1, [attack]: attack },
  });
});
afterAll(async () => {
  run[Symbol.dispose]();
  await on.close();
  await rm(folder, { recursive: true });
});

test("what is inserted into HTML is text, in elements, attributes and data", () => {
  expect(markup`<p title="${attack}">${attack}</p>`.source.match(/[<>]/g)).toHaveLength(4);
  expect(markup`<b>${[markup`<i>${"&"}</i>`, markup`<i>${1}</i>`]}</b>`.source).toBe("<b><i>&#38;</i><i>1</i></b>");
  const { source } = jsonElement("x", { [attack]: attack });
  const [, inside] = source.match(/^<script type="application\/json" id="x">(.*)<\/script>$/s)!;
  expect(inside).not.toMatch(/[<>&\u2028\u2029]/);
  expect(JSON.parse(inside)).toEqual({ [attack]: attack });
});

test("the page has no element, script or attribute that its texts brought along, and its policy names one script and one style", async () => {
  for (const one of [page, await stageReport(run, attack)]) {
    for (const part of ["<img", "<script>document", 'onerror="', "\u202e", "\u2028", "\u0007"])
      expect([part, one.includes(part)]).toEqual([part, false]);
    expect(one.match(/<script/g)).toHaveLength(2); // the data, and what draws it
    expect(one.slice(0, 500)).toMatch(
      /http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;; style-src &#39;sha256-[\w+/=]+&#39;; script-src &#39;sha256-[\w+/=]+&#39;; base-uri/,
    );
    expect(one.match(/unsafe-/)).toBeNull();
  }
});

test("a stage by itself has the curves that its entry names, and none of metrics that it does not tell", async () => {
  const titles = async (name: AlgorithmName, without: string[] = []) => {
    using alone = await Run.open(join(folder, `alone-${name}`), await readConfig(undefined), on, false);
    const told = Object.values<Algorithm>(algorithms).flatMap(({ charts }) =>
      charts.flatMap(({ series, against }) => [...series, ...(against ? [against] : [])].map(([metric]) => metric)),
    );
    const metrics = Object.fromEntries(told.filter((metric) => !without.includes(metric)).map((metric) => [metric, 1]));
    await writeFile(alone.path("metrics.jsonl"), `${sealed({ stage: name, step: 1, ...metrics })}\n`);
    return [...(await stageReport(alone, name)).matchAll(/<figcaption><b>([^<]*)<\/b>/g)].map(([, title]) => title);
  };
  for (const [name, { charts }] of Object.entries<Algorithm>(algorithms))
    expect(await titles(name as AlgorithmName)).toEqual(charts.map(({ title }) => title));
  const grpo = await titles("grpo", ["kl"]); // klCoef is 0
  expect(grpo).toEqual(
    algorithms.grpo.charts.map(({ title }) => title).filter((title) => !["KL", "Reward against KL"].includes(title)),
  );
});

const withBrowser = chromium ? describe : describe.skip;
if (!chromium) console.warn("skipped: the report in a browser, for no Chromium was found (RLHF_CHROMIUM names one)");

withBrowser("in Chromium", () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await Browser.open();
  });
  afterAll(() => browser.close());

  const opened = async (content: string) => {
    await writeFile(join(folder, "report.html"), content);
    return browser.page(pathToFileURL(join(folder, "report.html")).href);
  };

  test("the page draws its curves, shows hostile samples as texts, and complains of nothing", async () => {
    const tab = await opened(page);
    await tab.until(`document.querySelectorAll("canvas").length === document.querySelectorAll("figure").length`);
    expect(await tab.value(`document.querySelectorAll("figure").length`)).toBe(13); // sft 1, reward 3, ppo 9
    expect(
      await tab.value(
        `[...document.querySelectorAll(".samples td")].every((cell) => cell.innerText.includes("<script>document.title"))`,
      ),
    ).toBe(true);
    expect(await tab.value("document.querySelectorAll('img').length")).toBe(0);
    expect(await tab.value("document.title")).toMatch(/^rlhf: .*<img src=x/);
    // drawn, not empty: some pixel of each canvas has a colour
    const drawn = `[...document.querySelectorAll("canvas")].every((one) => one.getContext("2d").getImageData(0, 0, one.width, one.height).data.some((byte) => byte > 0))`;
    expect(await tab.value(drawn)).toBe(true);
    expect(await tab.value("getComputedStyle(document.body).maxWidth")).toBe("1180px");
    expect(browser.complaints.splice(0)).toEqual([]);
  });

  test("a script that was put into the page does not run", async () => {
    const tab = await opened(
      (await readFile(join(folder, "report.html"), "utf8")).replace(
        "<header>",
        "<header><script>document.title = 'taken'</script>",
      ),
    );
    await tab.until(`document.querySelectorAll("canvas").length > 0`);
    expect(await tab.value("document.title")).not.toBe("taken");
    expect(browser.complaints.splice(0).join()).toMatch(/Content Security Policy/);
  });
});
