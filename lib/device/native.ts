import { createRequire } from "node:module";
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** One argument of an op, as the list in native/ops.h has it. */
export interface NativeArgument {
  kind: "in" | "opt" | "out" | "opt_out" | "add" | "opt_add" | "ids" | "offsets" | "real" | "integer" | "choice";
  type: string;
  name: string;
  dims: string;
  limit: string;
}

export interface NativeDevice {
  readonly isa: string;
  readonly threads: number;
  allocate(bytes: number): number;
  release(address: number): boolean;
  write(address: number, bytes: Uint8Array): void;
  read(address: number, bytes: number): Promise<ArrayBuffer>;
  /** An op's number and its arguments. */
  call(frame: Float64Array): void;
  /** Such frames one after another, for `run`. */
  record(frames: Float64Array): object;
  run(recorded: object): void;
  memory(): { current: number; peak: number; held: number; workspace: number; busySeconds: number };
  trim(): void;
  close(): void;
}

interface Addon {
  /** Of an instruction set and a number of threads, or of "cuda" and the GPU's ordinal; where it is planned, calls are not run. */
  Device: new (isa: string | undefined, number: number, planned?: boolean) => NativeDevice;
  /** The dtypes that each device takes the op at (a CPU: its weights); none where it lacks it. */
  ops: { name: string; arguments: NativeArgument[]; cpu: ("f32" | "bf16")[]; cuda: ("f32" | "bf16")[] }[];
  choices: Record<string, string[]>;
  isaAvailable: string;
  cores: number;
  lawVersion: number;
  exp(x: number): number;
  log(x: number): number;
  cos(x: number): number;
  pow(x: number, y: number): number;
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
  const tried: string[] = [];
  const places = [`@rlhf-kernels/${process.platform}-${process.arch}`, join(root, "build/native/Release/rlhf_kernels.node")];
  for (const place of process.env.RLHF_ADDON ? [resolve(process.env.RLHF_ADDON)] : places)
    try {
      return require(place) as Addon;
    } catch (error) {
      tried.push(`  ${place}: ${(error as Error).message.split("\n")[0]}`);
    }
  throw new Error(
    `rlhf-kernels: no native addon for ${process.platform}-${process.arch} could be loaded. Tried:\n${tried.join("\n")}\n` +
      "Build it from source with `npm run setup` in the package's folder (it needs a C++ compiler and cmake).",
  );
}

export const native = load();

/** Functions of the law of arithmetic, in f64: the same bits on every machine. What reaches a weight uses these. */
export const math = { exp: native.exp, log: native.log, cos: native.cos, pow: native.pow };
