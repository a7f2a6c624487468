import type { Device } from "../lib/index.js";
import { bandwidth, fmaPeak, lastLevelCache, readBandwidth, type Streams } from "../lib/device/limits.js";

export interface Cost {
  flops: number;
  /** Bytes that must move: inputs once, outputs once. */
  read: number;
  write: number;
  /** Bytes that are counted in both since they are updated in place. */
  update?: number;
  /** Bytes of all that is touched from one run to the next; without it, more than any cache holds. */
  footprint?: number;
}

export interface Bound {
  /** No implementation takes less, as far as the probes of the machine go. */
  ms: number;
  /** Bytes per second at the row's own mix of streams and footprint; null where arithmetic alone is the bound. */
  bandwidth: number | null;
}

const MOST_STREAMS = 8;

/** A few arrays, read, updated and written in about the proportions of these bytes. */
export function mix({ read, write, update = 0 }: Cost): Streams {
  const parts = [read - update, update, write - update];
  const total = parts.reduce((a, b) => a + b, 0);
  const rounded = (streams: number) => parts.map((part) => Math.round((streams * part) / total));
  const error = (streams: number) => Math.max(...rounded(streams).map((n, i) => Math.abs(n / streams - parts[i] / total)));
  let best = 1;
  for (let streams = 2; streams <= MOST_STREAMS; streams++) if (error(streams) < error(best) - 0.01) best = streams;
  const [reads, updates, writes] = rounded(best);
  return { reads, updates, writes };
}

/** What the machine can do at most, measured in this run with the run's threads. */
export class Limits {
  private readonly measured = new Map<string, Promise<number>>();

  private constructor(
    private readonly on: Device,
    /** FLOP/s */
    readonly peak: number,
    /** bytes/s, read from memory */
    readonly read: number,
  ) {}

  static async measure(on: Device): Promise<Limits> {
    return new Limits(on, await fmaPeak(on), await readBandwidth(on));
  }

  /** The longer of arithmetic at the peak and compulsory bytes at the bandwidth. */
  async bound(cost: Cost): Promise<Bound> {
    const arithmetic = cost.flops / this.peak;
    const bytes = cost.read + cost.write;
    // streams that are written too may be half as fast as reading alone, not less
    if (bytes === 0 || arithmetic > (3 * bytes) / this.read) return { ms: 1000 * arithmetic, bandwidth: null };
    const rate = await this.bandwidth(mix(cost), Math.min(cost.footprint ?? Infinity, 4 * lastLevelCache()));
    return { ms: 1000 * Math.max(arithmetic, bytes / rate), bandwidth: rate };
  }

  private bandwidth(streams: Streams, bytes: number): Promise<number> {
    const key = JSON.stringify([streams, bytes]);
    if (!this.measured.has(key)) this.measured.set(key, bandwidth(this.on, streams, bytes));
    return this.measured.get(key)!;
  }
}
