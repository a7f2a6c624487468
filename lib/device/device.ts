import { notPromise, rangeError, typeError } from "./errors.js";
import { native, type NativeDevice } from "./native.js";
import { inCamel, specs, type Argument, type Dtype, type OpSpec } from "./ops.js";

/** C++ kernels on the CPU's threads, CUDA on an NVIDIA GPU, or WGSL on the adapter that Dawn finds. */
export type DeviceKind = "cpu" | "cuda" | "webgpu";

/** Where an argument of a call lies: what the device needs to know of a tensor. */
export interface Placed {
  /** Where the device has it. */
  address: number;
  /** Of each number. */
  dtype: Dtype;
  /** Row-major, or the panels that a packed weight is read in. */
  layout: "rows" | "panels" | "panels-transposed";
  /** That of the matrix, also where it is packed. */
  shape: readonly number[];
  /** Numbers from one row of dimension 0 to the next. */
  stride: number;
}

/**
 * A device is an in-order queue with memory of its own: calls are queued and return at once, only `read` waits.
 * Memory may be released while calls on it are queued.
 */
export interface Device {
  /** Where it computes. */
  readonly kind: DeviceKind;
  /** Instruction set (cpu), GPU (cuda) or adapter. */
  readonly isa: string;
  /** Compute threads (cpu). */
  readonly threads: number;
  /** Whether it has this op of the list, at a 16-bit dtype too; calling one that it lacks throws TypeError `OP`. */
  has(op: string, dtype?: Dtype): boolean;
  /** The 16-bit dtype that an argument of the op may have whatever the others are; none where all must go together. */
  half(op: string, argument: Argument): Dtype | undefined;
  /** Memory for a tensor. @throws RangeError `MEMORY` if there is no more, TypeError `DEVICE` once it is closed */
  allocate(bytes: number): number;
  /** Gives it back. */
  release(address: number): void;
  /** Copies `data` there, in the order of the queue; it may change once this returns. */
  write(address: number, data: ArrayBufferView): void;
  /** After everything queued before; rejects with the first error of a queued op, which names the op. `dtype` is that of what lies there. */
  read(address: number, bytes: number, dtype?: Dtype): Promise<ArrayBuffer>;
  /** Queues an op of the list, its arguments in the list's order. */
  call(op: OpSpec, args: readonly (Placed | number | undefined)[]): void;
  /**
   * Runs `f` and keeps its calls, which may then run again: on the same memory, so what they read and `f` did not make must outlive
   * them, and numbers that change between runs are written to it before. @throws TypeError `RECORD` if `f` writes or records, `ASYNC` if
   * it is asynchronous
   */
  record<T>(f: () => T): Recorded<T>;
  /** What it has taken so far. */
  memory(): DeviceMemory;
  /** Starts the peak anew, without the workspace of what was queued before. */
  resetPeak(): void;
  /**
   * Waits for what is queued, then frees everything; from the call on, other calls throw TypeError `DEVICE`. Called again, it
   * returns the same promise, which rejects with the error of a queued op that no read has told.
   */
  close(): Promise<void>;
  /** `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** What a device has taken, in bytes, and its time. */
export interface DeviceMemory {
  /** Of the tensors in use. */
  current: number;
  /** The highest so far, with the workspace. `resetPeak` starts both anew. */
  peak: number;
  /** With what was freed and is kept for the next tensors. */
  held: number;
  /** What ops work in. */
  workspace: number;
  /** Seconds spent in ops. */
  busySeconds: number;
}

/** Calls that were recorded, and what `f` returned: tensors that each run writes anew. Disposed, it gives back the memory between them. */
export interface Recorded<T> extends Disposable {
  /** What `f` returned. */
  readonly result: T;
  /** Queues the calls once more. @throws TypeError `DISPOSED` */
  run(): void;
}

/** What is being recorded: the calls, and the memory that is theirs, by its size where it is free. */
interface Recording {
  frames: number[];
  sizes: Map<number, number>;
  free: Map<number, number[]>;
}

const DTYPES = { f32: 0, f64: 1, i32: 2, bf16: 3, f16: 4 } as const; // no op of the addon takes the last
const LAYOUTS = { rows: 0, panels: 1, "panels-transposed": 2 } as const;
const CODES: Record<number, string> = { 1: "ARGUMENT", 2: "ID", 3: "OFFSETS", 4: "MEMORY", 5: "DEVICE" };

const opened = new Set<Device>(); // and not closed, in this order

/** A stream of the addon: a CPU's or a GPU's. */
export class AddonDevice implements Device {
  readonly isa: string;
  readonly threads: number;
  private readonly frame = new Float64Array(1 + 64 * 9);
  private readonly native: NativeDevice;
  private recording: Recording | undefined;
  private closing: Promise<void> | undefined;

  /** @param number threads (cpu) or ordinal (cuda) */
  constructor(
    readonly kind: "cpu" | "cuda",
    isa: string | undefined,
    number: number,
    planned = false,
  ) {
    this.native = new native.Device(isa, number, planned);
    this.isa = this.native.isa;
    this.threads = this.native.threads;
  }

  has(op: string, dtype: Dtype = "f32"): boolean {
    return specs.get(op)?.dtypes[this.kind].includes(dtype) ?? false;
  }
  half(_op: string, { either }: Argument): Dtype | undefined {
    return this.kind === "cpu" && either ? "bf16" : undefined;
  }
  allocate(bytes: number): number {
    const { recording } = this;
    const again = recording?.free.get(bytes)?.pop();
    if (again !== undefined) return again;
    const address = withinMemory(() => this.open.allocate(bytes));
    recording?.sizes.set(address, bytes);
    return address;
  }
  release(address: number): void {
    const bytes = this.recording?.sizes.get(address);
    if (bytes === undefined) return void this.native.release(address);
    const { free } = this.recording!;
    free.set(bytes, [...(free.get(bytes) ?? []), address]);
  }
  write(address: number, data: ArrayBufferView): void {
    if (this.recording) throw typeError("RECORD", "numbers are written while calls are recorded: write them to a tensor before, which the calls read");
    withinMemory(() => this.open.write(address, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
  }
  async read(address: number, bytes: number): Promise<ArrayBuffer> {
    return this.filled(this.open, address, bytes);
  }
  private async filled(on: NativeDevice, address: number, bytes: number): Promise<ArrayBuffer> {
    const to = withinMemory(() => new ArrayBuffer(bytes));
    try {
      return await on.read(address, to);
    } catch (failure) {
      const { message, status } = failure as { message: string; status?: number };
      if (status === undefined) throw failure;
      throw (status >= 2 && status <= 4 ? rangeError : typeError)(CODES[status], inCamel(message));
    }
  }
  call(op: OpSpec, args: readonly (Placed | number | undefined)[]): void {
    if (!this.has(op.name)) throw typeError("OP", `${op.name}: the device ${this.kind} does not have this op`);
    const { frame } = this;
    frame[0] = op.index;
    let at = 1;
    for (let i = 0; i < op.arguments.length; i++) {
      const arg = args[i];
      if (typeof arg === "number") {
        frame[at++] = arg;
        continue;
      }
      frame[at] = arg ? arg.address : 0;
      frame[at + 1] = arg ? DTYPES[arg.dtype] : -1;
      if (arg) {
        frame[at + 2] = LAYOUTS[arg.layout];
        frame[at + 3] = arg.shape.length;
        for (let d = 0; d < arg.shape.length; d++) frame[at + 4 + d] = arg.shape[d];
        frame[at + 8] = arg.stride;
      }
      at += 9;
    }
    this.recording?.frames.push(...frame.subarray(0, at));
    this.open.call(frame);
  }
  record<T>(f: () => T): Recorded<T> {
    if (this.recording) throw typeError("RECORD", "calls are being recorded already, and recordings do not nest");
    const recording: Recording = { frames: [], sizes: new Map(), free: new Map() };
    const dispose = () => {
      for (const address of [...recording.free.values()].flat()) this.native.release(address);
      recording.free.clear();
    };
    this.recording = recording;
    let result: T;
    try {
      result = f();
      notPromise("record", result);
    } catch (error) {
      dispose();
      throw error;
    } finally {
      this.recording = undefined;
    }
    let calls: object | undefined = this.native.record(Float64Array.from(recording.frames));
    return {
      result,
      run: () => {
        if (!calls) throw typeError("DISPOSED", "recorded calls were run after they were disposed");
        this.open.run(calls);
      },
      [Symbol.dispose]() {
        calls = undefined;
        dispose();
      },
    };
  }
  memory() {
    return this.native.memory();
  }
  resetPeak(): void {
    this.native.trim();
  }
  close(): Promise<void> {
    return (this.closing ??= this.finish());
  }
  private async finish(): Promise<void> {
    opened.delete(this);
    try {
      await this.filled(this.native, 0, 0);
    } finally {
      this.native.close();
    }
  }
  private get open(): NativeDevice {
    if (this.closing) throw typeError("DEVICE", "the device is closed");
    return this.native;
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** What `f` asks memory for, or RangeError `MEMORY` in place of JavaScript's own and the addon's. */
function withinMemory<T>(f: () => T): T {
  try {
    return f();
  } catch (error) {
    const { name, message } = error as Error;
    throw name === "RangeError" ? rangeError("MEMORY", message) : error;
  }
}

/** How a device is opened. */
export interface DeviceOptions {
  /** Compute threads; by default `RLHF_NUM_THREADS`, else one per core. */
  threads?: number;
  /** `scalar`, `avx2`, `avx512` or `neon`; by default `RLHF_ISA`, else the best that the machine has. */
  isa?: string;
  /** webgpu: the adapter's features that kernels use where it has them (`subgroups`, `timestamp-query`, `shader-f16`); by default all, `[]` for none. */
  features?: readonly string[];
  /** webgpu: bytes that a storage binding may have, if less than the adapter allows. */
  maxBinding?: number;
  /** cuda: which GPU; by default the first. */
  ordinal?: number;
}

/** The device of ops that are given no tensor: of those that are open, the first that was opened. */
export function defaultDevice(): Device {
  const [first] = opened;
  if (!first) throw typeError("DEVICE", "no device is open: call `await device()` first, or pass tensors");
  return first;
}

function openCpu(isa: string | undefined, threads: number): Device {
  try {
    return new AddonDevice("cpu", isa, threads);
  } catch (error) {
    throw rangeError("THREADS", (error as Error).message);
  }
}

function openCuda(ordinal: number): Device {
  if (!Number.isInteger(ordinal) || ordinal < 0) throw rangeError("DEVICE", `ordinal is ${ordinal}, wanted a whole number from 0`);
  try {
    return new AddonDevice("cuda", "cuda", ordinal);
  } catch (error) {
    throw rangeError("DEVICE", `cuda: ${(error as Error).message}`);
  }
}

/**
 * Opens a device: `cpu` (C++ kernels on own threads), `cuda` (an NVIDIA GPU), `webgpu` (WGSL kernels on Dawn's adapter); the last two
 * lack some ops, see `has`. Without a kind: `RLHF_DEVICE`, else the best that has every op.
 * @throws RangeError `DEVICE` if this machine does not have it, `THREADS`, `ISA`
 */
export async function device(kind?: DeviceKind, options: DeviceOptions = {}): Promise<Device> {
  const wanted = kind ?? (process.env.RLHF_DEVICE as DeviceKind | undefined) ?? "cpu";
  if (wanted === "webgpu") {
    const { openWebGpu } = await import("./webgpu/open.js");
    return added(await openWebGpu({ ...options, closed: (closed) => opened.delete(closed) }));
  }
  if (wanted === "cuda") return added(openCuda(options.ordinal ?? 0));
  if (wanted !== "cpu") throw rangeError("DEVICE", `device is "${String(wanted)}", this build has: cpu, cuda, webgpu`);
  const threads = options.threads ?? Number(process.env.RLHF_NUM_THREADS ?? 0);
  if (!Number.isInteger(threads) || threads < 0 || threads > 1024)
    throw rangeError("THREADS", `threads is ${options.threads ?? process.env.RLHF_NUM_THREADS}, wanted a whole number from 1 to 1024`);
  const isa = options.isa ?? process.env.RLHF_ISA;
  if (isa && !native.isaAvailable.split(" ").includes(isa))
    throw rangeError("ISA", `isa is "${isa}", this machine has: ${native.isaAvailable.replaceAll(" ", ", ")}`);
  return added(openCpu(isa || undefined, threads));
}

function added(device: Device): Device {
  opened.add(device);
  return device;
}
