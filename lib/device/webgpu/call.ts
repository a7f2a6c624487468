import type { Placed } from "../device.js";
import { typeError } from "../errors.js";
import { BYTES, type OpSpec } from "../ops.js";
import type { Memory, Region } from "./memory.js";
import { read, write, type Binding, type Queue } from "./queue.js";

export function bytesOf({ shape, stride, dtype }: Placed): number {
  if (shape.length === 0) return BYTES[dtype];
  const row = shape.slice(1).reduce((a, b) => a * b, 1);
  return shape[0] === 0 ? 0 : ((shape[0] - 1) * stride + row) * BYTES[dtype];
}

/** One call of an op: its arguments by name, and memory for as long as it runs. */
export class Call {
  private readonly args: Record<string, Placed | number | undefined> = {};
  private readonly borrowed: number[] = [];

  constructor(
    readonly queue: Queue,
    private readonly memory: Memory,
    readonly op: OpSpec,
    /** Bytes that a binding may have. */
    readonly maxBinding: number,
    /** The words where a kernel latches an error (faults.ts). */
    readonly faults: Region,
    /** The number of the call, by which its faults are known. */
    readonly checked: number,
    values: readonly (Placed | number | undefined)[],
  ) {
    op.arguments.forEach(({ name }, i) => (this.args[name] = values[i]));
  }

  has(name: string): boolean {
    return this.args[name] !== undefined;
  }
  tensor(name: string): Placed {
    return this.args[name] as Placed;
  }
  number(name: string): number {
    return this.args[name] as number;
  }
  shape(name: string): readonly number[] {
    return this.tensor(name).shape;
  }
  size(name: string): number {
    return this.shape(name).reduce((a, b) => a * b, 1);
  }
  /** The name that a choice has. */
  choice(name: string): string {
    return this.op.arguments.find((a) => a.name === name)!.choices[this.number(name)];
  }

  region(name: string): Region {
    const tensor = this.tensor(name);
    return this.memory.at(tensor.address, bytesOf(tensor));
  }
  /** What a kernel reads, if it is given. */
  in(name: string): Binding | undefined {
    return this.has(name) ? read(this.bound(name)) : undefined;
  }
  /** What a kernel writes or continues, if it is given. */
  out(name: string): Binding | undefined {
    return this.has(name) ? write(this.bound(name)) : undefined;
  }
  /** Rows [begin, end) of a tensor. */
  rows(name: string, begin: number, end: number): Region {
    const { stride, dtype } = this.tensor(name);
    const { buffer, offset, bytes } = this.region(name);
    const row = stride * BYTES[dtype];
    return { buffer, offset: offset + begin * row, bytes: Math.min(bytes - begin * row, (end - begin) * row) };
  }

  /** Memory until the end of the call. */
  scratch(bytes: number): Region {
    const address = this.memory.allocate(Math.max(bytes, 16));
    this.borrowed.push(address);
    return this.memory.at(address, Math.max(bytes, 16));
  }
  end(): void {
    for (const address of this.borrowed) this.memory.release(address);
  }

  /** Refuses what the op list does not say. */
  require(holds: boolean, what: string): void {
    if (!holds) throw typeError("ARGUMENT", `${this.op.name}: ${what}`);
  }

  private bound(name: string): Region {
    const region = this.region(name);
    this.require(
      region.bytes <= this.maxBinding,
      `${name} has ${region.bytes} bytes, and a binding of this adapter at most ${this.maxBinding}`,
    );
    return region;
  }
}

/** Queues the kernels of one call. */
export type Run = (call: Call) => void;

/**
 * Workgroups of 256 threads for n elements, as a grid whose dimensions WebGPU allows: kernels count
 * x + y * width.
 */
export function grid(n: number, each = 256): [number, number] {
  const groups = Math.ceil(n / each);
  const width = Math.min(groups, 32768);
  return [width, width === 0 ? 0 : Math.ceil(groups / width)];
}
