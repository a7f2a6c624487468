import type { Argument, Dtype, OpSpec } from "./ops.js";

/**
 * C++ kernels on the CPU's threads, CUDA on an NVIDIA GPU, or WGSL on the adapter that Dawn finds.
 */
export type DeviceKind = "cpu" | "cuda" | "webgpu";

/** Where an argument of a call lies: what the device needs to know of a tensor. */
export interface Placed {
  /** The number by which the device finds the memory. */
  address: number;
  /** The type of each number. */
  dtype: Dtype;
  /** Row-major, or the panels that a packed weight is read in. */
  layout: "rows" | "panels" | "panels-transposed";
  /** The sizes of the dimensions; a packed weight has those of its matrix. */
  shape: readonly number[];
  /** Numbers from one row of dimension 0 to the next. */
  stride: number;
}

/**
 * A device is an in-order queue with memory of its own: calls are queued and return at once, only
 * `read` waits. Memory may be released while calls on it are queued.
 */
export interface Device {
  /** What computes: the CPU, an NVIDIA GPU, or the adapter of WebGPU. */
  readonly kind: DeviceKind;
  /** Instruction set (cpu), GPU (cuda) or adapter. */
  readonly isa: string;
  /** Compute threads (cpu). */
  readonly threads: number;
  /**
   * Whether the device has this op of the list at a dtype, f32 by default. Calling one that it
   * lacks throws TypeError `OP`.
   */
  has(op: string, dtype?: Dtype): boolean;
  /**
   * The 16-bit dtype that an argument of the op may have by itself; undefined where all must have
   * it together.
   */
  halfDtype(op: string, argument: Argument): Dtype | undefined;
  /**
   * Memory for a tensor. It is given back when `owner`, an object, is garbage; without an owner, by
   * `release` alone.
   * @throws RangeError `MEMORY` if there is no more, TypeError `DEVICE` once the device is closed
   */
  allocate(bytes: number, owner?: object): number;
  /** Gives memory back. */
  release(address: number): void;
  /**
   * Copies `data` there, in the order of the queue; it may change once this returns.
   * @throws RangeError `ARGUMENT` where it does not fit into memory that was allocated
   */
  write(address: number, data: ArrayBufferView): void;
  /**
   * Takes an allocation's numbers as good, where an op that failed on them is known to have left
   * them alone.
   */
  trust(address: number): void;
  /**
   * Copies bytes from there, after everything queued before. `dtype` is that of the numbers.
   *
   * Rejects with the error of the op that spoilt the numbers there: an op that failed, or one that
   * they come from. It rejects every time, until all numbers of the allocation are written anew.
   * Reads of other numbers succeed. An error that no read told is that of `close`.
   *
   * - cpu: exact.
   * - cuda: of a bad id or offset, the GPU tells the op and not the call. The results of all calls
   *   of this op since the last read count as spoilt.
   * - webgpu: exact. Of bad ids and offsets between two reads, the first error alone tells the
   *   number.
   *
   * @throws RangeError `ARGUMENT` where there are not so many bytes
   */
  read(address: number, bytes: number, dtype?: Dtype): Promise<ArrayBuffer>;
  /**
   * Queues an op of the list, its arguments in the list's order.
   * @throws RangeError `ARGUMENT` for a tensor that reaches beyond its memory
   */
  call(op: OpSpec, args: readonly (Placed | number | undefined)[]): void;
  /**
   * Runs `f` and keeps its calls, which may then run again: on the same memory, so what they read
   * and `f` did not make must outlive them, and numbers that change between runs are written to it
   * before. @throws TypeError `RECORD` if `f` writes or records, `ASYNC` if it is asynchronous
   */
  record<T>(f: () => T): Recorded<T>;
  /** The memory and the time that the device has taken so far. */
  memory(): DeviceMemory;
  /** Starts the peak anew, without the workspace of what was queued before. */
  resetPeak(): void;
  /**
   * Waits for what is queued, then frees everything; from the call on, other calls throw TypeError
   * `DEVICE`. Called again, it returns the same promise, which rejects with the error of a queued
   * op that no read has told.
   */
  close(): Promise<void>;
  /** `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** What a device has taken, in bytes, and its time. */
export interface DeviceMemory {
  /** Bytes of the tensors in use. */
  current: number;
  /** The most bytes so far, the workspace included. `resetPeak` starts both anew. */
  peak: number;
  /** Bytes taken from the system: also those that were freed and are kept for the next tensors. */
  held: number;
  /** Bytes that ops work in. */
  workspace: number;
  /** Seconds spent in ops. */
  busySeconds: number;
}

/**
 * Calls that were recorded, and what `f` returned: tensors that each run writes anew. Disposed, it
 * gives back the memory between them.
 */
export interface Recorded<T> extends Disposable {
  /** What `f` returned. */
  readonly result: T;
  /** Queues the calls once more. @throws TypeError `DISPOSED` */
  run(): void;
}
