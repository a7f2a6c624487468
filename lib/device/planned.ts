import { AddonDevice } from "./addon.js";
import type { Placed, Recorded } from "./device.js";
import { BYTES, type OpSpec } from "./ops.js";

/** What a run asks of a machine. */
export interface Work {
  calls: number;
  flops: number;
  /** Moved at least: what each call reads and writes, once. */
  bytes: number;
  /** Seconds of calls one after another, each as long as its arithmetic or its bytes take. */
  seconds: number;
}

export interface Speed {
  /** FLOP/s of products of matrices. */
  flops: number;
  /** Bytes/s of memory. */
  bandwidth: number;
  /** Seconds of a call that does nothing. */
  call: number;
}

type Args = readonly (Placed | number | undefined)[];

/** Where a tensor lies, even once it is disposed. */
const placed = (arg: Args[number]) =>
  typeof arg === "object"
    ? { address: arg.address, dtype: arg.dtype, layout: arg.layout, shape: arg.shape, stride: arg.stride }
    : arg;

/**
 * A CPU that runs nothing. Memory is handed out as on a real one (pages that nobody writes are not
 * there), so its peak is a run's, workspace included; calls are counted; what is read are zeros.
 */
export class PlannedDevice extends AddonDevice {
  private work: Work = { calls: 0, flops: 0, bytes: 0, seconds: 0 };
  private recorded: { op: OpSpec; args: Args }[] | undefined;
  private readonly integers = new Map<number, Int32Array>();

  constructor(
    threads: number,
    private readonly speed: Speed,
  ) {
    super("cpu", undefined, threads, { planned: true });
  }

  override write(address: number, data: ArrayBufferView): void {
    if (data instanceof Int32Array) this.integers.set(address, data.slice());
    super.write(address, data);
  }
  override async read(_: number, bytes: number): Promise<ArrayBuffer> {
    return new ArrayBuffer(bytes);
  }
  override call(op: OpSpec, args: Args): void {
    super.call(op, args);
    this.recorded?.push({ op, args: args.map(placed) });
    this.count(op, args, this.speed.call);
  }
  override record<T>(f: () => T): Recorded<T> {
    const calls: { op: OpSpec; args: Args }[] = (this.recorded = []);
    try {
      const recorded = super.record(f);
      const run = () => {
        recorded.run();
        for (const { op, args } of calls) this.count(op, args, 0);
      };
      return { ...recorded, run };
    } finally {
      this.recorded = undefined;
    }
  }

  private count(op: OpSpec, args: Args, seconds: number): void {
    const [flops, bytes] = [this.flopsOf(op, args), this.bytesOf(op, args)];
    this.work.calls++;
    this.work.flops += flops;
    this.work.bytes += bytes;
    this.work.seconds += seconds + Math.max(flops / this.speed.flops, bytes / this.speed.bandwidth);
  }

  /** The work since the last call of this. */
  workDone(): Work {
    const { work } = this;
    this.work = { calls: 0, flops: 0, bytes: 0, seconds: 0 };
    return work;
  }

  private flopsOf(op: OpSpec, args: Args): number {
    const given = (name: string) =>
      args[op.arguments.findIndex((argument) => argument.name === name)] as Placed | undefined;
    const shape = (name: string) => given(name)!.shape;
    const numbers = (name: string) => this.integers.get(given(name)?.address ?? NaN) ?? new Int32Array(0);
    const product = (rows: number, name: string) => 2 * rows * shape(name).reduce((a, b) => a * b, 1);
    // the logits, and those of the gradients that are wanted
    const products = (...gradients: string[]) => 1 + gradients.filter(given).length;
    const pairs = () => {
      const [offsets, prefix] = [numbers("cuSeqlens"), numbers("prefix")];
      const ends: number[] = []; // the position after each sequence: its keys
      let sum = 0;
      for (let b = 0; b < offsets.length - 1; b++) {
        const [length, before] = [offsets[b + 1] - offsets[b], ends[prefix[b]] ?? 0];
        ends.push(before + length);
        sum += length * before + (length * (length + 1)) / 2;
      }
      return sum;
    };
    switch (op.name) {
      case "linear":
        return product(shape("x")[0], "weight");
      case "linearGradInput":
        return product(shape("dy")[0], "weight");
      case "linearGradWeight":
        return product(shape("dy")[0], "dweight");
      case "linearLogprob":
        return product(shape("rows")[0], "weight");
      case "linearLogprobGrad":
        return products("dh", "dweight") * product(shape("rows")[0], "weight");
      case "linearPolicyLoss":
        return products("dh", "dweight") * product(shape("rows")[0], "weight");
      case "attention":
        return 4 * pairs() * shape("q")[1] * shape("q")[2];
      case "attentionGrad":
        return 10 * pairs() * shape("q")[1] * shape("q")[2];
      case "attentionDecode":
        return 4 * numbers("lengths").reduce((a, b) => a + b, 0) * shape("q")[1] * shape("q")[2];
      default:
        return 0;
    }
  }

  /** A cache and a table of which rows are picked count as what is moved in or out. */
  private bytesOf(op: OpSpec, args: Args): number {
    const moved = (name: string) =>
      !(
        name === "kCache" ||
        name === "vCache" ||
        ((op.name === "embedding" || op.name === "embeddingGrad") && name.endsWith("able"))
      );
    return args.reduce<number>(
      (sum, arg, i) =>
        typeof arg === "object" && moved(op.arguments[i].name)
          ? sum + BYTES[arg.dtype] * arg.shape.reduce((a, b) => a * b, 1)
          : sum,
      0,
    );
  }
}
