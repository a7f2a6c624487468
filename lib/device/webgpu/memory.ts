import { rangeError } from "../errors.js";

/** Bytes of a GPUBuffer. */
export interface Region {
  buffer: GPUBuffer;
  offset: number;
  bytes: number;
}

interface Allocation {
  buffer: GPUBuffer;
  id: number;
  capacity: number;
}

const SPAN = 2 ** 34; // virtual bytes per buffer: address = id * SPAN + offset, so that a view's address leads to its buffer

/** Four sizes per doubling: a quarter at most is lost. */
function sizeClass(bytes: number): number {
  if (bytes <= 256) return 256;
  const step = 2 ** (Math.floor(Math.log2(bytes - 1)) - 2);
  return Math.ceil(bytes / step) * step;
}

/**
 * A caching allocator of storage buffers. A buffer that is released goes to the next who asks for its size: the queue is in
 * order, so what was queued on it runs first.
 */
export class Memory {
  private readonly live = new Map<number, Allocation>();
  private readonly free = new Map<number, Allocation[]>();
  private readonly ids: number[] = [];
  private next = 1;
  current = 0;
  peak = 0;
  held = 0;

  constructor(private readonly gpu: GPUDevice) {}

  allocate(bytes: number): number {
    const capacity = sizeClass(bytes);
    if (capacity > this.gpu.limits.maxBufferSize)
      throw rangeError("MEMORY", `a tensor of ${bytes} bytes was asked for, this adapter's buffers have at most ${this.gpu.limits.maxBufferSize}`);
    const allocation = this.free.get(capacity)?.pop() ?? this.create(capacity);
    this.live.set(allocation.id, allocation);
    this.current += capacity;
    this.peak = Math.max(this.peak, this.current);
    return allocation.id * SPAN;
  }

  release(address: number): void {
    const allocation = this.live.get(Math.floor(address / SPAN));
    if (!allocation) return;
    this.live.delete(allocation.id);
    this.current -= allocation.capacity;
    const free = this.free.get(allocation.capacity);
    if (free) free.push(allocation);
    else this.free.set(allocation.capacity, [allocation]);
  }

  /** Where an address lies. */
  at(address: number, bytes: number): Region {
    const allocation = this.live.get(Math.floor(address / SPAN));
    if (!allocation) throw rangeError("ARGUMENT", `there is no memory at the address ${address}`);
    return { buffer: allocation.buffer, offset: address % SPAN, bytes };
  }

  /** Gives the cache back. What is queued must have been submitted. */
  trim(): void {
    for (const allocation of [...this.free.values()].flat()) this.destroy(allocation);
    this.free.clear();
  }

  close(): void {
    this.trim();
    for (const allocation of this.live.values()) this.destroy(allocation);
    this.live.clear();
    this.current = 0;
  }

  private create(capacity: number): Allocation {
    const buffer = this.gpu.createBuffer({ size: capacity, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });
    this.held += capacity;
    return { buffer, id: this.ids.pop() ?? this.next++, capacity };
  }

  private destroy({ buffer, id, capacity }: Allocation): void {
    buffer.destroy();
    this.ids.push(id);
    this.held -= capacity;
  }
}
