import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Calibration } from "../../data/metrics.js";
import { jsonElement, markup, pageOf, type Html } from "./html.js";
import { duration } from "../progress.js";
import type { Run } from "../run/run.js";
import { readLines } from "../run/seal.js";
import type { EvalRow } from "../stages/eval.js";
import { rewardVerdict } from "../material.js";
import { algorithms, type Algorithm, type AlgorithmName, type Chart as MetricChart } from "../../rlhf/algorithms.js";

/** What the stages of a run tell. */
export interface Parts {
  sft: { parameters: number; tokens: number; bitsPerByte: number; loss: number };
  collect: { prompts: number; completions: number; example: { prompt: string; completions: string[] } };
  label: {
    comparisons: number;
    disagreed: number;
    annotators: number;
    example: { prompt: string; chosen: string; rejected: string; agreement?: number };
  };
  reward: { comparisons: number; heldOut: number; accuracy: number; calibration: Calibration };
  policy: { updates: number; episodes: number; tokens: number; referenceSha256?: string };
  eval: {
    prompts: number;
    winRate: number;
    winRateInterval: [number, number];
    klPerCompletion: number;
    samples: EvalRow[];
  };
  summary: Record<string, unknown>;
}

interface Series {
  label: string;
  x: number[];
  y: number[];
  faint?: boolean;
}

interface Chart {
  title: string;
  about: string;
  x: string;
  series: Series[];
  points?: boolean;
}

/**
 * The demo's page: the chain of stages, the curves, the samples.
 * @param policy the algorithm that trained the policy
 */
export async function report(run: Run, policy: AlgorithmName, parts: Parts): Promise<string> {
  const seconds = Object.fromEntries(run.done.map((stage) => [stage.name, stage.seconds]));
  const { heldOut, calibration } = parts.reward;
  const charts = await curves(run, heldOut > 0 ? calibration : undefined);
  const { eval: evaluated, summary } = parts;
  return page(run, {
    title: `${percent(evaluated.winRate)} of completions preferred to the base model's`,
    about: `${evaluated.prompts} prompts that no stage saw; 95 %: ${evaluated.winRateInterval.map(percent).join(" to ")}; ${evaluated.klPerCompletion.toFixed(1)} nats of KL per completion.
${String(summary.cpu)}, ${String(summary.isa)}, ${String(summary.threads)} threads, ${duration(summary.seconds as number)}.`,
    charts,
    body: markup`<h2>The chain</h2>
<div class="chain">${boxes(policy, parts, seconds).map((box, i) => (i > 0 ? markup`<div class="arrow" aria-hidden="true">\u2192</div>${box}` : box))}</div>
<h2>Curves</h2>
${figures(charts)}
<h2>Samples</h2>
<table class="samples"><thead><tr><th>prompt</th><th>base</th><th>policy</th></tr></thead><tbody>
${evaluated.samples.map(sampleRow)}
</tbody></table>
<h2>Summary</h2>
<table class="summary">${Object.entries(summary)
      .filter(([, value]) => typeof value !== "object")
      .map(
        ([name, value]) =>
          markup`<tr><th>${name}</th><td>${typeof value === "number" ? Number(value.toPrecision(6)) : String(value)}</td></tr>`,
      )}</table>`,
  });
}

/** The page of a stage that ran by itself: its curves. */
export async function stageReport(run: Run, title: string, calibration?: Calibration): Promise<string> {
  const charts = await curves(run, calibration);
  const about = `${run.folder}; ${run.done.map(({ name, seconds }) => `${name}: ${duration(seconds)}`).join(", ")}.`;
  return page(run, { title, about, charts, body: figures(charts) });
}

const figures = (charts: Chart[]) =>
  markup`<div class="charts">${charts.map(({ title, about }, i) => markup`<figure><figcaption><b>${title}</b> ${about}</figcaption><div id="chart${i}"></div></figure>`)}</div>`;

/** One page that needs nothing else. */
async function page(
  run: Run,
  { title, about, body, charts }: { title: string; about: string; body: Html; charts: Chart[] },
): Promise<string> {
  const folder = dirname(createRequire(import.meta.url).resolve("uplot"));
  const [script, style] = await Promise.all(
    ["uPlot.iife.min.js", "uPlot.min.css"].map((file) => readFile(join(folder, file), "utf8")),
  );
  return pageOf({
    title: `rlhf: ${run.folder}`,
    style: style + css,
    script: script + drawing,
    body: markup`<header>
<h1>${title}</h1>
<p>${about}</p>
</header>
${body}
${jsonElement("charts", charts)}`,
  });
}

function boxes(policy: AlgorithmName, parts: Parts, seconds: Record<string, number>): Html[] {
  const { sft, collect, label, reward, policy: learnt, summary } = parts;
  const { prompt, completions } = collect.example;
  const [sample] = parts.eval.samples;
  const box = (stage: string, title: string, about: string, counts: string, example: Html) =>
    markup`<section><h3>${title}</h3><p class="count">${counts}<br>${duration(seconds[stage] ?? 0)}</p><p>${about}</p><p class="example">${example}</p></section>`;
  return [
    box(
      "sft",
      "base model",
      "A tokenizer and a transformer learn the language of the speeches, token by token.",
      `${count(sft.parameters)} weights, ${count(sft.tokens)} tokens`,
      markup`${sft.bitsPerByte.toFixed(3)} bits per held-out byte`,
    ),
    box(
      "collect",
      "completions",
      "The base model continues prompts from text that it has not read, several times each.",
      `${count(collect.prompts)} prompts, ${count(collect.completions)} completions`,
      markup`\u2026${prompt}<ins>${completions[0]}</ins>`,
    ),
    box(
      "label",
      "comparisons",
      `${label.annotators} scripted annotators say which of two completions sounds better; they read a sentiment lexicon, and disagree as people do.`,
      `${count(label.comparisons)} pairs, ${count(label.disagreed)} not unanimous`,
      markup`<b>\u2713</b> ${label.example.chosen}<br><b>\u2717</b> ${label.example.rejected}`,
    ),
    box(
      "reward",
      "reward model",
      "The base model with a scalar head learns to score as the annotators choose (Bradley and Terry).",
      `${count(reward.comparisons)} pairs, ${count(reward.heldOut)} held out`,
      markup`${rewardVerdict(reward)}`,
    ),
    box(
      policy,
      policy.toUpperCase(),
      "The policy is moved toward what the reward model scores high, and pays for every nat that it leaves the base model.",
      `${learnt.updates} updates, ${count(learnt.episodes)} completions`,
      markup`reward ${fixed(summary.rewardBefore)} \u2192 ${fixed(summary.rewardAfter)}`,
    ),
    box(
      "eval",
      "evaluation",
      "Base and policy continue the same new prompts; the annotator, without noise and never seen by the policy, judges.",
      `${count(parts.eval.prompts)} prompts`,
      sample ? markup`\u2026${sample.prompt}<ins>${sample.policy}</ins>` : markup``,
    ),
  ];
}

/**
 * The curves of a run: those that the entries of its stages name, and how well a reward model is
 * calibrated.
 */
async function curves(run: Run, calibration?: Calibration): Promise<Chart[]> {
  const stages = new Map<string, Record<string, number>[]>();
  for (const line of await readLines<Record<string, number> & { stage: string }>(run.path("metrics.jsonl"))) {
    if (!stages.has(line.stage)) stages.set(line.stage, []);
    stages.get(line.stage)!.push(line);
  }
  const drawn: Chart[] = [];
  for (const [name, entry] of Object.entries<Algorithm>(algorithms)) {
    const lines = stages.get(name);
    if (!lines) continue;
    const drawable = entry.charts.filter(({ series, against }) =>
      [...series, ...(against ? [against] : [])].every(([metric]) => lines.some((line) => metric in line)),
    );
    const prefix = stages.size > 1 ? `${entry.title}: ` : "";
    for (const chart of drawable) drawn.push({ ...curve(chart, entry, lines), title: `${prefix}${chart.title}` });
    if (calibration && entry.material === "comparisons") drawn.push(calibrationChart(calibration));
  }
  return drawn;
}

/** A chart of an entry with the metrics of its stage. */
function curve(chart: MetricChart, { rounds }: Algorithm, lines: Record<string, number>[]): Chart {
  const { title, about, against, smoothed: isSmoothed } = chart;
  const of = (metric: string) => lines.map((line) => line[metric]);
  if (against) {
    const series = chart.series.map(([metric, label]) => ({ label, ...sorted(of(against[0]), of(metric)) }));
    return { title, about, x: against[1], points: true, series };
  }
  const series = chart.series.map(([metric, label]) => thin({ label, x: of("step"), y: of(metric) }));
  return { title, about, x: rounds.replace(/s$/, ""), series: isSmoothed ? series.flatMap(smoothed) : series };
}

function calibrationChart({ error, bins }: Calibration): Chart {
  const x = bins.map(({ probability }) => probability);
  return {
    title: "Calibration",
    about: `held-out: how often A was preferred, where the model says so with this probability; expected error ${error.toFixed(3)}`,
    x: "P(A preferred)",
    points: true,
    series: [
      { label: "observed", x, y: bins.map(({ outcome }) => outcome) },
      { label: "ideal", x, y: x },
    ],
  };
}

/** A noisy series with its exponential average over some twenty steps. */
function smoothed(series: Series): Series[] {
  let average = series.y[0];
  return [
    { ...series, faint: true },
    { ...series, label: "average", y: series.y.map((y) => (average += (y - average) / 20)) },
  ];
}

const MOST_POINTS = 600;

function thin({ label, x, y }: Series): Series {
  const every = Math.ceil(x.length / MOST_POINTS);
  const kept = (values: number[]) => values.filter((_, i) => i % every === 0);
  return { label, x: kept(x), y: kept(y) };
}

function sorted(x: number[], y: number[]): { x: number[]; y: number[] } {
  const order = x.map((_, i) => i).sort((a, b) => x[a] - x[b]);
  return { x: order.map((i) => x[i]), y: order.map((i) => y[i]) };
}

const sampleRow = ({ prompt, base, policy, baseScore, policyScore }: EvalRow) => {
  const scored = (text: string, score: number) =>
    markup`<td>${text} <span class="score">${score.toFixed(1)}</span></td>`;
  return markup`<tr><td>\u2026${prompt}</td>${scored(base, baseScore)}${scored(policy, policyScore)}</tr>\n`;
};

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const count = (n: number) => n.toLocaleString("en-US");
const fixed = (value: unknown) => (typeof value === "number" ? value.toFixed(2) : "\u2013");

const css = `
:root { color-scheme: light dark; --ink: light-dark(#1d2430, #e6e9ef); --faint: light-dark(#667085, #98a2b3); --line: light-dark(#d9dee7, #394150); --box: light-dark(#f7f8fa, #1b212b); --accent: light-dark(#0a6e5c, #4fd1b5); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: light-dark(#fff, #12161c); max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .8rem; } header p { color: var(--faint); margin: .3rem 0; }
.chain { display: flex; align-items: stretch; gap: .3rem; flex-wrap: wrap; }
.chain section { box-sizing: border-box; flex: 1 1 150px; border: 1px solid var(--line); border-radius: 8px; background: var(--box); padding: .6rem .7rem; font-size: .82rem; min-width: 0; overflow-wrap: anywhere; }
.chain h3 { margin: 0; font-size: .98rem; } .chain p { margin: .35rem 0; } .count { color: var(--accent); font-variant-numeric: tabular-nums; }
.example { color: var(--faint); border-top: 1px dashed var(--line); padding-top: .35rem; overflow-wrap: anywhere; } .example ins { text-decoration: none; color: var(--ink); }
.arrow { align-self: center; color: var(--faint); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem; } figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; min-width: 0; }
figcaption { font-size: .85rem; color: var(--faint); } figcaption b { color: var(--ink); }
table { border-collapse: collapse; font-size: .88rem; } th, td { text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); padding: .4rem .6rem .4rem 0; }
.samples td { width: 33%; } .score { color: var(--accent); font-variant-numeric: tabular-nums; white-space: nowrap; } .summary td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.u-legend { font-size: .75rem; }
`;

// Runs in the page.
const drawing = `
const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const ink = dark ? "#98a2b3" : "#667085", grid = { stroke: dark ? "#2a313c" : "#eceff3", width: 1, faint: dark ? "#3d4654" : "#cdd3dc" }, colours = dark ? ["#4fd1b5", "#f0a35e"] : ["#0a6e5c", "#c2570c"];
charts.forEach((chart, i) => {
  const place = document.getElementById("chart" + i);
  const data = [chart.series[0].x, ...chart.series.map((s) => s.y)];
  const axis = { stroke: ink, grid, ticks: grid };
  const plot = new uPlot({
    width: place.clientWidth, height: 190, scales: { x: { time: false } }, axes: [{ ...axis, label: chart.x, labelSize: 18, labelFont: "11px system-ui" }, { ...axis, size: 58 }],
    series: [{ label: chart.x }, ...chart.series.map((s, k) => ({ label: s.label, stroke: s.faint ? grid.faint : colours[k], width: chart.points && k === 0 ? 0 : 1.6, dash: chart.points && k > 0 ? [4, 4] : undefined, points: { show: !!chart.points && k === 0, size: 6, fill: colours[k] } }))],
  }, data, place);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: 190 })).observe(place);
});
`;
