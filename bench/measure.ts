import { setTimeout } from "node:timers/promises";

/** Times one unit of work, in ms. */
export type Timer = () => Promise<number>;

export interface Measured {
  /** Median, ms. */
  ms: number;
  /** (90th - 10th percentile) / median. */
  spread: number;
}

const SECONDS = 2;
const PAUSE = 30; // ms, until the threads of whoever ran before have stopped spinning
const MOST = 60;

/** Rounds at least: work of many seconds is steadier, and there is no time for many. */
const least = (ms: number) => (ms > 10_000 ? 1 : ms > 2000 ? 3 : 5);

/** Runs the timers in turns, A B A B, after a warm-up of each, for about two seconds each. */
export async function interleaved(timers: readonly Timer[]): Promise<Measured[]> {
  const times = timers.map((): number[] => []);
  let warm = 0;
  for (const timer of timers) warm = Math.max(warm, await timer());
  const start = performance.now();
  for (let round = 0; round < MOST && (round < least(warm) || performance.now() - start < 1000 * SECONDS * timers.length); round++)
    for (const [i, timer] of timers.entries()) {
      await setTimeout(PAUSE);
      times[i].push(await timer());
    }
  return times.map(summary);
}

function summary(times: number[]): Measured {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))];
  return { ms: at(0.5), spread: (at(0.9) - at(0.1)) / at(0.5) };
}
