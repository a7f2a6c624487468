import { bytesIn, kindOf } from "./arrays.js";
import { notPromise, rangeError, shown, typeError, wantFunction, type CodedError } from "./errors.js";
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
  /**
   * Memory for a tensor. It is given back when `owner`, an object, is garbage; without an owner, by `release` alone.
   * @throws RangeError `MEMORY` if there is no more, TypeError `DEVICE` once the device is closed
   */
  allocate(bytes: number, owner?: object): number;
  /** Gives it back. */
  release(address: number): void;
  /**
   * Copies `data` there, in the order of the queue; it may change once this returns.
   * @throws RangeError `ARGUMENT` where it does not fit into memory that was allocated
   */
  write(address: number, data: ArrayBufferView): void;
  /** Takes an allocation's numbers as good, where an op that failed on them is known to have left them alone. */
  trust(address: number): void;
  /**
   * Copies bytes from there, after everything queued before. `dtype` is that of the numbers.
   *
   * Rejects with the error of the op that spoilt the numbers there: an op that failed, or one that they come from.
   * It rejects every time, until all numbers of the allocation are written anew. Reads of other numbers succeed.
   * An error that no read told is that of `close`.
   *
   * - cpu: exact.
   * - cuda: of a bad id or offset, the GPU tells the op and not the call. The results of all calls of this op since
   *   the last read count as spoilt.
   * - webgpu: exact. Of bad ids and offsets between two reads, the first error alone tells the number.
   *
   * @throws RangeError `ARGUMENT` where there are not so many bytes
   */
  read(address: number, bytes: number, dtype?: Dtype): Promise<ArrayBuffer>;
  /** Queues an op of the list, its arguments in the list's order. @throws RangeError `ARGUMENT` for a tensor that reaches beyond its memory */
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
  allocate(bytes: number, owner?: object): number {
    const { recording } = this;
    const again = recording?.free.get(bytes)?.pop();
    if (again !== undefined) {
      this.native.own(again, owner);
      return again;
    }
    const address = coded(() => this.open.allocate(bytes, owner));
    recording?.sizes.set(address, bytes);
    return address;
  }
  release(address: number): void {
    const bytes = this.recording?.sizes.get(address);
    if (bytes === undefined) return void coded(() => this.native.release(address));
    const { free } = this.recording!;
    if (!this.closing) this.native.own(address); // the recording's, whoever had it
    free.set(bytes, [...(free.get(bytes) ?? []), address]);
  }
  write(address: number, data: ArrayBufferView): void {
    if (this.recording)
      throw typeError(
        "RECORD",
        "numbers are written while calls are recorded: write them to a tensor before, which the calls read",
      );
    const bytes = bytesIn(data);
    if (!bytes) throw typeError("ARGUMENT", `write: data is ${kindOf(data)}, wanted a typed array or a DataView`);
    coded(() => this.open.write(address, bytes));
  }
  trust(address: number): void {
    coded(() => this.open.trust(address));
  }
  async read(address: number, bytes: number): Promise<ArrayBuffer> {
    return told(() => this.open.read(address, bytes));
  }
  call(op: OpSpec, args: readonly (Placed | number | undefined)[]): void {
    if (!this.has(op?.name)) throw typeError("OP", `${op?.name}: the device ${this.kind} does not have this op`);
    try {
      const numbers = this.fill(op, args);
      this.recording?.frames.push(...this.frame.subarray(0, numbers));
      this.open.call(this.frame, numbers);
    } catch (error) {
      throw inOurs(error, op.name);
    }
  }
  /** Puts a call into the frame, for the addon to check. @returns how many numbers it has */
  private fill(op: OpSpec, args: readonly (Placed | number | undefined)[]): number {
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
        const { shape } = arg;
        frame[at + 2] = LAYOUTS[arg.layout];
        frame[at + 3] = shape.length;
        for (let d = 0; d < shape.length && d < 4; d++) frame[at + 4 + d] = shape[d];
        frame[at + 8] = arg.stride;
      }
      at += 9;
    }
    return at;
  }
  record<T>(f: () => T): Recorded<T> {
    wantFunction("f", f);
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
    let calls: object | undefined = coded(() => this.open.record(Float64Array.from(recording.frames)));
    for (const address of [...recording.free.values()].flat()) this.native.own(address, calls);
    return {
      result,
      run: () => {
        if (!calls) throw typeError("DISPOSED", "recorded calls were run after they were disposed");
        const recorded = calls;
        coded(() => this.open.run(recorded));
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
      await told(() => this.native.wait());
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

/** An error of the addon as one of ours, with the names that JavaScript has. One without a code came of an argument of a wrong kind. */
function inOurs(error: unknown, what = "device"): CodedError {
  const { name, code, message } = error as CodedError;
  if (typeof code !== "string") return typeError("ARGUMENT", `${what}: ${message}`);
  return (name === "RangeError" ? rangeError : typeError)(code, inCamel(message));
}
function coded<T>(f: () => T): T {
  try {
    return f();
  } catch (error) {
    throw inOurs(error);
  }
}
async function told<T>(f: () => Promise<T>): Promise<T> {
  try {
    return await f();
  } catch (error) {
    throw inOurs(error);
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
    throw inOurs(error);
  }
}

function openCuda(ordinal: number): Device {
  if (!Number.isInteger(ordinal) || ordinal < 0)
    throw rangeError("DEVICE", `ordinal is ${shown(ordinal)}, wanted a whole number from 0`);
  try {
    return new AddonDevice("cuda", "cuda", ordinal);
  } catch (error) {
    const { code, message } = error as CodedError;
    throw rangeError(code === "MEMORY" ? code : "DEVICE", `cuda: ${message}`);
  }
}

/**
 * Opens a device: `cpu` (C++ kernels on own threads), `cuda` (an NVIDIA GPU), `webgpu` (WGSL kernels on Dawn's adapter); the last two
 * lack some ops, see `has`. Without a kind: `RLHF_DEVICE`, else the best that has every op.
 * @throws RangeError `DEVICE` if this machine does not have it, `THREADS`, `ISA`
 */
export async function device(kind?: DeviceKind, options: DeviceOptions = {}): Promise<Device> {
  if (typeof options !== "object" || options === null)
    throw typeError("ARGUMENT", `options are ${shown(options)}, wanted an object`);
  const wanted = kind ?? (process.env.RLHF_DEVICE as DeviceKind | undefined) ?? "cpu";
  if (wanted === "webgpu") {
    const { openWebGpu } = await import("./webgpu/open.js");
    return added(await openWebGpu({ ...options, closed: (closed) => opened.delete(closed) }));
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
