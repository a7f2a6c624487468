import type { Memory, Region } from "./memory.js";
import { Pipelines, type Kernel } from "./pipelines.js";

/** A number in a kernel's parameters. */
export type Scalar = { u32: number } | { i32: number } | { f32: number };
export const u32 = (value: number): Scalar => ({ u32: value });
export const f32 = (value: number): Scalar => ({ f32: value });
/** A double as a pair of f32. */
export const pair = (value: number): Scalar[] => [f32(value), f32(value - Math.fround(value))];

/** A tensor's bytes as a kernel binds them; `write` where the kernel stores to them. */
export interface Binding {
  region: Region;
  write: boolean;
  /** The size of an element. */
  bytes: number;
}
export const read = (region: Region, bytes = 4): Binding => ({ region, write: false, bytes });
export const write = (region: Region): Binding => ({ region, write: true, bytes: 4 });

const ALIGNMENT = 256; // of bindings; WebGPU promises no less
const STAGED = 1 << 18; // bytes of parameters and small uploads per batch
const BATCH = 256; // dispatches per batch
const PARAMETERS = 8; // the binding of the parameters, above those of storage buffers
const PASSES = 512; // timed between two reads

/**
 * Batches of work: dispatches and copies go into one command encoder, which is submitted when it is
 * large or someone reads. Parameters and small uploads are gathered on the host and written once
 * per batch, before it.
 */
export class Queue {
  private encoder: GPUCommandEncoder | undefined;
  private pass: GPUComputePassEncoder | undefined;
  private readonly staged = new ArrayBuffer(STAGED);
  private used = 0;
  private dispatches = 0;
  private passes = 0;
  private readonly staging: GPUBuffer;
  private readonly nothing: Region[]; // stand for absent arguments, one for each binding: some are read, some written
  private readonly times: GPUQuerySet | undefined;
  private readonly resolved: GPUBuffer | undefined;
  private readonly pipelines: Pipelines;
  /** Seconds that the adapter spent in ops, as far as its timestamps tell. */
  busySeconds = 0;

  constructor(
    private readonly gpu: GPUDevice,
    private readonly memory: Memory,
    source: (file: string) => string,
    private readonly submitted: (error: Promise<GPUError | null>) => void,
  ) {
    this.pipelines = new Pipelines(gpu, source);
    this.staging = gpu.createBuffer({
      size: STAGED,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
    });
    const absent = () => ({
      buffer: gpu.createBuffer({ size: ALIGNMENT, usage: GPUBufferUsage.STORAGE }),
      offset: 0,
      bytes: ALIGNMENT,
    });
    this.nothing = Array.from({ length: PARAMETERS }, absent);
    if (!gpu.features.has("timestamp-query")) return;
    this.times = gpu.createQuerySet({ type: "timestamp", count: 2 * PASSES });
    this.resolved = gpu.createBuffer({
      size: 16 * PASSES,
      usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    });
  }

  /**
   * Runs a kernel over a grid of workgroups. Its parameters begin with the element offset of each
   * binding, from which the tensor begins within what is bound (bindings are aligned, tensors are
   * not), and a zero that no compiler knows of.
   *
   * @param bindings by their number, undefined for an argument that is absent
   * @param grid     workgroups; the second and third dimension by default 1
   */
  dispatch(
    kernel: Kernel,
    bindings: Record<number, Binding | undefined>,
    scalars: readonly Scalar[],
    grid: readonly [number, number?, number?],
  ): void {
    if (grid.some((size) => size === 0)) return;
    const pipeline = this.pipelines.get(kernel);
    const written = new Set(Object.values(bindings).flatMap((one) => (one?.write ? [one.region.buffer] : [])));
    const entries: GPUBindGroupEntry[] = [];
    const offsets: number[] = [];
    const borrowed: number[] = [];
    for (const [number, binding] of Object.entries(bindings)) {
      let region = binding?.region ?? this.nothing[Number(number)];
      // read and written at once is not allowed
      if (binding && !binding.write && written.has(region.buffer)) region = this.copied(region, borrowed);
      const floor = region.offset - (region.offset % ALIGNMENT);
      offsets[Number(number)] = (region.offset - floor) / (binding?.bytes ?? 4);
      const size = Math.max(4, 4 * Math.ceil((region.offset - floor + region.bytes) / 4));
      entries.push({ binding: Number(number), resource: { buffer: region.buffer, offset: floor, size } });
    }
    const at = this.parameters(offsets, scalars);
    entries.push({ binding: PARAMETERS, resource: { buffer: this.staging, offset: at, size: ALIGNMENT } });
    const group = this.gpu.createBindGroup({ label: kernel.entry, layout: pipeline.getBindGroupLayout(0), entries });
    const pass = this.computing();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.dispatchWorkgroups(...grid);
    for (const address of borrowed) this.memory.release(address);
    if (++this.dispatches >= BATCH) this.submit();
  }

  /** Overwrites bytes, in the order of the queue. */
  write(to: Region, data: Uint8Array): void {
    if (data.byteLength > STAGED / 4) {
      this.submit();
      this.gpu.queue.writeBuffer(to.buffer, to.offset, data);
      return;
    }
    const from = this.stage(data.byteLength);
    new Uint8Array(this.staged, from, data.byteLength).set(data);
    this.copying().copyBufferToBuffer(this.staging, from, to.buffer, to.offset, data.byteLength);
  }

  copy(from: Region, to: Region): void {
    if (from.bytes > 0) this.copying().copyBufferToBuffer(from.buffer, from.offset, to.buffer, to.offset, from.bytes);
  }

  clear(region: Region): void {
    if (region.bytes > 0) this.copying().clearBuffer(region.buffer, region.offset, region.bytes);
  }

  /** Submits everything queued and copies the regions to the host, one after another. */
  async read(regions: readonly Region[]): Promise<ArrayBuffer> {
    const bytes = regions.reduce((sum, region) => sum + region.bytes, 0);
    const clock = this.times ? 16 * PASSES : 0;
    const buffer = this.gpu.createBuffer({
      size: bytes + clock,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
    let at = 0;
    for (const { buffer: from, offset, bytes } of regions) {
      if (bytes > 0) this.copying().copyBufferToBuffer(from, offset, buffer, at, bytes);
      at += bytes;
    }
    const passes = this.submit(buffer, at);
    await buffer.mapAsync(GPUMapMode.READ);
    const mapped = buffer.getMappedRange();
    const ticks = new BigUint64Array(mapped.slice(at));
    for (let i = 0; i < passes; i++) this.busySeconds += Math.max(0, Number(ticks[2 * i + 1] - ticks[2 * i])) / 1e9;
    const result = mapped.slice(0, bytes);
    buffer.unmap();
    buffer.destroy();
    return result;
  }

  /** @returns how many passes since the last read were timed, into `clock` */
  submit(clock?: GPUBuffer, at = 0): number {
    const { encoder, passes } = this;
    if (!encoder) return 0;
    this.pass?.end();
    if (this.times && clock && passes > 0) {
      encoder.resolveQuerySet(this.times, 0, 2 * passes, this.resolved!, 0);
      encoder.copyBufferToBuffer(this.resolved!, 0, clock, at, 16 * passes);
    }
    this.gpu.pushErrorScope("validation");
    if (this.used > 0) this.gpu.queue.writeBuffer(this.staging, 0, this.staged, 0, this.used);
    this.gpu.queue.submit([encoder.finish()]);
    this.submitted(this.gpu.popErrorScope());
    this.encoder = this.pass = undefined;
    this.used = this.dispatches = 0;
    if (clock) this.passes = 0;
    return passes;
  }

  private computing(): GPUComputePassEncoder {
    if (this.pass) return this.pass;
    this.encoder ??= this.gpu.createCommandEncoder();
    const first = 2 * this.passes;
    const timestampWrites =
      this.times && this.passes < PASSES
        ? { querySet: this.times, beginningOfPassWriteIndex: first, endOfPassWriteIndex: first + 1 }
        : undefined;
    if (timestampWrites) this.passes++;
    return (this.pass = this.encoder.beginComputePass({ timestampWrites }));
  }

  private copying(): GPUCommandEncoder {
    this.pass?.end();
    this.pass = undefined;
    return (this.encoder ??= this.gpu.createCommandEncoder());
  }

  private copied(region: Region, borrowed: number[]): Region {
    const address = this.memory.allocate(region.bytes);
    borrowed.push(address);
    const to = this.memory.at(address, region.bytes);
    this.copy(region, to);
    return to;
  }

  private stage(bytes: number): number {
    if (this.used + bytes > STAGED) this.submit();
    const at = this.used;
    this.used += Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
    return at;
  }

  private parameters(offsets: readonly number[], scalars: readonly Scalar[]): number {
    const at = this.stage(ALIGNMENT);
    const view = new DataView(this.staged, at, ALIGNMENT);
    for (let i = 0; i < ALIGNMENT / 4; i++) view.setUint32(4 * i, 0, true);
    offsets.forEach((offset, i) => view.setUint32(4 * i, offset, true));
    scalars.forEach((scalar, i) => {
      const to = 4 * (PARAMETERS + 1 + i); // offsets, the zero, then these
      if ("u32" in scalar) view.setUint32(to, scalar.u32, true);
      else if ("i32" in scalar) view.setInt32(to, scalar.i32, true);
      else view.setFloat32(to, scalar.f32, true);
    });
    return at;
  }
}
