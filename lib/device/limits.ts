import { readFileSync } from "node:fs";
import type { Device } from "./device.js";
import { specs } from "./ops.js";

async function timed(device: Device, repeats: number, work: () => void): Promise<number[]> {
  const times: number[] = [];
  for (let i = 0; i < repeats; i++) {
    await device.read(0, 0);
    const start = performance.now();
    work();
    await device.read(0, 0);
    times.push((performance.now() - start) / 1000);
  }
  return times;
}

/**
 * The least time of short runs, s, for so many seconds: others of a shared machine leave some of
 * them alone.
 */
async function best(device: Device, seconds: number, work: () => void): Promise<number> {
  const [first] = await timed(device, 1, work);
  return Math.min(...(await timed(device, Math.max(7, Math.ceil(seconds / first)), work)));
}

/** Work that nothing but the machine bounds. */
export interface Probe {
  /** FLOP or bytes of one run. */
  amount: number;
  /** FLOP or bytes a second, at best. */
  rate: number;
  /** Enqueues one run. */
  run(): void;
  release(): void;
}

/** Fused multiply-adds in registers, on all of the device's threads. */
export async function fmaProbe(device: Device, rounds = 500_000): Promise<Probe> {
  const { threads } = device;
  const address = device.allocate(8 * threads);
  const sink = { address, dtype: "f64", layout: "rows", shape: [threads], stride: 1 } as const;
  const run = () => device.call(specs.get("limitFma")!, [rounds, sink]);
  const least = await best(device, 1, run);
  const amount = new Float64Array(await device.read(address, 8 * threads)).reduce((a, b) => a + b, 0);
  return { amount, rate: amount / least, run, release: () => device.release(address) };
}

async function rateOf(probe: Promise<Probe>): Promise<number> {
  const { rate, release } = await probe;
  release();
  return rate;
}

/** Fused multiply-adds that the device's threads reach together, FLOP/s. */
export const fmaPeak = (device: Device): Promise<number> => rateOf(fmaProbe(device));

/** Arrays of one size that a kernel goes through together. */
export interface Streams {
  reads: number;
  /** Read and written in place; moves twice. */
  updates: number;
  writes: number;
}

/** Bytes of the last level of the CPU's caches; 32 MiB where the system does not tell. */
export function lastLevelCache(): number {
  for (const level of [3, 2])
    try {
      const [, size, unit] = readFileSync(`/sys/devices/system/cpu/cpu0/cache/index${level}/size`, "utf8").match(
        /(\d+)([KM])/,
      )!;
      return Number(size) * (unit === "M" ? 2 ** 20 : 2 ** 10);
    } catch {}
  return 32 * 2 ** 20;
}

const BLOCK = 256; // values, of each stream in turn

/**
 * All of the device's threads together read, update and write arrays of `bytes` in all; with
 * ordinary stores or past the caches, whichever is faster. By default no cache holds the arrays.
 */
export async function streamProbe(
  device: Device,
  { reads, updates, writes }: Streams,
  bytes = 4 * lastLevelCache(),
): Promise<Probe> {
  const { threads } = device;
  const values = Math.max(1, Math.floor(bytes / 4 / (reads + updates + writes) / threads / BLOCK)) * threads * BLOCK;
  // one block, so that the next probe of so many bytes takes it again
  const address = device.allocate(4 * (reads + updates + writes) * values);
  const array = (before: number, streams: number) =>
    ({
      address: address + 4 * before * values,
      dtype: "f32",
      layout: "rows",
      shape: [streams, values],
      stride: values,
    }) as const;
  const [x, y, z] = [array(0, reads), array(reads, updates), array(reads + updates, writes)];
  const sink = {
    address: device.allocate(4 * threads),
    dtype: "f32",
    layout: "rows",
    shape: [threads],
    stride: 1,
  } as const;
  for (const all of [x, y, z]) device.call(specs.get("fill")!, [1, all]);
  const moved = 4 * values * (reads + 2 * updates + writes);
  const rounds = Math.ceil(2 ** 26 / moved); // some ms, so that the way to the threads is not what is measured
  const amount = rounds * moved;
  const release = () => [address, sink.address].forEach((one) => device.release(one));
  const probes: Probe[] = [];
  for (const pastCaches of writes > 0 ? [0, 1] : [0]) {
    const run = () => device.call(specs.get("limitStream")!, [rounds, pastCaches, x, y, z, sink]);
    probes.push({ amount, rate: amount / (await best(device, 0.3, run)), run, release });
  }
  return probes.reduce((a, b) => (b.rate > a.rate ? b : a));
}

/** Bytes per second that these streams read and write. */
export const bandwidth = (device: Device, streams: Streams, bytes?: number): Promise<number> =>
  rateOf(streamProbe(device, streams, bytes));

/** Bytes per second that the device's threads read together, from memory that no cache holds. */
export const readBandwidth = (device: Device): Promise<number> =>
  bandwidth(device, { reads: 1, updates: 0, writes: 0 });
