import { kindOf, plain } from "../device/arrays.js";
import type { Device, Placed } from "../device/device.js";
import { notPromise, rangeError, shown, typeError, wantFunction } from "../device/errors.js";
import { defaultDevice } from "../device/open.js";
import { BYTES, type Dtype } from "../device/ops.js";
import { toHalf } from "./half.js";

/**
 * The numbers of a tensor; those of a Uint16Array are bf16, or f16 where that is said, by their
 * bits.
 */
export type Data = Float32Array | Float64Array | Int32Array | Uint16Array;
export const ARRAYS = {
  f32: Float32Array,
  f64: Float64Array,
  i32: Int32Array,
  bf16: Uint16Array,
  f16: Uint16Array,
} as const;

/**
 * Memory on a device, shared by the tensors that view it. The device takes it back when the last of
 * them is lost, and this with it.
 */
class Storage {
  references = 1;
  readonly address: number;
  constructor(
    readonly device: Device,
    bytes: number,
  ) {
    this.address = device.allocate(bytes, this);
  }
  release(): void {
    if (--this.references === 0) this.device.release(this.address);
  }
}

/** Who frees the tensors that are created now: the innermost scope, or a tape. */
export interface Owner {
  /** Called with each tensor as it is made. */
  adopt(tensor: Tensor): void;
}
const owners: Owner[] = [];

/** Runs `f` with `owner` adopting every tensor that it creates. */
export function withOwner<T>(owner: Owner, f: () => T): T {
  owners.push(owner);
  try {
    return f();
  } finally {
    owners.pop();
  }
}

/**
 * f32, f64, int32, bf16 or f16 numbers on a device, row-major. `using` or `dispose` frees it; a
 * tensor that is lost is freed some time later.
 */
export class Tensor implements Placed {
  /** `rows`, or the panels of a packed weight. */
  readonly layout: Placed["layout"];
  /** Numbers from one row of dimension 0 to the next. */
  readonly stride: number;
  /** A gradient flows to this tensor. Set by the tape. */
  tracked = false;
  private storage: Storage | undefined;
  private readonly offset: number;

  private constructor(
    storage: Storage,
    /** The sizes of the dimensions, frozen. A shape of no dimension holds one number. */
    readonly shape: readonly number[],
    /** The type of each number. */
    readonly dtype: Dtype,
    options: { layout?: Placed["layout"]; offset?: number } = {},
  ) {
    this.storage = storage;
    this.layout = options.layout ?? "rows";
    this.offset = options.offset ?? 0;
    this.stride = shape.reduce((size, dim, d) => (d > 0 ? size * dim : size), 1);
    owners.at(-1)?.adopt(this);
  }

  /**
   * Uninitialised memory.
   * @throws RangeError `SHAPE` for a size that is negative or not whole, or more than four of them,
   *   `MEMORY`; TypeError `DTYPE`, `DEVICE`
   */
  static empty(shape: readonly number[], dtype: Dtype = "f32", on: Device = defaultDevice()): Tensor {
    const own = shapeOf(shape);
    if (typeof dtype !== "string" || !Object.hasOwn(BYTES, dtype))
      throw typeError("DTYPE", `dtype is ${shown(dtype)}, wanted ${Object.keys(BYTES).join(", ")}`);
    return new Tensor(allocated(own, dtype, on), own, dtype);
  }

  /**
   * A copy of `data` on the device, made before it returns; the dtype is that of the array, f32 for
   * an Array. With `f16`, a Uint16Array holds its bits, and other numbers are rounded to it.
   * @throws RangeError `SHAPE` if the shape holds another number of numbers, or is none, `MEMORY`;
   *   TypeError `DTYPE` for another kind of array, `ARGUMENT` for a member of an Array that is no
   *   number
   */
  static from(
    data: Data | readonly number[],
    shape?: readonly number[],
    on: Device = defaultDevice(),
    dtype?: "f16",
  ): Tensor {
    if (dtype !== undefined && dtype !== "f16")
      throw typeError("DTYPE", `dtype is ${shown(dtype)}, wanted f16, or that of the array`);
    const given = Array.isArray(data) ? arrayOf("data", data, "f32") : plainOf(data as Data);
    const own = dtypeOf(given);
    const array = dtype && own !== "bf16" ? toHalf(given) : given;
    const wanted = shapeOf(shape ?? [array.length]);
    if (sizeOf(wanted) !== array.length)
      throw rangeError(
        "SHAPE",
        `shape is [${wanted}], which holds ${sizeOf(wanted)} numbers; data has ${array.length}`,
      );
    const tensor = Tensor.empty(wanted, dtype ?? own, on);
    if (array.length) on.write(tensor.address, wholeWords(array));
    return tensor;
  }

  /**
   * The device on which the numbers lie.
   * @throws TypeError `DISPOSED` once the tensor is disposed, as every use does
   */
  get device(): Device {
    return this.held().device;
  }
  /** Where the first number lies on the device. */
  get address(): number {
    return this.held().address + this.offset;
  }
  /** How many numbers the tensor has. */
  get size(): number {
    return sizeOf(this.shape);
  }
  /** Whether the tensor was freed. */
  get disposed(): boolean {
    return this.storage === undefined;
  }

  private held(): Storage {
    if (!this.storage) throw typeError("DISPOSED", `a tensor of shape [${this.shape}] was used after it was disposed`);
    return this.storage;
  }

  /** @param shape a frozen one */
  private view(shape: readonly number[], options: { layout?: Placed["layout"]; offset?: number }): Tensor {
    const storage = this.held();
    storage.references++;
    return new Tensor(storage, shape, this.dtype, options);
  }

  /**
   * A view of the numbers under another shape, sharing memory.
   * @throws RangeError `SHAPE`, TypeError `LAYOUT` for a packed tensor
   */
  reshape(shape: readonly number[]): Tensor {
    const own = shapeOf(shape);
    if (sizeOf(own) !== this.size)
      throw rangeError("SHAPE", `shape is [${own}], which holds ${sizeOf(own)} numbers; the tensor has ${this.size}`);
    if (this.layout !== "rows") throw typeError("LAYOUT", "a packed tensor has one shape");
    return this.view(own, { offset: this.offset });
  }

  /**
   * Rows [begin, end) of dimension 0, sharing memory.
   * @throws RangeError `RANGE`, TypeError `LAYOUT` for a packed tensor
   */
  rows(begin: number, end: number): Tensor {
    if (![begin, end].every(Number.isInteger) || !(0 <= begin && begin <= end && end <= this.shape[0]))
      throw rangeError("RANGE", `rows ${shown(begin)} to ${shown(end)} of a tensor of shape [${this.shape}]`);
    if (this.layout !== "rows") throw typeError("LAYOUT", "a packed tensor has no rows of its own");
    return this.view(Object.freeze([end - begin, ...this.shape.slice(1)]), {
      offset: this.offset + begin * this.stride * BYTES[this.dtype],
    });
  }

  /**
   * @internal What `pack` wrote, under its layout's tag and its matrix's shape.
   * @throws RangeError `SHAPE` if it holds another number of numbers
   */
  withLayout(layout: "panels" | "panels-transposed", shape: readonly number[]): Tensor {
    const own = shapeOf(shape);
    const wanted = packedSize(own, layout === "panels-transposed");
    if (this.layout !== "rows" || this.size !== wanted)
      throw rangeError(
        "SHAPE",
        `a matrix of shape [${shape}] has ${wanted} numbers in ${layout}, the tensor has ${this.size} in ${this.layout}`,
      );
    return this.view(own, { layout, offset: this.offset });
  }

  /**
   * Waits for everything queued before and copies the numbers to JavaScript.
   * @throws TypeError `LAYOUT` for a packed tensor, and the error of the op that spoilt these
   *   numbers or what they were computed from, which names the op
   */
  async read(): Promise<Data> {
    const { device, address, dtype } = this;
    if (this.layout !== "rows") throw typeError("LAYOUT", "a packed tensor cannot be read");
    return new ARRAYS[dtype](await device.read(address, this.size * BYTES[dtype], dtype));
  }

  /**
   * Overwrites the numbers, in the order of the queue; `data` is copied before it returns.
   * @throws RangeError `SHAPE` for another number or dtype, TypeError `DTYPE` for another kind of
   *   array, `LAYOUT` for a packed tensor
   */
  write(data: Data): void {
    const own = plainOf(data);
    if (ARRAYS[dtypeOf(own)] !== ARRAYS[this.dtype] || own.length !== this.size)
      throw rangeError("SHAPE", `data has ${own.length} ${dtypeOf(own)}, the tensor ${this.size} ${this.dtype}`);
    if (this.layout !== "rows") throw typeError("LAYOUT", "a packed tensor cannot be written");
    if (own.length) this.device.write(this.address, own);
  }

  /** Frees the memory, once no view shares it; what is queued still has it. */
  dispose(): void {
    this.storage?.release();
    this.storage = undefined;
  }
  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
  /** @internal Memory again for a tensor that was disposed, uninitialised. */
  revive(on: Device): void {
    this.storage = allocated(this.shape, this.dtype, on);
  }
}

function allocated(shape: readonly number[], dtype: Dtype, on: Device): Storage {
  if (typeof on?.allocate !== "function") throw typeError("DEVICE", `on is ${kindOf(on)}, wanted a device`);
  const bytes = 4 * Math.ceil((sizeOf(shape) * BYTES[dtype]) / 4);
  if (!Number.isSafeInteger(bytes))
    throw rangeError("MEMORY", `out of memory: a tensor of shape [${shape}] was asked for`);
  return new Storage(on, bytes);
}

// Devices may write no less than 4 bytes; memory is allocated so.
function wholeWords(data: Data): Data {
  if (data.byteLength % 4 === 0) return data;
  const padded = new Uint16Array(data.length + 1);
  padded.set(data);
  return padded;
}

/** A frozen copy of a shape. @throws RangeError `SHAPE` if it is none */
export function shapeOf(shape: readonly number[]): readonly number[] {
  if (!Array.isArray(shape)) throw rangeError("SHAPE", `shape is ${shown(shape)}, wanted an Array of sizes`);
  const { length } = shape;
  const own: number[] = [];
  for (let d = 0; d < length && d < 9; d++) own.push(shape[d]); // each is read once
  const text = () => `[${own.map((dim) => (typeof dim === "number" ? String(dim) : shown(dim))).join(",")}]`;
  if (own.some((dim) => !Number.isInteger(dim) || dim < 0))
    throw rangeError("SHAPE", `shape is ${text()}, wanted whole numbers from 0`);
  if (length > 4) throw rangeError("SHAPE", `shape is ${text()}, wanted at most 4 dimensions`);
  return Object.freeze(own);
}

/** How many numbers a shape holds. */
export function sizeOf(shape: readonly number[]): number {
  let size = 1;
  for (const dim of shape) size *= dim;
  return size;
}

/** How many numbers a packed weight [O, I] holds: panels of 32, transposed or not. */
export function packedSize(shape: readonly number[], transposed: boolean): number {
  const [lanes, depth] = transposed ? [shape[1], shape[0]] : [shape[0], shape[1]];
  return Math.ceil(lanes / 32) * 32 * depth;
}

const DTYPES: Record<string, Dtype> = {
  Float32Array: "f32",
  Float64Array: "f64",
  Int32Array: "i32",
  Uint16Array: "bf16",
};

/**
 * The numbers of an array as they are, whatever its properties say.
 * @throws TypeError `DTYPE` for what is none of `Data`
 */
function plainOf(data: Data): Data {
  dtypeOf(data);
  return plain(data) as Data;
}

function arrayFor(what: string, dtype: Dtype, length: number): Data {
  try {
    return new ARRAYS[dtype](length);
  } catch {
    throw rangeError("MEMORY", `out of memory: ${what} has ${length} numbers`);
  }
}

/** The dtype of an array's numbers, if it is one of `Data`. */
export const findDtype = (data: unknown): Dtype | undefined => DTYPES[kindOf(data)];

/** The dtype of an array's numbers. @throws TypeError `DTYPE` for what is none of `Data` */
export function dtypeOf(data: Data): Dtype {
  const dtype = findDtype(data);
  if (!dtype)
    throw typeError(
      "DTYPE",
      `data is ${kindOf(data)}, wanted ${Object.keys(DTYPES).join(", ")} (bf16 by its bits), or an Array of numbers`,
    );
  return dtype;
}

const INT32 = 2 ** 31;

/**
 * The members of an Array, or ids of 64 bits, as numbers of a dtype.
 * @param code of the error for a number that the dtype has not
 * @throws TypeError `ARGUMENT` for a member that is no number, RangeError `code`
 */
export function arrayOf(
  what: string,
  members: readonly number[] | BigInt64Array,
  dtype: "f32" | "f64" | "i32",
  code = "RANGE",
): Data {
  const wide = !Array.isArray(members);
  const { length } = members;
  let numbers: Data | undefined;
  for (let i = 0; i < length; i++) {
    const number = wide ? Number(members[i]) : members[i]; // read once
    if (typeof number !== "number") throw typeError("ARGUMENT", `${what}[${i}] is ${shown(number)}, wanted a number`);
    if (dtype === "i32" && !(Number.isInteger(number) && -INT32 <= number && number < INT32))
      throw rangeError(code, `${what}[${i}] is ${number}, wanted a whole number of 32 bits`);
    numbers ??= arrayFor(what, dtype, length);
    numbers[i] = number;
  }
  return numbers ?? new ARRAYS[dtype](0);
}

/**
 * Frees every tensor that `f` creates, but for those in what it returns (a tensor, or an array or
 * object of them).
 * @throws TypeError `ASYNC` if `f` is asynchronous
 */
export function scope<T>(f: () => T): T {
  wantFunction("f", f);
  const created: Tensor[] = [];
  let kept = new Set<Tensor>();
  try {
    const result = withOwner({ adopt: (tensor) => created.push(tensor) }, f);
    notPromise("scope", result);
    kept = new Set(tensorsIn(result));
    return result;
  } finally {
    for (const tensor of created) {
      if (kept.has(tensor)) owners.at(-1)?.adopt(tensor);
      else tensor.dispose();
    }
  }
}

/** The tensors in a value: itself, or the members of an array or plain object. */
export function tensorsIn(value: unknown): Tensor[] {
  if (value instanceof Tensor) return [value];
  if (Array.isArray(value)) return value.flatMap(tensorsIn);
  if (value && typeof value === "object" && Object.getPrototypeOf(value) === Object.prototype)
    return Object.values(value).flatMap(tensorsIn);
  return [];
}
