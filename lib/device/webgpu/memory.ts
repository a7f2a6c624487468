import { rangeError, type CodedError } from "../errors.js";

/** Bytes of a GPUBuffer. */
export interface Region {
  buffer: GPUBuffer;
  offset: number;
  bytes: number;
}

/** One use of a buffer. */
export interface Allocation {
  buffer: GPUBuffer;
  id: number;
  capacity: number;
  /** Bytes that were asked for. */
  asked: number;
  /** The error of the call that spoilt the numbers. */
  failure?: CodedError;
  /** The error with which the adapter refused the buffer. */
  broken?: CodedError;
}

// virtual bytes per buffer: address = id * SPAN + offset, so that a view's address leads to its
// buffer
const SPAN = 2 ** 34;

/** Four sizes per doubling: a quarter at most is lost. */
function sizeClass(bytes: number): number {
  if (bytes <= 256) return 256;
  const step = 2 ** (Math.floor(Math.log2(bytes - 1)) - 2);
  return Math.ceil(bytes / step) * step;
}

/**
 * A caching allocator of storage buffers. A buffer that is released goes to the next who asks for
 * its size: the queue is in order, so what was queued on it runs first.
 */
export class Memory {
  private readonly live = new Map<number, Allocation>();
  private readonly free = new Map<number, Allocation[]>();
  private readonly ids: number[] = [];
  private next = 1;
  private readonly lost = new FinalizationRegistry<Allocation>((allocation) => this.give(allocation));
  current = 0;
  peak = 0;
  held = 0;

  constructor(private readonly gpu: GPUDevice) {}

  /** Given back when `owner` is garbage, where there is one. */
  allocate(bytes: number, owner?: object): number {
    if (!(Number.isSafeInteger(bytes) && bytes >= 0))
      throw rangeError("ARGUMENT", `allocate: bytes is ${bytes}, wanted a whole number from 0`);
    const capacity = sizeClass(bytes);
    if (capacity > this.gpu.limits.maxBufferSize)
      throw rangeError(
        "MEMORY",
        `a tensor of ${bytes} bytes was asked for, this adapter's buffers have at most ${this.gpu.limits.maxBufferSize}`,
      );
    const { buffer, id } = this.free.get(capacity)?.pop() ?? this.create(capacity);
    const allocation: Allocation = { buffer, id, capacity, asked: bytes };
    this.live.set(id, allocation);
    if (owner) this.lost.register(owner, allocation, allocation);
    this.current += capacity;
    this.peak = Math.max(this.peak, this.current);
    return allocation.id * SPAN;
  }

  release(address: number): void {
    const allocation = this.live.get(Math.floor(address / SPAN));
    if (allocation) this.give(allocation);
  }
  private give(allocation: Allocation): void {
    if (this.live.get(allocation.id) !== allocation) return;
    this.lost.unregister(allocation);
    this.live.delete(allocation.id);
    this.current -= allocation.capacity;
    const free = this.free.get(allocation.capacity);
    if (allocation.broken) this.destroy(allocation);
    else if (free) free.push(allocation);
    else this.free.set(allocation.capacity, [allocation]);
  }

  /** What an address lies in. @throws RangeError `ARGUMENT` where the bytes are not all there */
  holder(address: number, bytes: number): Allocation {
    const allocation = this.live.get(Math.floor(address / SPAN));
    if (!allocation || !(bytes >= 0 && (address % SPAN) + bytes <= 4 * Math.ceil(Math.max(allocation.asked, 4) / 4)))
      throw rangeError("ARGUMENT", `there is no memory of ${bytes} bytes at the address ${address}`);
    return allocation;
  }
  /** Where an address lies. @throws RangeError `ARGUMENT` where the bytes are not all there */
  at(address: number, bytes: number): Region {
    return { buffer: this.holder(address, bytes).buffer, offset: address % SPAN, bytes };
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

  private create(capacity: number): Pick<Allocation, "buffer" | "id"> {
    const buffer = this.gpu.createBuffer({
      size: capacity,
      usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
    });
    this.held += capacity;
    return { buffer, id: this.ids.pop() ?? this.next++ };
  }

  private destroy({ buffer, id, capacity }: Allocation): void {
    buffer.destroy();
    this.ids.push(id);
    this.held -= capacity;
  }
}
