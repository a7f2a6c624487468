import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Summary } from "../lib/cli/demo.js";
import { duration } from "../lib/cli/progress.js";
import { algorithms, type Algorithm, type Chart, type Material } from "../lib/rlhf/algorithms.js";
import { escape } from "./figure.js";

// What the docs show of runs of the demo: the README's picture, and each algorithm's claim and
// picture.

/** What the docs keep of a run of the demo. */
export interface DemoRun {
  summary: Summary;
  /** Points of the curves: by stage, then by metric. `step` is their place. */
  curves: Record<string, Record<string, number[]>>;
}

/** The kept runs, by the algorithm that trained the policy. */
export type DemoRuns = Record<string, DemoRun>;

/** Trains the policy where `rlhf demo` names no other algorithm. */
const PLAIN = "ppo";
const MOST_POINTS = 200;

const entries = Object.entries<Algorithm>(algorithms);
const picturesOf = ({ charts }: Algorithm): Chart[] => charts.slice(0, 2);
const metricOf = ({ series: [[metric]] }: Chart) => metric;

/** Reads summary.json and metrics.jsonl in the folder of a finished run, and adds it to those kept. */
export async function withDemo(runs: DemoRuns, folder: string): Promise<DemoRuns> {
  const [summary, metrics] = await Promise.all(
    ["summary.json", "metrics.jsonl"].map((name) => readFile(join(folder, name), "utf8")),
  );
  const rows = metrics
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, number> & { stage: string });
  const trained = entries.filter(([name]) => rows.some(({ stage }) => stage === name));
  const policy = trained.find(([, { material }]) => material === "prompts")![0];
  // The stages before the policy are equal in every run: the plain demo's are kept.
  const kept = trained.filter(([name]) => policy === PLAIN || name === policy);
  const curves = kept.map(([name, entry]) => {
    const own = rows.filter(({ stage }) => stage === name);
    const columns = ["step", ...picturesOf(entry).map(metricOf)];
    return [name, Object.fromEntries(columns.map((column) => [column, thinned(own.map((row) => row[column]))]))];
  });
  const run = { summary: JSON.parse(summary) as Summary, curves: Object.fromEntries(curves) as DemoRun["curves"] };
  const all = { ...runs, [policy]: run };
  return Object.fromEntries(entries.flatMap(([name]) => (all[name] ? [[name, all[name]]] : [])));
}

/** At most MOST_POINTS means of as many consecutive values each. The last may have fewer. */
export function thinned(values: readonly number[]): number[] {
  const each = Math.ceil(values.length / MOST_POINTS);
  return Array.from({ length: Math.ceil(values.length / each) }, (_, i) => {
    const some = values.slice(i * each, (i + 1) * each);
    return Number((some.reduce((a, b) => a + b, 0) / some.length).toPrecision(5));
  });
}

/** The kept runs as text, with a list of numbers on one line. */
export const demoText = (runs: DemoRuns): string =>
  `${JSON.stringify(runs, null, 1).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " "))}\n`;

const percent = (share: unknown) => `${(100 * (share as number)).toFixed(1)} %`;
const fixed = (value: unknown, digits: number) => (value as number).toFixed(digits);

/** What a run reached, by what the algorithm learns from. */
const reached: Record<Material, (summary: Summary) => string[]> = {
  texts: ({ bitsPerByte }) => [`The model needs ${fixed(bitsPerByte, 3)} bits per byte of held-out text.`],
  comparisons: ({ rewardModelAccuracy: accuracy }) => [
    `The model gets ${percent(accuracy)} of the held-out comparisons right.`,
  ],
  prompts: ({ winRate, winRateInterval, prompts, judge, klPerCompletion }) => {
    const [low, high] = (winRateInterval as number[]).map(percent);
    return [
      `The policy wins ${percent(winRate)} of ${String(prompts)} comparisons with its base model (95 %: ${low} to ${high}).`,
      `The judge is the demo's ${String(judge)}. A tie counts as half a win.`,
      `The KL to the base model is ${fixed(klPerCompletion, 2)} nats per completion.`,
    ];
  },
};

/** The claim and the picture of each algorithm that a kept run trained, by its name. */
export function shownOf(runs: DemoRuns): Map<string, { claim: string; figure: string }> {
  return new Map(
    entries.flatMap(([name, entry]) => {
      const kept = Object.entries(runs).find(([, { curves }]) => name in curves);
      if (!kept) return [];
      const [policy, { summary, curves }] = kept;
      return [[name, { claim: claimOf(name, entry, policy, summary), figure: algorithmFigure(entry, curves[name]) }]];
    }),
  );
}

function claimOf(name: string, entry: Algorithm, policy: string, summary: Summary): string {
  const { stages, cpu, isa, threads, seed } = summary as Summary & Record<string, string | number>;
  const sentences = [
    ...reached[entry.material](summary),
    `Training took ${duration(stages[name])} on ${cpu} (${isa}, ${threads} threads).`,
  ];
  const titles = picturesOf(entry).map(({ title }) => title);
  const command = `rlhf demo${policy === PLAIN ? "" : ` --policy ${policy}`} --seed ${seed}`;
  return [
    sentences.join("\n"),
    `This command makes the figures and the picture:`,
    `\`\`\`sh\n${command}\n\`\`\``,
    `![Curves of the training: ${titles.join(", ")}](${name}.svg)`,
  ].join("\n\n");
}

const [WIDTH, HEIGHT, HEAD, TOP, BOTTOM, PANEL, WIDE, GAP, LEFT] = [960, 280, 24, 76, 232, 256, 384, 64, 40];

interface Panel {
  title: string;
  /** What is drawn, under the title. */
  about?: string;
  below: string;
  x: number[];
  y: number[];
  /** Dots instead of a line. */
  dots?: boolean;
}

/**
 * Round numbers from the least to the largest value: at most five steps of 1, 2 or 5 times a power
 * of ten.
 */
export function ticks(values: readonly number[]): number[] {
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const power = 10 ** Math.floor(Math.log10((high - low || 1) / 5));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => (high - low) / size <= 5)!;
  const first = Math.floor(low / step);
  const last = Math.max(Math.ceil(high / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

/** The README's picture of the demo, as SVG: reward and KL by update, and against each other. */
export function demoFigure({ summary, curves }: DemoRun): string {
  const { step, reward, kl } = curves[PLAIN];
  const panels: Panel[] = [
    { title: "Reward of a completion", below: "PPO update", x: step, y: reward },
    { title: "KL to the base model, nats", below: "PPO update", x: step, y: kl },
    { title: "Reward against KL", below: "KL, nats per completion", x: kl, y: reward, dots: true },
  ];
  const wins = `Win rate against the base model: ${percent(summary.winRate)} of ${summary.prompts as number} prompts`;
  return svg(WIDTH, `<text x="0" y="20" class="title head">${wins}</text>`, panels);
}

/** The picture of an algorithm's page, as SVG: the first curve of its first two charts. */
function algorithmFigure(entry: Algorithm, points: Record<string, number[]>): string {
  const each = points.step.length > 1 ? Math.round(points.step[1] - points.step[0]) : 1;
  const round = entry.rounds.replace(/s$/, "");
  const panels = picturesOf(entry).map((chart) => ({
    title: chart.title,
    about: chart.about,
    below: each > 1 ? `${round} (means of ${each})` : round,
    x: points.step,
    y: points[metricOf(chart)],
  }));
  return svg(LEFT + panels.length * (WIDE + GAP), "", panels, WIDE);
}

/** SVG of panels side by side, readable in light and in dark. */
function svg(width: number, head: string, panels: readonly Panel[], panelWidth = PANEL): string {
  const top = head ? 0 : HEAD;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" viewBox="0 ${top} ${width} ${HEIGHT - top}" font-family="system-ui, sans-serif" font-size="12">
<style>
text { fill: #57606a } .title { fill: #1f2328; font-weight: 600 } .head { font-size: 16px } line { stroke: #d0d7de }
polyline { fill: none; stroke: #1a7f37; stroke-width: 2; stroke-linejoin: round } circle { fill: #1a7f37; fill-opacity: .55 }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .title { fill: #f0f6fc } line { stroke: #3d444d }
polyline { stroke: #3fb950 } circle { fill: #3fb950 } }
</style>
${head}
${panels.map((panel, i) => drawn(panel, LEFT + i * (panelWidth + GAP), panelWidth)).join("\n")}
</svg>
`;
}

function drawn({ title, about, below, x, y, dots }: Panel, left: number, width: number): string {
  const [across, up] = [ticks(x), ticks(y)];
  const place = (value: number, [from, to]: [number, number], all: readonly number[]) =>
    from + ((to - from) * (value - all[0])) / (all.at(-1)! - all[0]);
  const atX = (value: number) => place(value, [left, left + width], across).toFixed(1);
  const atY = (value: number) => place(value, [BOTTOM, TOP], up).toFixed(1);
  const points = x.map((value, i) => [atX(value), atY(y[i])]);
  return [
    `<text x="${left}" y="${TOP - (about ? 36 : 18)}" class="title">${escape(title)}</text>`,
    ...(about ? [`<text x="${left}" y="${TOP - 18}">${escape(about)}</text>`] : []),
    ...up.map(
      (value) =>
        `<line x1="${left}" x2="${left + width}" y1="${atY(value)}" y2="${atY(value)}"/><text x="${left - 8}" y="${Number(atY(value)) + 4}" text-anchor="end">${value}</text>`,
    ),
    ...across.map((value) => `<text x="${atX(value)}" y="${BOTTOM + 18}" text-anchor="middle">${value}</text>`),
    `<text x="${left + width / 2}" y="${BOTTOM + 38}" text-anchor="middle">${below}</text>`,
    dots
      ? points.map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="3.5"/>`).join("")
      : `<polyline points="${points.map((point) => point.join(",")).join(" ")}"/>`,
  ].join("\n");
}
