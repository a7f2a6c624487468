import { setTimeout } from "node:timers/promises";

/** Runs a unit of work `runs` times, one after another. Resolves to the time of all runs, ms. */
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
const LONG = 120_000; // ms: a warm-up of this length is a measurement
const SHORT = 40; // ms: less work than this is done several times over,
const SHARE = 1 / 20; // or less than this of the longest

/** The least number of rounds. Long work is steadier, and needs fewer. */
const least = (ms: number) => (ms > 10_000 ? 1 : ms > 2000 ? 3 : 5);

/**
 * Number of runs that take `together` ms. One run alone may take ten times as long as the next, so
 * it is found step by step.
 */
async function enough(timer: Timer, together: number): Promise<number> {
  for (let runs = 1; ;) {
    const ms = await timer(runs);
    if (ms >= together / 1.2) return runs;
    runs = Math.ceil(runs * Math.min(10, together / ms));
  }
}

/**
 * Runs the timers in turns, A B A B, for about two seconds each, after a warm-up of each. Short
 * work first runs untimed: threads that slept may share a core for some ms, and that time is not
 * the work's.
 */
export async function interleaved(timers: readonly Timer[]): Promise<Measured[]> {
  const times = timers.map((): number[] => []);
  const firsts: number[] = [];
  for (const [i, timer] of timers.entries()) {
    firsts.push(await timer(1));
    if (firsts[i] > LONG) times[i].push(firsts[i]);
  }
  const warm = Math.max(...firsts);
  const repeats: number[] = [];
  for (const [i, timer] of timers.entries())
    repeats.push(firsts[i] < 100 * SHORT ? await enough(timer, Math.max(SHORT, SHARE * warm)) : 1);
  const start = performance.now();
  for (
    let round = 0;
    round < MOST && (round < least(warm) || performance.now() - start < 1000 * SECONDS * timers.length);
    round++
  )
    for (const [i, timer] of timers.entries()) {
      if (times[i][0] > LONG) continue;
      await setTimeout(PAUSE);
      if (repeats[i] > 1) await timer(Math.ceil(repeats[i] / 3));
      times[i].push((await timer(repeats[i])) / repeats[i]);
    }
  return times.map(summary);
}

function summary(times: number[]): Measured {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))];
  return { ms: at(0.5), spread: (at(0.9) - at(0.1)) / at(0.5) };
}
