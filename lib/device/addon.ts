import { bytesIn, kindOf } from "./arrays.js";
import type { Device, Placed, Recorded } from "./device.js";
import { notPromise, rangeError, typeError, wantFunction, type CodedError } from "./errors.js";
import { native, type NativeDevice } from "./native.js";
import { inCamel, specs, type Argument, type Dtype, type OpSpec } from "./ops.js";

/**
 * What is being recorded: the calls, and the memory that is theirs, by its size where it is free.
 */
interface Recording {
  frames: number[];
  sizes: Map<number, number>;
  free: Map<number, number[]>;
}

const DTYPES = { f32: 0, f64: 1, i32: 2, bf16: 3, f16: 4 } as const; // no op of the addon takes the last
const LAYOUTS = { rows: 0, panels: 1, "panels-transposed": 2 } as const;

/** A stream of the addon: a CPU's or a GPU's. */
export class AddonDevice implements Device {
  readonly isa: string;
  readonly threads: number;
  private readonly frame = new Float64Array(1 + 64 * 9);
  private readonly native: NativeDevice;
  private recording: Recording | undefined;
  private closing: Promise<void> | undefined;

  /**
   * @param number  threads (cpu) or ordinal (cuda)
   * @param options `planned`: calls are not run; `closed`: called when it is closed
   */
  constructor(
    readonly kind: "cpu" | "cuda",
    isa: string | undefined,
    number: number,
    private readonly options: { planned?: boolean; closed?(device: Device): void } = {},
  ) {
    this.native = new native.Device(isa, number, options.planned ?? false);
    this.isa = this.native.isa;
    this.threads = this.native.threads;
  }

  has(op: string, dtype: Dtype = "f32"): boolean {
    return specs.get(op)?.dtypes[this.kind].includes(dtype) ?? false;
  }
  halfDtype(_op: string, { bf16Alone }: Argument): Dtype | undefined {
    return this.kind === "cpu" && bf16Alone ? "bf16" : undefined;
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
    return codedAsync(() => this.open.read(address, bytes));
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
    this.options.closed?.(this);
    try {
      await codedAsync(() => this.native.wait());
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

/**
 * An error of the addon as one of ours, with the names that JavaScript has. One without a code came
 * of an argument of a wrong kind.
 */
export function inOurs(error: unknown, what = "device"): CodedError {
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
async function codedAsync<T>(f: () => Promise<T>): Promise<T> {
  try {
    return await f();
  } catch (error) {
    throw inOurs(error);
  }
}
