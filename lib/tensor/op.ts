import { arrayClass, kindOf, plain } from "../device/arrays.js";
import type { Device } from "../device/device.js";
import { rangeError, shown, typeError } from "../device/errors.js";
import { defaultDevice } from "../device/open.js";
import { specs, type Argument, type Dtype, type OpSpec } from "../device/ops.js";
import { Parameter } from "./parameter.js";
import { activeRecorder, type Gradient } from "./recorder.js";
import { ARRAYS, arrayOf, findDtype, Tensor, withOwner, type Data } from "./tensor.js";

/**
 * What an op takes for a tensor: a tensor, a weight, or numbers (copied before the call returns);
 * for int32 also those of 64 bits.
 */
export type Input = Tensor | Parameter | Data | BigInt64Array | readonly number[];
/**
 * The gradient accumulator of an input, for an op that computes the gradient in its forward pass.
 */
export interface Into {
  into: string;
}
/**
 * Arguments of an op by name; outputs may be given, to be written or continued in place. null is as
 * undefined.
 */
export type Arguments = Record<string, Input | Into | number | boolean | string | null | undefined>;

const NAMED = { f32: "f32", f64: "f64", i32: "int32", bf16: "bf16", f16: "f16" } as const;

/**
 * Runs an op of the list: checks its arguments against the list, makes its outputs, queues the
 * call, and records it if a gradient flows to one of its inputs.
 *
 * @param name     the op, in camel case
 * @param args     inputs, scalars, and outputs that exist already
 * @param gradient from the outputs' gradients to the inputs'; without it no gradient flows through
 *   the op
 * @param sizes    sizes of the letters that no input binds
 * @returns the outputs by name; an optional output, or one that is added to (from 0), is made where
 *   `args` has `true` for it
 * @throws TypeError `DTYPE` `DEVICE` `DISPOSED` `ARGUMENT` `CHOICE`, RangeError `SHAPE` `ID`
 *   `OFFSETS` `RANGE`, naming the argument
 */
export function run(
  name: string,
  args: Arguments,
  gradient?: Gradient,
  sizes: Record<string, number> = {},
): Record<string, Tensor> {
  const spec = specs.get(name);
  if (!spec) throw typeError("OP", `there is no op "${name}"`);
  const recorder = activeRecorder(); // what a recorded op makes is its, whatever scope stands between
  const call = recorder ? withOwner(recorder, () => new Call(spec, args, sizes)) : new Call(spec, args, sizes);
  call.device.call(spec, call.values);
  // the queue is in order: freed memory is reused after this call
  for (const tensor of call.temporary) tensor.dispose();
  call.record(gradient);
  return call.outputs;
}

/**
 * The shape of what an op is given.
 * @throws TypeError `ARGUMENT` for what is neither a tensor nor numbers
 */
export function shapeOfInput(where: string, x: Input): readonly number[] {
  if (x instanceof Tensor) return x.shape;
  if (x instanceof Parameter) return x.value.shape;
  if (Array.isArray(x)) return [x.length];
  const numbers = plain(x);
  if (!numbers) throw typeError("ARGUMENT", `${where} is ${kindOf(x)}, wanted a tensor or numbers`);
  return [numbers.length];
}

/** @throws TypeError `ARGUMENT` for what is no tensor */
export function wantTensor(where: string, x: unknown): void {
  if (!(x instanceof Tensor)) throw typeError("ARGUMENT", `${where} is ${kindOf(x)}, wanted a tensor`);
}

/**
 * Options that may be left out, or set to null.
 * @throws TypeError `ARGUMENT` for what is no object
 */
export function optionsOf<T extends object>(op: string, options: T | null | undefined): Partial<T> {
  if (typeof (options ?? {}) !== "object")
    throw typeError("ARGUMENT", `${op}: options are ${shown(options)}, wanted an object`);
  return options ?? {};
}

class Call {
  readonly outputs: Record<string, Tensor> = {};
  readonly values: (Tensor | number | undefined)[] = [];
  readonly device: Device;
  private readonly tensors: Record<string, Tensor> = {};
  private readonly tracked: Record<string, Tensor | Parameter> = {};
  private readonly args: Arguments;
  private readonly letters: Record<string, number>;
  private readonly isBf16: boolean; // its ROWS, WEIGHT and SAME are
  private any: readonly number[] | undefined;
  readonly temporary: Tensor[] = [];

  constructor(
    private readonly spec: OpSpec,
    given: Arguments,
    sizes: Record<string, number>,
  ) {
    this.letters = { ...sizes };
    const args = (this.args = plainIn(given));
    this.device = this.findDevice();
    const alone = spec.arguments.some((argument) => this.device.halfDtype(spec.name, argument));
    this.isBf16 =
      !alone &&
      this.device.has(spec.name, "bf16") &&
      spec.arguments.some(({ name, kind, rows }) => kind === "in" && rows && isBf16(args[name]));
    for (const name of Object.keys(args))
      if (!spec.arguments.some((a) => a.name === name))
        throw typeError(
          "ARGUMENT",
          `${spec.name}: it has no argument "${name}", it takes ${spec.arguments.map((a) => a.name).join(", ")}`,
        );
    for (const argument of spec.arguments) {
      const given = args[argument.name] ?? undefined;
      if (isInput(argument) && !isInto(given)) this.bind(argument, given);
    }
    for (const argument of spec.arguments) {
      const value = this.value(argument, args[argument.name] ?? undefined);
      this.values.push(value);
      if (value instanceof Tensor) this.tensors[argument.name] = value;
    }
  }

  record(gradient: Gradient | undefined): void {
    const recorder = activeRecorder();
    if (!recorder || !gradient || Object.keys(this.tracked).length === 0) return;
    const made = Object.entries(this.outputs).filter(([name]) => !this.args[name] || this.args[name] === true);
    const again = () => {
      for (const tensor of Object.values(this.outputs)) if (tensor.disposed) tensor.revive(this.device);
      this.device.call(this.spec, this.values);
    };
    recorder.push({ inputs: this.tracked, outputs: Object.fromEntries(made), tensors: this.tensors, gradient, again });
  }

  private findDevice(): Device {
    let device: Device | undefined;
    for (const [name, given] of Object.entries(this.args)) {
      const tensor = given instanceof Parameter ? given.value : given;
      if (!(tensor instanceof Tensor)) continue;
      device ??= tensor.device;
      if (tensor.device !== device)
        throw typeError(
          "DEVICE",
          `${this.spec.name}: ${name} is on another device (${tensor.device.kind}) than the arguments before it`,
        );
    }
    return device ?? defaultDevice();
  }

  private bind(argument: Argument, given: Arguments[string]): void {
    if (given === undefined || typeof given === "boolean") return;
    if (
      !(
        given instanceof Tensor ||
        given instanceof Parameter ||
        Array.isArray(given) ||
        arrayClass(given) !== undefined
      )
    )
      return void this.upload(argument, given as Data); // which says why not
    const shape =
      given instanceof Tensor ? given.shape : given instanceof Parameter ? given.value.shape : [(given as Data).length];
    const where = `${this.spec.name}: ${argument.name}`;
    if (argument.dims === "any") {
      this.any ??= shape;
      if (shape.length !== this.any.length || shape.some((size, i) => size !== this.any![i]))
        throw rangeError("SHAPE", `${where} has shape [${shape}], wanted [${this.any}] as the argument before it`);
      return;
    }
    if (shape.length !== argument.dims.length)
      throw rangeError("SHAPE", `${where} has shape [${shape}], wanted [${argument.dimsText}]`);
    argument.dims.forEach((dim, i) => {
      const wanted = typeof dim === "number" ? dim : (this.letters[dim.letter] ??= shape[i] - dim.plus) + dim.plus;
      if (shape[i] !== wanted || wanted < (typeof dim === "number" ? dim : dim.plus))
        throw rangeError(
          "SHAPE",
          `${where} has shape [${shape}], wanted [${argument.dimsText}] with ${typeof dim === "number" ? dim : `${dim.letter} = ${this.letters[dim.letter]}`}`,
        );
    });
  }

  private value(argument: Argument, given: Arguments[string]): Tensor | number | undefined {
    if (argument.kind === "real" || argument.kind === "integer") return this.scalar(argument, given);
    if (argument.kind === "choice") return this.choice(argument, given);
    if (argument.kind === "out" || (argument.kind === "opt_out" && given === true)) {
      const output = given instanceof Tensor ? this.checked(argument, given) : this.make(argument);
      return (this.outputs[argument.name] = output);
    }
    if (given === true && argument.kind === "add") return (this.outputs[argument.name] = this.zeros(argument));
    if (given === undefined || given === false) {
      if (argument.kind.startsWith("opt")) return undefined;
      throw typeError("ARGUMENT", `${this.spec.name}: ${argument.name} is missing`);
    }
    if (isInto(given)) return this.accumulator(given);
    if (given instanceof Parameter) {
      if (given.trainable) this.tracked[argument.name] = given;
      return this.checked(argument, given.working);
    }
    if (given instanceof Tensor) {
      if (given.tracked) this.tracked[argument.name] = given;
      const tensor = this.checked(argument, given);
      if (argument.kind === "add" || argument.kind === "opt_add" || argument.kind === "opt_out")
        this.outputs[argument.name] = tensor;
      return tensor;
    }
    return this.upload(argument, given as Data | BigInt64Array | readonly number[]);
  }

  private accumulator({ into }: Into): Tensor | undefined {
    const parameter = this.args[into];
    const recorder = activeRecorder();
    return recorder && parameter instanceof Parameter && parameter.trainable
      ? parameter.accumulator(recorder.nextUse(parameter))
      : undefined;
  }

  private scalar(argument: Argument, given: Arguments[string]): number {
    const value = typeof given === "boolean" ? Number(given) : given;
    if (
      typeof value !== "number" ||
      Number.isNaN(value) ||
      (argument.kind === "integer" && !Number.isSafeInteger(value))
    )
      throw typeError(
        "ARGUMENT",
        `${this.spec.name}: ${argument.name} is ${shown(given)}, wanted ${argument.kind === "integer" ? "a whole number" : "a number"}`,
      );
    const { low, high, openLow, openHigh } = argument.range;
    if (value < low || value > high || (openLow && value === low) || (openHigh && value === high))
      throw rangeError(
        "RANGE",
        `${this.spec.name}: ${argument.name} is ${value}, wanted a number in ${openLow ? "(" : "["}${low}, ${high}${openHigh ? ")" : "]"}`,
      );
    return value;
  }

  private choice(argument: Argument, given: Arguments[string]): number {
    const index = argument.choices.indexOf(given as string);
    if (index < 0)
      throw typeError(
        "CHOICE",
        `${this.spec.name}: ${argument.name} is ${shown(given)}, wanted one of ${argument.choices.join(", ")}`,
      );
    return index;
  }

  private checked(argument: Argument, tensor: Tensor): Tensor {
    this.checkDtype(argument, tensor.dtype, NAMED[tensor.dtype]);
    if (tensor.layout !== "rows" && !argument.weight)
      throw typeError("LAYOUT", `${this.spec.name}: ${argument.name} is packed, wanted row-major`);
    void tensor.address; // throws if it was disposed
    if (!isInput(argument)) this.bind(argument, tensor);
    return tensor;
  }

  private checkDtype(argument: Argument, dtype: Dtype | undefined, given: string): void {
    const wanted = this.dtypeOf(argument);
    const half = this.device.halfDtype(this.spec.name, argument);
    if (!dtype || (dtype !== wanted && dtype !== half))
      throw typeError(
        "DTYPE",
        `${this.spec.name}: ${argument.name} is ${given}, wanted ${NAMED[wanted]}${half ? ` or ${half}` : ""}`,
      );
  }

  private dtypeOf(argument: Argument): Dtype {
    return this.isBf16 && argument.bf16Together ? "bf16" : argument.dtype;
  }

  private zeros(argument: Argument): Tensor {
    const tensor = this.make(argument);
    tensor.write(new ARRAYS[tensor.dtype](tensor.size));
    return tensor;
  }

  private make(argument: Argument): Tensor {
    if (argument.dims === "any") return Tensor.empty(this.any ?? [], this.dtypeOf(argument), this.device);
    const shape = argument.dims.map((dim) => {
      if (typeof dim === "number") return dim;
      const size = this.letters[dim.letter];
      if (size === undefined)
        throw typeError("ARGUMENT", `${this.spec.name}: the size ${dim.letter} of ${argument.name} is not known`);
      return size + dim.plus;
    });
    return Tensor.empty(shape, this.dtypeOf(argument), this.device);
  }

  private upload(argument: Argument, given: Data | BigInt64Array | readonly number[]): Tensor {
    const { kind, dtype } = argument;
    const where = `${this.spec.name}: ${argument.name}`;
    const code = kind === "ids" ? "ID" : kind === "offsets" ? "OFFSETS" : "RANGE";
    const members =
      Array.isArray(given) || (dtype === "i32" && kindOf(given) === "BigInt64Array")
        ? (given as BigInt64Array)
        : undefined;
    const array = members
      ? arrayOf(where, members, dtype === "i32" || dtype === "f64" ? dtype : "f32", code)
      : (given as Data);
    if (!ArrayBuffer.isView(array))
      throw typeError("ARGUMENT", `${where} is ${typeof given}, wanted a tensor or numbers`);
    this.checkDtype(argument, findDtype(array), kindOf(array));
    if (argument.kind === "add" || argument.kind === "opt_add")
      throw typeError("ARGUMENT", `${where} is continued in place, wanted a tensor`);
    if (argument.kind === "ids") this.checkIds(array, where, this.letters[argument.limit]);
    if (argument.kind === "offsets") checkOffsets(array, where, this.letters[argument.limit]);
    const tensor = Tensor.from(array, [array.length], this.device);
    if (!activeRecorder()) this.temporary.push(tensor);
    return tensor;
  }

  private checkIds(ids: Data, where: string, limit: number): void {
    for (let i = 0; i < ids.length; i++)
      if (ids[i] < 0 || ids[i] >= limit)
        throw rangeError("ID", `${where}[${i}] is ${ids[i]}, wanted 0 to ${limit - 1}`);
  }
}

/**
 * The arguments with each typed array as it is, whatever its properties say: what is checked is
 * what is copied to the device.
 */
function plainIn(given: Arguments): Arguments {
  let args: Arguments | undefined;
  for (const name in given) {
    const value = given[name];
    if (typeof value === "object" && arrayClass(value) !== undefined)
      (args ??= { ...given })[name] = (plain(value) as Data | undefined) ?? value;
  }
  return args ?? given;
}

function checkOffsets(offsets: Data, where: string, total: number | undefined): void {
  if (offsets[0] !== 0) throw rangeError("OFFSETS", `${where}[0] is ${offsets[0]}, wanted 0`);
  for (let i = 1; i < offsets.length; i++)
    if (offsets[i] < offsets[i - 1])
      throw rangeError("OFFSETS", `${where}[${i}] is ${offsets[i]}, less than the one before, ${offsets[i - 1]}`);
  if (total !== undefined && offsets[offsets.length - 1] !== total)
    throw rangeError("OFFSETS", `${where} ends with ${offsets[offsets.length - 1]}, wanted ${total}`);
}

const isInto = (given: Arguments[string]): given is Into =>
  typeof given === "object" && given !== null && "into" in given;
const isBf16 = (given: Arguments[string]) =>
  given instanceof Tensor
    ? given.dtype === "bf16"
    : given instanceof Parameter
      ? given.value.dtype === "bf16"
      : given instanceof Uint16Array;
const isInput = (argument: Argument) => ["in", "opt", "ids", "offsets", "add", "opt_add"].includes(argument.kind);
