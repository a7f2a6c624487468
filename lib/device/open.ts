import { AddonDevice, inOurs } from "./addon.js";
import type { Device, DeviceKind } from "./device.js";
import { rangeError, shown, typeError, type CodedError } from "./errors.js";
import { native } from "./native.js";
import { specs, type Dtype, type OpSpec } from "./ops.js";

const opened = new Set<Device>(); // and not closed, in this order
const closed = (device: Device) => void opened.delete(device);

/** How a device is opened. */
export interface DeviceOptions {
  /** Compute threads; by default `RLHF_NUM_THREADS`, else one per core. */
  threads?: number;
  /**
   * `scalar`, `avx2`, `avx512` or `neon`; by default `RLHF_ISA`, else the best that the machine
   * has.
   */
  isa?: string;
  /**
   * webgpu: the adapter's features that kernels use where it has them (`subgroups`,
   * `timestamp-query`, `shader-f16`); by default all, `[]` for none.
   */
  features?: readonly string[];
  /** webgpu: bytes that a storage binding may have, if less than the adapter allows. */
  maxBinding?: number;
  /** cuda: which GPU; by default the first. */
  ordinal?: number;
}

/**
 * The device of ops that are given no tensor: of those that are open, the first that was opened.
 */
export function defaultDevice(): Device {
  const [first] = opened;
  if (!first) throw typeError("DEVICE", "no device is open: call `await device()` first, or pass tensors");
  return first;
}

function openCpu(isa: string | undefined, threads: number): Device {
  try {
    return new AddonDevice("cpu", isa, threads, { closed });
  } catch (error) {
    throw inOurs(error);
  }
}

function openCuda(ordinal: number): Device {
  if (!Number.isInteger(ordinal) || ordinal < 0)
    throw rangeError("DEVICE", `ordinal is ${shown(ordinal)}, wanted a whole number from 0`);
  try {
    return new AddonDevice("cuda", "cuda", ordinal, { closed });
  } catch (error) {
    const { code, message } = error as CodedError;
    throw rangeError(code === "MEMORY" ? code : "DEVICE", `cuda: ${message}`);
  }
}

/** The kinds of devices, the best one first. */
const BEST_FIRST: readonly DeviceKind[] = ["cuda", "webgpu", "cpu"];

/**
 * The dtypes that a kind of device takes an op at, none where it lacks it. No device is opened to
 * find out.
 */
async function dtypesOf(kind: DeviceKind): Promise<(op: OpSpec) => readonly Dtype[]> {
  if (kind !== "webgpu") return ({ dtypes }) => dtypes[kind];
  const { dtypes } = await import("./webgpu/ops/index.js");
  return ({ name }) => dtypes(name);
}

/**
 * Opens the best device that has every op of the list; a kind that lacks one is not tried, and one
 * that this machine does not have is passed over.
 * @internal
 * @throws RangeError `DEVICE` where no device has every op, or the error of the last that was tried
 */
export async function openBest(
  opened: (kind: DeviceKind) => Promise<Device>,
  abilities: (kind: DeviceKind) => Promise<(op: OpSpec) => readonly Dtype[]> = dtypesOf,
): Promise<Device> {
  const needed = [...specs.values()].filter(({ name }) => !name.startsWith("limit")); // those measure machines
  let refused: unknown = rangeError("DEVICE", "no device of this build has every op");
  for (const kind of BEST_FIRST) {
    const dtypes = await abilities(kind);
    if (needed.some((op) => dtypes(op).length === 0)) continue;
    try {
      return await opened(kind);
    } catch (error) {
      if ((error as CodedError).code !== "DEVICE") throw error;
      refused = error;
    }
  }
  throw refused;
}

/**
 * Opens a device: `cpu` (C++ kernels on own threads), `cuda` (an NVIDIA GPU), `webgpu` (WGSL
 * kernels on Dawn's adapter). The last two lack some ops, see `has`. Without a kind, it is the one
 * that `RLHF_DEVICE` names, else the best one that has every op.
 * @throws RangeError `DEVICE` if this machine does not have it, `THREADS`, `ISA`
 */
export async function device(kind?: DeviceKind, options: DeviceOptions = {}): Promise<Device> {
  if (typeof options !== "object" || options === null)
    throw typeError("ARGUMENT", `options are ${shown(options)}, wanted an object`);
  const wanted = kind ?? (process.env.RLHF_DEVICE as DeviceKind | undefined);
  return wanted === undefined ? openBest((best) => openKind(best, options)) : openKind(wanted, options);
}

async function openKind(wanted: DeviceKind, options: DeviceOptions): Promise<Device> {
  if (wanted === "webgpu") {
    const { openWebGpu } = await import("./webgpu/open.js");
    return added(await openWebGpu({ ...options, closed }));
  }
  if (wanted === "cuda") return added(openCuda(options.ordinal ?? 0));
  if (wanted !== "cpu") throw rangeError("DEVICE", `device is ${shown(wanted)}, this build has: cpu, cuda, webgpu`);
  const threads = options.threads ?? Number(process.env.RLHF_NUM_THREADS ?? 0);
  if (!Number.isInteger(threads) || threads < 0 || threads > 1024)
    throw rangeError(
      "THREADS",
      `threads is ${shown(options.threads ?? process.env.RLHF_NUM_THREADS)}, wanted a whole number from 1 to 1024`,
    );
  const isa = options.isa ?? process.env.RLHF_ISA;
  if (isa && !native.isaAvailable.split(" ").includes(isa))
    throw rangeError("ISA", `isa is ${shown(isa)}, this machine has: ${native.isaAvailable.replaceAll(" ", ", ")}`);
  return added(openCpu(isa || undefined, threads));
}

function added(device: Device): Device {
  opened.add(device);
  return device;
}
