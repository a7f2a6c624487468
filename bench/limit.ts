import type { Device } from "../lib/index.js";
import {
  fmaProbe,
  lastLevelCache,
  readBandwidth,
  streamProbe,
  type Probe,
  type Streams,
} from "../lib/device/limits.js";
import type { Timer } from "./measure.js";

export interface Cost {
  flops: number;
  /** Bytes that must move: inputs once, outputs once. */
  read: number;
  write: number;
  /** Bytes that are counted in both since they are updated in place. */
  update?: number;
  /** Bytes that are touched from one run to the next. Without it: more than any cache holds. */
  footprint?: number;
  /**
   * Bytes move only when the arithmetic is done, so the limit is the sum of both. Otherwise it is
   * the longer of them.
   */
  apart?: boolean;
}

/**
 * A bound on the speed of a row: plain arithmetic or plain memory traffic, timed in turns with the
 * row.
 */
export interface Bar {
  kind: "arithmetic" | "memory";
  timer: Timer;
  /** FLOP or bytes of one run. */
  amount: number;
  /** FLOP or bytes of the row. */
  owed: number;
}

export interface Bound {
  /** The least time of any implementation, ms, as far as the probes of the machine tell. */
  ms: number;
  /**
   * FLOP/s that the machine reached in turns with the row; null where arithmetic cannot be the
   * bound.
   */
  peak: number | null;
  /**
   * Bytes per second at the row's own mix of streams and footprint; null where arithmetic alone is
   * the bound.
   */
  bandwidth: number | null;
}

/**
 * The bound of a row from the times of its bars. It is the longer of two times, or their sum with
 * `apart`: arithmetic at the peak, and compulsory bytes at the bandwidth.
 * @param ms time of one run of each bar
 */
export function bound(bars: readonly Bar[], ms: readonly number[], apart = false): Bound {
  const rate = (kind: Bar["kind"]) => {
    const i = bars.findIndex((bar) => bar.kind === kind);
    return i < 0 ? null : (1000 * bars[i].amount) / ms[i];
  };
  const owed = bars.map((bar, i) => (bar.owed / bar.amount) * ms[i]);
  return {
    ms: apart ? owed.reduce((a, b) => a + b, 0) : Math.max(0, ...owed),
    peak: rate("arithmetic"),
    bandwidth: rate("memory"),
  };
}

const MOST_STREAMS = 8;

/** Numbers of arrays to read, update and write, in about the proportions of a row's bytes. */
export function mix({ read, write, update = 0 }: Cost): Streams {
  const parts = [read - update, update, write - update];
  const total = parts.reduce((a, b) => a + b, 0);
  const rounded = (streams: number) => parts.map((part) => Math.round((streams * part) / total));
  const error = (streams: number) =>
    Math.max(...rounded(streams).map((n, i) => Math.abs(n / streams - parts[i] / total)));
  let best = 1;
  for (let streams = 2; streams <= MOST_STREAMS; streams++) if (error(streams) < error(best) - 0.01) best = streams;
  const [reads, updates, writes] = rounded(best);
  return { reads, updates, writes };
}

/** The machine's limits with the run's threads. */
export class Limits {
  /**
   * The last probe, shared by rows of the same mix. It may hold gigabytes: four times the caches.
   */
  private streams?: { key: string; probe: Probe };

  private constructor(
    private readonly on: Device,
    private readonly fma: Probe,
    /** bytes/s, read from memory */
    readonly read: number,
  ) {}

  static async measure(on: Device): Promise<Limits> {
    return new Limits(on, await fmaProbe(on), await readBandwidth(on));
  }

  /** FLOP/s at best */
  get peak(): number {
    return this.fma.rate;
  }

  /** The bars that may bound work of this cost. */
  async bars(cost: Cost): Promise<Bar[]> {
    const { flops, footprint, apart } = cost;
    const bytes = cost.read + cost.write;
    const [arithmetic, least] = [flops / this.peak, bytes / this.read];
    const bars: Bar[] = [];
    // what a cache holds may move ten times as fast as from memory, and streams that are written
    // too half as fast as reading alone, not less
    if (flops > 0 && (apart || 10 * arithmetic > least)) bars.push(this.bar("arithmetic", this.fma, flops));
    if (bytes > 0 && (apart || arithmetic <= 3 * least))
      bars.push(this.bar("memory", await this.stream(mix(cost), footprint), bytes));
    return bars;
  }

  private bar(kind: Bar["kind"], { run, amount }: Probe, owed: number): Bar {
    const timer = async (runs: number) => {
      await this.on.read(0, 0);
      const start = performance.now();
      for (let i = 0; i < runs; i++) run();
      await this.on.read(0, 0);
      return performance.now() - start;
    };
    return { kind, timer, amount, owed };
  }

  private async stream(streams: Streams, footprint = Infinity): Promise<Probe> {
    const bytes = Math.min(footprint, 4 * lastLevelCache());
    const key = JSON.stringify([streams, bytes]);
    if (this.streams?.key !== key) {
      this.streams?.probe.release();
      this.streams = { key, probe: await streamProbe(this.on, streams, bytes) };
    }
    return this.streams.probe;
  }
}
