import type { Device } from "./device.js";
import { specs } from "./ops.js";

const best = (times: number[]) => Math.min(...times);

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

/** Fused multiply-adds that the device's threads reach together, FLOP/s: the best of a few short runs. */
export async function fmaPeak(device: Device, rounds = 2_000_000): Promise<number> {
  const { threads } = device;
  const address = device.allocate(8 * threads);
  const sink = { address, dtype: "f64", layout: "rows", shape: [threads], stride: 1 } as const;
  const run = () => device.call(specs.get("limitFma")!, [rounds, sink]);
  const times = await timed(device, 7, run);
  const flops = new Float64Array(await device.read(address, 8 * threads)).reduce((a, b) => a + b, 0);
  device.release(address);
  return flops / best(times);
}

/** Bytes per second that the device's threads read together, from memory that no cache holds. */
export async function readBandwidth(device: Device, bytes = 512 * 2 ** 20): Promise<number> {
  const { threads } = device;
  const n = Math.floor(bytes / 4);
  const source = device.allocate(4 * n);
  const address = device.allocate(4 * threads);
  const x = { address: source, dtype: "f32", layout: "rows", shape: [n], stride: 1 } as const;
  const sink = { address, dtype: "f32", layout: "rows", shape: [threads], stride: 1 } as const;
  device.call(specs.get("fill")!, [1, x]);
  const times = await timed(device, 5, () => device.call(specs.get("limitRead")!, [x, sink]));
  device.release(source);
  device.release(address);
  return (4 * n) / best(times);
}
