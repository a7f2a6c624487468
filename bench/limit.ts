import type { Device } from "../lib/index.js";
import { fmaPeak, readBandwidth } from "../lib/device/limits.js";

/** What the machine can do at most, measured in this run with the run's threads. */
export interface Limits {
  /** FLOP/s */
  peak: number;
  /** bytes/s */
  bandwidth: number;
}

export const measureLimits = async (on: Device): Promise<Limits> => ({ peak: await fmaPeak(on), bandwidth: await readBandwidth(on) });

export interface Cost {
  flops: number;
  /** Bytes that must move: inputs once, outputs once. */
  read: number;
  write: number;
}

/** No implementation takes less, in ms: the longer of arithmetic at the peak and compulsory bytes at the bandwidth. */
export const limitMs = ({ flops, read, write }: Cost, { peak, bandwidth }: Limits): number => 1000 * Math.max(flops / peak, (read + write) / bandwidth);
