import { setTimeout } from "node:timers/promises";

/** Times so many runs of a unit of work, one after another: ms for all. */
export type Timer = (runs: number) => Promise<number>;

export interface Measured {
  /** Median, ms. */
  ms: number;
  /** (90th - 10th percentile) / median. */
  spread: number;
}

const SECONDS = 2;
const PAUSE = 30; // ms, until the threads of whoever ran before have stopped spinning
const MOST = 60;
const LONG = 30_000; // ms: a warm-up of this length is a measurement
const SHORT = 2; // ms: less work than this is done several times over, so that waking up is not what is measured

/** Rounds at least: work of many seconds is steadier, and there is no time for many. */
const least = (ms: number) => (ms > 10_000 ? 1 : ms > 2000 ? 3 : 5);

/** Runs the timers in turns, A B A B, after a warm-up of each, for about two seconds each. Work of microseconds is averaged over some ms. */
export async function interleaved(timers: readonly Timer[]): Promise<Measured[]> {
  const times = timers.map((): number[] => []);
  const repeats: number[] = [];
  let warm = 0;
  for (const [i, timer] of timers.entries()) {
    const first = await timer(1);
    if (first > LONG) times[i].push(first);
    repeats.push(first < 100 * SHORT ? Math.ceil(SHORT / (await timer(1))) : 1);
    warm = Math.max(warm, first);
  }
  const start = performance.now();
  for (let round = 0; round < MOST && (round < least(warm) || performance.now() - start < 1000 * SECONDS * timers.length); round++)
    for (const [i, timer] of timers.entries()) {
      if (times[i][0] > LONG) continue;
      await setTimeout(PAUSE);
      times[i].push((await timer(repeats[i])) / repeats[i]);
    }
  return times.map(summary);
}

function summary(times: number[]): Measured {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))];
  return { ms: at(0.5), spread: (at(0.9) - at(0.1)) / at(0.5) };
}
