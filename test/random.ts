/** Test data from a seed that is printed: RLHF_TEST_SEED repeats a run. */
export const seed = Number(process.env.RLHF_TEST_SEED ?? Date.now() % 1e9);

/** mulberry32, seeded by the run's seed and a name. */
export class Random {
  private state: number;
  constructor(name: string, base = seed) {
    this.state = base >>> 0;
    for (const c of name) this.state = (Math.imul(this.state ^ c.charCodeAt(0), 0x9e3779b1) + 0x85ebca6b) >>> 0;
  }
  uniform(low = 0, high = 1): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return low + (((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * (high - low);
  }
  below(n: number): number {
    return Math.floor(this.uniform() * n);
  }
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)];
  }
}
