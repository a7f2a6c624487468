import { createRequire } from "node:module";
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** One argument of an op, as the list in native/list/ops.h has it and tells what the words mean. */
export interface NativeArgument {
  /** What the op does with the argument. */
  kind: "in" | "opt" | "out" | "opt_out" | "add" | "opt_add" | "ids" | "offsets" | "real" | "integer" | "choice";
  /**
   * `F32`, `F64`, `I32`, `ROWS`, `EITHER`, `WEIGHT` or `SAME`; for a choice the name of its list;
   * else empty.
   */
  type: string;
  /** The name in C. */
  name: string;
  /** A letter for each dimension, as `N,H,D`; empty for a number. */
  dims: string;
  /** For ids and offsets: the letter of the size that they stay below, or end with. */
  limit: string;
  /** For a real or an integer: the least that it may be. */
  low: number;
  /** For a real or an integer: the most that it may be. */
  high: number;
  /** Whether it must be more than `low`. */
  openLow: boolean;
  /** Whether it must be less than `high`. */
  openHigh: boolean;
}

/**
 * A device of the addon with its memory. Every address is looked up: what lies outside of what was
 * allocated is refused. Errors have a code, and name arguments as C does.
 */
export interface NativeDevice {
  readonly isa: string;
  readonly threads: number;
  /** Memory that is freed once its owner is lost, where it has one. */
  allocate(bytes: number, owner?: object): number;
  /** Gives memory another owner, or none. */
  own(address: number, owner?: object): void;
  release(address: number): boolean;
  write(address: number, bytes: Uint8Array): void;
  trust(address: number): void;
  read(address: number, bytes: number): Promise<ArrayBuffer>;
  /** Resolves when all that is queued is done; rejects with the first failure that no read told. */
  wait(): Promise<void>;
  /** An op's number and its arguments: the first so many numbers of the frame. */
  call(frame: Float64Array, numbers: number): void;
  /** Such frames one after another, for `run`. */
  record(frames: Float64Array): object;
  run(recorded: object): void;
  memory(): { current: number; peak: number; held: number; workspace: number; busySeconds: number };
  trim(): void;
  close(): void;
}

/**
 * Functions of the law of arithmetic, in f64, within 2 ulp: the same bits on every machine. What
 * reaches a weight uses these.
 */
export interface LawMath {
  /** e^x, 0 below x = -708. */
  exp(x: number): number;
  /** The natural logarithm. */
  log(x: number): number;
  /** The cosine of radians below 1e6. */
  cos(x: number): number;
  /** x^y, for x above 0. */
  pow(x: number, y: number): number;
}

/** The list of ops as the C interface tells it. */
interface NativeList {
  /** Each with the dtypes that a device takes it at (a CPU: its weights); none where the device lacks it. */
  ops: { name: string; arguments: NativeArgument[]; cpu: ("f32" | "bf16")[]; cuda: ("f32" | "bf16")[] }[];
  choices: Record<string, string[]>;
}

interface Addon extends LawMath {
  /**
   * Opens a device: an instruction set and a number of threads, or "cuda" and the ordinal of the
   * GPU. A planned one runs no calls.
   */
  Device: new (isa: string | undefined, number: number, planned?: boolean) => NativeDevice;
  /** The list of ops, a `NativeList` as JSON. */
  list: string;
  isaAvailable: string;
  cores: number;
  lawVersion: number;
  /** Locks an open file for this process (flock); false if another has it. */
  lock(fileDescriptor: number): boolean;
}

function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, "package.json"))) {
    if (folder === dirname(folder)) throw new Error("rlhf-kernels: its own package.json was not found");
    folder = dirname(folder);
  }
  return folder;
}

/** The folder of this package. */
export const root = packageRoot();

/** The addon of this platform's package or of this build; `RLHF_ADDON` names another. */
function load(): Addon {
  const require = createRequire(import.meta.url);
  const { optionalDependencies: packages = {} } = require(join(root, "package.json")) as {
    optionalDependencies?: Record<string, string>;
  };
  const platform = `${process.platform}-${process.arch}`;
  const ours = Object.keys(packages).filter((name) => name.startsWith(`@rlhf-kernels/${platform}`));
  const built = join(root, "build/native/Release/rlhf_kernels.node");
  const tried: string[] = [];
  for (const place of process.env.RLHF_ADDON ? [resolve(process.env.RLHF_ADDON)] : [...ours, built])
    try {
      if (place in packages) {
        const { version } = require(`${place}/package.json`) as { version: string };
        if (version !== packages[place]) throw new Error(`its version is ${version}, wanted ${packages[place]}`);
      }
      return require(place) as Addon;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      tried.push(`  ${place}: ${code === "MODULE_NOT_FOUND" ? "not there" : message.split("\n")[0]}`);
    }
  const install = ours.map((name) => `  npm install ${name}@${packages[name]}`);
  throw new Error(
    [
      `rlhf-kernels: no native addon for ${platform} could be loaded. Tried:`,
      ...tried,
      "Mend it by",
      ...install.map(
        (line) =>
          `${line}   (npm leaves it out with --omit=optional, or by a package-lock.json that another platform wrote), or`,
      ),
      `  node ${join(root, "native/package/setup.mjs")}   (builds it; needs a C++ compiler, make and CMake)`,
    ].join("\n"),
  );
}

const addon = load();
/** An end that a range has not is null there. */
const endless = (key: string, value: unknown) => (value === null ? (key === "low" ? -Infinity : Infinity) : value);
/** The addon, with its list of ops. */
export const native = { ...addon, ...(JSON.parse(addon.list, endless) as NativeList) };

/** The functions of the law of arithmetic. */
export const math: LawMath = { exp: native.exp, log: native.log, cos: native.cos, pow: native.pow };
