import type { Device, Placed, Recorded } from "../device.js";
import { arrayClass, bytesIn, kindOf } from "../arrays.js";
import { rangeError, typeError, type CodedError } from "../errors.js";
import type { Argument, Dtype, OpSpec } from "../ops.js";
import { bytesOf, Call } from "./call.js";
import { toPairs, fromPairs } from "./double.js";
import { Faults, SLOTS } from "./faults.js";
import { Ledger, type Entry } from "./ledger.js";
import { Memory, type Allocation, type Region } from "./memory.js";
import { dtypes, f16Arguments, ops } from "./ops/index.js";
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
 * The ops over a GPUDevice, whoever opened it. f64 tensors are pairs of f32, the sum of which is
 * the number to 48 bits, within the range of f32; writing and reading convert from and to
 * Float64Array.
 */
export class WebGpuDevice implements Device {
  readonly kind = "webgpu";
  readonly isa: string;
  readonly threads = 1;
  private readonly memoryOf: Memory;
  private readonly queue: Queue;
  private readonly faults: Faults;
  private readonly maxBinding: number;
  private readonly called = new Map<string, OpSpec>();
  private readonly pending = new Set<Promise<void>>(); // error scopes whose errors are not known yet
  private readonly ledger = new Ledger();
  // reads before, each of which settles what was queued before it
  private settled: Promise<unknown> = Promise.resolve();
  private unread = 0; // calls since the last of them
  private lost: string | undefined;
  private batch: Entry[] = []; // calls that are encoded and not submitted
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
        const { batch } = this;
        this.watch(error, [...new Set(batch.map(({ name }) => name))].join(", "), (failure) => {
          if (batch.length === 0) this.ledger.fail(failure);
          for (const entry of batch) entry.failure ??= failure;
        });
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
  halfDtype(op: string, { name }: Argument): Dtype | undefined {
    return f16Arguments[op] === name ? "f16" : undefined;
  }

  allocate(bytes: number, owner?: object): number {
    this.alive();
    let made: Allocation | undefined;
    return this.scoped(
      "out-of-memory",
      "allocate",
      () => {
        const address = this.memoryOf.allocate(bytes, owner);
        made = this.memoryOf.holder(address, 0);
        return address;
      },
      (failure) => {
        if (made) made.broken = failure;
        this.ledger.fail(failure);
      },
    );
  }
  release(address: number): void {
    this.memoryOf.release(address);
  }
  write(address: number, data: ArrayBufferView): void {
    this.alive();
    const bytes = bytesIn(arrayClass(data) === "Float64Array" ? toPairs(data as Float64Array) : data);
    if (!bytes) throw typeError("ARGUMENT", `write: data is ${kindOf(data)}, wanted a typed array or a DataView`);
    if (address % 4 !== 0 || bytes.length % 4 !== 0)
      throw typeError(
        "ARGUMENT",
        `write: ${bytes.length} bytes from byte ${address % 4} of a word, wanted whole words of 4`,
      );
    const allocation = this.memoryOf.holder(address, bytes.length);
    this.queue.write(this.memoryOf.at(address, bytes.length), bytes);
    this.ledger.add({
      number: 0,
      name: "write",
      reads: [],
      results: [{ allocation, fresh: bytes.length >= allocation.asked }],
    });
  }
  trust(address: number): void {
    this.alive();
    const allocation = this.memoryOf.holder(address, 0);
    void this.settle().then(
      () => this.ledger.trust(allocation),
      () => undefined,
    );
  }

  async read(address: number, bytes: number, dtype?: Dtype): Promise<ArrayBuffer> {
    this.alive();
    const within = address % 4; // of a row of f16
    const length = 4 * Math.ceil((within + bytes) / 4);
    const allocation = bytes > 0 ? this.memoryOf.holder(address - within, length) : undefined;
    const result = await this.settle(allocation ? [this.memoryOf.at(address - within, length)] : []);
    const failure = this.ledger.tell(allocation);
    if (failure) throw failure;
    const data = result.slice(within, within + bytes);
    return dtype === "f64" ? (fromPairs(data).buffer as ArrayBuffer) : data;
  }

  /** Reads the regions once all that is queued before is done, and finds which of that failed. */
  private settle(regions: Region[] = []): Promise<ArrayBuffer> {
    const entries = this.ledger.nextEntries();
    const reading = this.queue.read([this.faults.region, ...regions]);
    this.faults.clear(); // behind what is read
    this.unread = 0;
    const settled = this.follow(entries, reading, this.settled);
    this.settled = settled.catch(() => undefined);
    return settled;
  }
  private async follow(
    entries: readonly Entry[],
    reading: Promise<ArrayBuffer>,
    before: Promise<unknown>,
  ): Promise<ArrayBuffer> {
    const length = this.faults.region.bytes;
    let refused: Error | undefined;
    // the mapping fails where the submission did, or with the device
    const result = await reading.catch((error: Error) => void (refused = error));
    await Promise.all([...this.pending, before]);
    this.there();
    if (result) this.faults.blame(new Uint32Array(result, 0, length / 4), entries, this.called);
    this.ledger.settle(entries);
    if (!result) throw rangeError("DEVICE", `webgpu: reading failed: ${refused?.message}`);
    return result.slice(length);
  }

  call(op: OpSpec, args: readonly (Placed | number | undefined)[]): void {
    this.alive();
    const run = ops[op.name];
    if (!run) throw typeError("OP", `${op.name}: the device webgpu does not have this op`);
    if (++this.unread >= SLOTS) void this.settle().catch(() => undefined); // before two calls would share a slot
    this.called.set(op.name, op);
    const entry = this.ledger.add({ number: this.faults.next(), name: op.name, ...this.touched(op, args) });
    this.batch.push(entry);
    const call = new Call(this.queue, this.memoryOf, op, this.maxBinding, this.faults.region, entry.number, args);
    try {
      this.scoped(
        "validation",
        op.name,
        () => {
          const checked = this.faults.check(call);
          run(call);
          if (checked) this.faults.poison(call);
        },
        (failure) => (entry.failure ??= failure),
      );
    } catch (error) {
      entry.results = []; // who called knows
      throw error;
    } finally {
      call.end();
    }
  }

  /** The memory that a call reads and writes. */
  private touched(op: OpSpec, args: readonly (Placed | number | undefined)[]): Pick<Entry, "reads" | "results"> {
    const reads: Allocation[] = [];
    const results: { allocation: Allocation; fresh: boolean }[] = [];
    op.arguments.forEach(({ kind }, i) => {
      const arg = args[i];
      if (typeof arg !== "object") return;
      const bytes = bytesOf(arg);
      if (bytes === 0) return;
      const allocation = this.memoryOf.holder(arg.address, bytes);
      const written = kind === "out" || kind === "opt_out";
      if (!written) reads.push(allocation);
      if (written || kind === "add" || kind === "opt_add")
        results.push({ allocation, fresh: written && bytes + 3 >= allocation.asked });
    });
    return { reads, results };
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
      if (this.lost) return;
      await this.settle();
      if (this.ledger.first) throw this.ledger.first;
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

  /** Runs `f`; what WebGPU finds wrong with it is told later, under the name of the op. */
  private scoped<T>(filter: GPUErrorFilter, what: string, f: () => T, failed: (failure: CodedError) => void): T {
    this.gpu.pushErrorScope(filter);
    try {
      return f();
    } finally {
      this.watch(this.gpu.popErrorScope(), what, failed);
    }
  }

  private watch(scope: Promise<GPUError | null>, what: string, failed: (failure: CodedError) => void): void {
    const watched = scope
      .then((error) => {
        if (!error) return;
        const memory = error instanceof GPUOutOfMemoryError;
        failed(rangeError(memory ? "MEMORY" : "DEVICE", `${what}: ${error.message}`));
      })
      .catch(() => undefined) // the device is lost: it says so itself
      .finally(() => this.pending.delete(watched));
    this.pending.add(watched);
  }
}
