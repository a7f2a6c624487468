import { readFileSync } from "node:fs";
import { join } from "node:path";
import { rangeError } from "../errors.js";
import { root } from "../native.js";
import type { Device } from "../device.js";
import { WebGpuDevice } from "./device.js";

export interface OpenOptions {
  /**
   * Features to use where the adapter has them: by default all that kernels know, `[]` for the
   * plain paths.
   */
  features?: readonly string[];
  maxBinding?: number;
  closed?(device: Device): void;
}

const FEATURES = ["subgroups", "timestamp-query", "shader-f16"];
const LIMITS = ["maxBufferSize", "maxStorageBufferBindingSize"] as const;

let gpu: GPU | undefined; // lives as long as the process: adapters and devices hang on it

async function adapter(): Promise<GPUAdapter> {
  let dawn: typeof import("webgpu");
  try {
    dawn = await import("webgpu");
  } catch (error) {
    throw rangeError(
      "DEVICE",
      `the package webgpu could not be loaded (npm install webgpu): ${(error as Error).message.split("\n")[0]}`,
    );
  }
  Object.assign(globalThis, dawn.globals);
  const found = await (gpu ??= dawn.create([]))
    .requestAdapter({ powerPreference: "high-performance" })
    .catch(() => null);
  if (!found)
    throw rangeError(
      "DEVICE",
      'no WebGPU adapter: a GPU with a driver for Vulkan, Metal or Direct3D 12 is one, and so is Mesa 25\'s lavapipe ("apt-get install mesa-vulkan-drivers")',
    );
  return found;
}

const nameOf = ({ info }: GPUAdapter) =>
  info.description || [info.vendor, info.device].filter(Boolean).join(" ") || "an adapter without a name";

/** The adapter's name; throws RangeError `DEVICE`, saying why, where there is none. */
export async function adapterName(): Promise<string> {
  return nameOf(await adapter());
}

/** Opens Dawn's default adapter. */
export async function openWebGpu({ features = FEATURES, maxBinding, closed }: OpenOptions): Promise<WebGpuDevice> {
  const found = await adapter();
  const requiredFeatures = features.filter((feature) => found.features.has(feature)) as GPUFeatureName[];
  const requiredLimits = Object.fromEntries(LIMITS.map((limit) => [limit, found.limits[limit]]));
  const device = await found.requestDevice({ requiredFeatures, requiredLimits });
  const source = (file: string) => readFileSync(join(root, "kernels/wgsl", `${file}.wgsl`), "utf8");
  return new WebGpuDevice(device, { name: nameOf(found), source, maxBinding, closed });
}
