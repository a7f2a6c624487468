import type { Device, Placed, Recorded } from "../device.js";
import { rangeError, typeError, type CodedError } from "../errors.js";
import type { Argument, Dtype, OpSpec } from "../ops.js";
import { Call } from "./call.js";
import { narrowed, widened } from "./double.js";
import { Faults } from "./faults.js";
import { Memory } from "./memory.js";
import { dtypes, halves, ops } from "./ops/index.js";
import { Queue } from "./queue.js";

export interface WebGpuOptions {
  /** The adapter's name. */
  name: string;
  /** The text of kernels/wgsl/<file>.wgsl. */
  source(file: string): string;
  /** Bytes that a storage binding may have: at most, and by default, what the GPUDevice allows. */
  maxBinding?: number;
  /** Called when it is closed. */
  closed?(device: Device): void;
}

/**
 * The ops over a GPUDevice, whoever opened it. f64 tensors are pairs of f32, the sum of which is the number to 48 bits, within
 * the range of f32; writing and reading convert from and to Float64Array.
 */
export class WebGpuDevice implements Device {
  readonly kind = "webgpu";
  readonly isa: string;
  readonly threads = 1;
  private readonly memoryOf: Memory;
  private readonly queue: Queue;
  private readonly faults: Faults;
  private readonly maxBinding: number;
  private readonly called = new Map<number, OpSpec>();
  private readonly pending = new Set<Promise<void>>(); // error scopes that have not told yet
  private failure: CodedError | undefined; // the first one since the last read
  private lost: string | undefined;
  private batch: string[] = []; // names of the ops that are encoded and not submitted
  private closing: Promise<void> | undefined;

  constructor(
    private readonly gpu: GPUDevice,
    private readonly options: WebGpuOptions,
  ) {
    this.isa = options.name;
    this.maxBinding = Math.min(options.maxBinding ?? Infinity, gpu.limits.maxStorageBufferBindingSize);
    this.memoryOf = new Memory(gpu);
    this.queue = new Queue(
      gpu,
      this.memoryOf,
      (file) => options.source(file),
      (error) => {
        this.watch(error, [...new Set(this.batch)].join(", "));
        this.batch = [];
      },
    );
    this.faults = new Faults(this.queue, this.memoryOf);
    void gpu.lost.then(({ reason, message }) => {
      if (!this.closing) this.lost = message || reason || "for no reason that it gives";
    });
  }

  has(op: string, dtype: Dtype = "f32"): boolean {
    return dtypes(op).includes(dtype);
  }
  half(op: string, { name }: Argument): Dtype | undefined {
    return halves[op] === name ? "f16" : undefined;
  }

  allocate(bytes: number): number {
    this.alive();
    return this.scoped("out-of-memory", "allocate", () => this.memoryOf.allocate(bytes));
  }
  release(address: number): void {
    this.memoryOf.release(address);
  }
  write(address: number, data: ArrayBufferView): void {
    this.alive();
    const view = data instanceof Float64Array || data.constructor.name === "Float64Array" ? narrowed(data as Float64Array) : data;
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    if (address % 4 !== 0 || bytes.length % 4 !== 0)
      throw typeError("ARGUMENT", `write: ${bytes.length} bytes from byte ${address % 4} of a word, wanted whole words of 4`);
    this.queue.write(this.memoryOf.at(address, bytes.length), bytes);
  }

  async read(address: number, bytes: number, dtype?: Dtype): Promise<ArrayBuffer> {
    this.alive();
    return this.told(address, bytes, dtype);
  }
  private async told(address: number, bytes: number, dtype?: Dtype): Promise<ArrayBuffer> {
    const within = address % 4; // of a row of f16
    const regions = [this.faults.region, ...(bytes > 0 ? [this.memoryOf.at(address - within, 4 * Math.ceil((within + bytes) / 4))] : [])];
    const length = this.faults.region.bytes;
    let result: ArrayBuffer | undefined;
    let refused: Error | undefined;
    try {
      result = await this.queue.read(regions);
    } catch (error) {
      refused = error as Error; // the mapping fails where the submission did, or with the device
    }
    await Promise.all(this.pending);
    this.there();
    const failure = this.failure ?? (result && this.faults.taken(new Uint32Array(result, 0, length / 4), this.called));
    this.failure = undefined;
    if (failure ?? !result) throw failure ?? rangeError("DEVICE", `webgpu: reading failed: ${refused?.message}`);
    const data = result.slice(length + within, length + within + bytes);
    return dtype === "f64" ? (widened(data).buffer as ArrayBuffer) : data;
  }

  call(op: OpSpec, args: readonly (Placed | number | undefined)[]): void {
    this.alive();
    const run = ops[op.name];
    if (!run) throw typeError("OP", `${op.name}: the device webgpu does not have this op`);
    this.called.set(op.index, op);
    this.batch.push(op.name);
    const call = new Call(this.queue, this.memoryOf, op, this.maxBinding, this.faults.region, args);
    try {
      this.scoped("validation", op.name, () => {
        const checked = this.faults.check(call);
        run(call);
        if (checked) this.faults.poison(call);
      });
    } finally {
      call.end();
    }
  }

  record<T>(): Recorded<T> {
    throw typeError("OP", "record: the device webgpu does not run calls again, which generation needs");
  }

  memory() {
    const { current, peak, held } = this.memoryOf;
    return { current, peak, held, workspace: 0, busySeconds: this.queue.busySeconds };
  }
  resetPeak(): void {
    this.queue.submit();
    this.memoryOf.trim();
    this.memoryOf.peak = this.memoryOf.current;
  }

  close(): Promise<void> {
    return (this.closing ??= this.finish());
  }
  private async finish(): Promise<void> {
    this.options.closed?.(this);
    try {
      if (!this.lost) await this.told(0, 0);
    } finally {
      this.memoryOf.close();
      this.gpu.destroy();
    }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private alive(): void {
    if (this.closing) throw typeError("DEVICE", "webgpu: the device is closed");
    this.there();
  }
  private there(): void {
    if (this.lost) throw rangeError("LOST", `webgpu: the device was lost: ${this.lost}`);
  }

  /** Runs `f`; what WebGPU finds wrong with it is the next read's error, under the op's name. */
  private scoped<T>(filter: GPUErrorFilter, what: string, f: () => T): T {
    this.gpu.pushErrorScope(filter);
    try {
      return f();
    } finally {
      this.watch(this.gpu.popErrorScope(), what);
    }
  }

  private watch(scope: Promise<GPUError | null>, what: string): void {
    const watched = scope
      .then((error) => {
        if (!error) return;
        const memory = error instanceof GPUOutOfMemoryError;
        this.failure ??= rangeError(memory ? "MEMORY" : "DEVICE", `${what}: ${error.message}`);
      })
      .catch(() => undefined) // the device is lost: it says so itself
      .finally(() => this.pending.delete(watched));
    this.pending.add(watched);
  }
}
