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

/** The least time of short runs, s, for so many seconds: others of a shared machine leave some of them alone. */
async function best(device: Device, seconds: number, work: () => void): Promise<number> {
  const [first] = await timed(device, 1, work);
  return Math.min(...(await timed(device, Math.max(7, Math.ceil(seconds / first)), work)));
}

/** Fused multiply-adds that the device's threads reach together, FLOP/s. */
export async function fmaPeak(device: Device, rounds = 2_000_000): Promise<number> {
  const { threads } = device;
  const address = device.allocate(8 * threads);
  const sink = { address, dtype: "f64", layout: "rows", shape: [threads], stride: 1 } as const;
  const least = await best(device, 1, () => device.call(specs.get("limitFma")!, [rounds, sink]));
  const flops = new Float64Array(await device.read(address, 8 * threads)).reduce((a, b) => a + b, 0);
  device.release(address);
  return flops / least;
}

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
      const [, size, unit] = readFileSync(`/sys/devices/system/cpu/cpu0/cache/index${level}/size`, "utf8").match(/(\d+)([KM])/)!;
      return Number(size) * (unit === "M" ? 2 ** 20 : 2 ** 10);
    } catch {}
  return 32 * 2 ** 20;
}

const BLOCK = 256; // values, of each stream in turn

/**
 * Bytes per second, read and written, that the device's threads move together through arrays of `bytes` in all; with ordinary
 * stores or past the caches, whichever is faster. By default no cache holds the arrays.
 */
export async function bandwidth(device: Device, { reads, updates, writes }: Streams, bytes = 4 * lastLevelCache()): Promise<number> {
  const { threads } = device;
  const values = Math.max(1, Math.floor(bytes / 4 / (reads + updates + writes) / threads / BLOCK)) * threads * BLOCK;
  const array = (streams: number) =>
    ({ address: device.allocate(4 * streams * values), dtype: "f32", layout: "rows", shape: [streams, values], stride: values }) as const;
  const [x, y, z] = [reads, updates, writes].map(array);
  const sink = { address: device.allocate(4 * threads), dtype: "f32", layout: "rows", shape: [threads], stride: 1 } as const;
  for (const all of [x, y, z]) device.call(specs.get("fill")!, [1, all]);
  const moved = 4 * values * (reads + 2 * updates + writes);
  const rounds = Math.ceil(2 ** 26 / moved); // some ms, so that the way to the threads is not what is measured
  let least = Infinity;
  for (const pastCaches of writes > 0 ? [0, 1] : [0])
    least = Math.min(least, await best(device, 0.3, () => device.call(specs.get("limitStream")!, [rounds, pastCaches, x, y, z, sink])));
  for (const { address } of [x, y, z, sink]) device.release(address);
  return (rounds * moved) / least;
}

/** Bytes per second that the device's threads read together, from memory that no cache holds. */
export const readBandwidth = (device: Device): Promise<number> => bandwidth(device, { reads: 1, updates: 0, writes: 0 });
