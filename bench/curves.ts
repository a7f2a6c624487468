import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Summary } from "../lib/cli/demo.js";

// The demo in one picture: reward and KL of its policy as they were measured at each update, and
// the one against the other.

/** What docs keep of a run of the demo. */
export interface DemoRun {
  summary: Summary;
  /** Each update's mean reward, and its KL to the base model in nats per completion. */
  updates: { reward: number; kl: number }[];
}

/** Reads summary.json and metrics.jsonl in the folder of a finished run. */
export async function readDemo(folder: string): Promise<DemoRun> {
  const [summary, metrics] = await Promise.all(
    ["summary.json", "metrics.jsonl"].map((name) => readFile(join(folder, name), "utf8")),
  );
  const rounded = (x: number) => Number(x.toPrecision(5));
  const updates = metrics
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as { stage: string; reward: number; kl: number })
    .filter(({ stage }) => stage === "ppo")
    .map(({ reward, kl }) => ({ reward: rounded(reward), kl: rounded(kl) }));
  return { summary: JSON.parse(summary) as Summary, updates };
}

const [WIDTH, HEIGHT, TOP, BOTTOM, PANEL, GAP, LEFT] = [960, 280, 76, 232, 256, 64, 40];

interface Panel {
  title: string;
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

/** SVG, readable in light and in dark. */
export function demoFigure({ summary, updates }: DemoRun): string {
  const reward = updates.map((update) => update.reward);
  const kl = updates.map((update) => update.kl);
  const step = updates.map((_, i) => i + 1);
  const panels: Panel[] = [
    { title: "Reward of a completion", below: "PPO update", x: step, y: reward },
    { title: "KL to the base model, nats", below: "PPO update", x: step, y: kl },
    { title: "Reward against KL", below: "KL, nats per completion", x: kl, y: reward, dots: true },
  ];
  const wins = `Win rate against the base model: ${(100 * summary.winRate).toFixed(1)} % of ${summary.prompts as number} prompts`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="system-ui, sans-serif" font-size="12">
<style>
text { fill: #57606a } .title { fill: #1f2328; font-weight: 600 } .head { font-size: 16px } line { stroke: #d0d7de }
polyline { fill: none; stroke: #1a7f37; stroke-width: 2; stroke-linejoin: round } circle { fill: #1a7f37; fill-opacity: .55 }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .title { fill: #f0f6fc } line { stroke: #3d444d }
polyline { stroke: #3fb950 } circle { fill: #3fb950 } }
</style>
<text x="0" y="20" class="title head">${wins}</text>
${panels.map((panel, i) => drawn(panel, LEFT + i * (PANEL + GAP))).join("\n")}
</svg>
`;
}

function drawn({ title, below, x, y, dots }: Panel, left: number): string {
  const [across, up] = [ticks(x), ticks(y)];
  const place = (value: number, [from, to]: [number, number], all: readonly number[]) =>
    from + ((to - from) * (value - all[0])) / (all.at(-1)! - all[0]);
  const atX = (value: number) => place(value, [left, left + PANEL], across).toFixed(1);
  const atY = (value: number) => place(value, [BOTTOM, TOP], up).toFixed(1);
  const points = x.map((value, i) => [atX(value), atY(y[i])]);
  return [
    `<text x="${left}" y="${TOP - 18}" class="title">${title}</text>`,
    ...up.map(
      (value) =>
        `<line x1="${left}" x2="${left + PANEL}" y1="${atY(value)}" y2="${atY(value)}"/><text x="${left - 8}" y="${Number(atY(value)) + 4}" text-anchor="end">${value}</text>`,
    ),
    ...across.map((value) => `<text x="${atX(value)}" y="${BOTTOM + 18}" text-anchor="middle">${value}</text>`),
    `<text x="${left + PANEL / 2}" y="${BOTTOM + 38}" text-anchor="middle">${below}</text>`,
    dots
      ? points.map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="3.5"/>`).join("")
      : `<polyline points="${points.map((point) => point.join(",")).join(" ")}"/>`,
  ].join("\n");
}
