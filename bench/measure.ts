/** Times one unit of work, in ms. */
export type Timer = () => Promise<number>;

export interface Measured {
  /** Median, ms. */
  ms: number;
  /** (90th - 10th percentile) / median. */
  spread: number;
}

const SECONDS = 2;
const LEAST = 5;
const MOST = 60;

/** Runs the timers in turns, A B A B, after a warm-up of each, for about two seconds in all. */
export async function interleaved(timers: readonly Timer[]): Promise<Measured[]> {
  const times = timers.map((): number[] => []);
  for (const timer of timers) await timer();
  const start = performance.now();
  for (let round = 0; round < MOST && (round < LEAST || performance.now() - start < 1000 * SECONDS * timers.length); round++)
    for (const [i, timer] of timers.entries()) times[i].push(await timer());
  return times.map(summary);
}

function summary(times: number[]): Measured {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))];
  return { ms: at(0.5), spread: (at(0.9) - at(0.1)) / at(0.5) };
}
