import { rangeError, typeError, type CodedError } from "../errors.js";
import type { OpSpec } from "../ops.js";
import { bytesOf, grid, type Call } from "./call.js";
import type { Memory, Region } from "./memory.js";
import { read, u32, write, type Queue } from "./queue.js";

const WORDS = 8;
const KINDS = ["", "ID", "OFFSETS", "PREFIX", "FEW"];

/**
 * Errors that a kernel finds on the device: the first is latched in a few words, which come back with the next read. Arguments
 * that hold ids or offsets are checked before the op; where one is wrong, the op runs on clamped values and its outputs are
 * then overwritten by NaN.
 */
export class Faults {
  readonly region: Region;
  private number = 0; // of the call that is checked

  constructor(
    private readonly queue: Queue,
    memory: Memory,
  ) {
    this.region = memory.at(memory.allocate(4 * WORDS), 4 * WORDS);
    queue.clear(this.region);
  }

  /** @returns whether there was anything to check */
  check(call: Call): boolean {
    this.number = (this.number % 0xffffffff) + 1;
    let any = false;
    call.op.arguments.forEach((argument, i) => {
      const prefix = argument.name === "prefix";
      if ((argument.kind !== "ids" && argument.kind !== "offsets" && !prefix) || !call.has(argument.name)) return;
      any = true;
      const kind = prefix ? 3 : KINDS.indexOf(argument.kind === "ids" ? "ID" : "OFFSETS");
      const scalars = [call.size(argument.name), limitOf(call, argument.limit), kind, call.op.index, i, this.number];
      const count = grid(call.size(argument.name));
      this.queue.dispatch({ files: ["check"], entry: "check" }, { 0: call.in(argument.name), 1: write(this.region) }, scalars.map(u32), count);
    });
    return any;
  }

  /** Overwrites the outputs of a call whose check failed. */
  poison(call: Call): void {
    for (const { kind, name, dtype } of call.op.arguments) {
      if ((kind !== "out" && kind !== "opt_out") || !call.has(name)) continue;
      const words = bytesOf(call.tensor(name)) / 4;
      const nan = dtype === "i32" ? 0 : 0x7fc00000;
      for (let at = 0; at < words; at += call.maxBinding / 4) {
        const { buffer, offset, bytes } = call.region(name);
        const part = { buffer, offset: offset + 4 * at, bytes: Math.min(bytes - 4 * at, call.maxBinding) };
        const scalars = [u32(part.bytes / 4), u32(this.number), u32(nan)];
        this.queue.dispatch({ files: ["check"], entry: "poison" }, { 0: read(this.region), 1: write(part) }, scalars, grid(part.bytes / 4, 65536));
      }
    }
  }

  /** The latched error, if any; it is cleared. */
  taken(words: Uint32Array, ops: ReadonlyMap<number, OpSpec>): CodedError | undefined {
    const [kind, index, argument, element, value, limit] = words;
    if (kind === 0) return undefined;
    this.queue.clear(this.region);
    const op = ops.get(index)!;
    if (KINDS[kind] === "FEW") return typeError("ARGUMENT", `${op.name}: whitening needs at least two unmasked tokens`);
    const what = `${op.name}: ${op.arguments[argument].name}[${element}] is ${value | 0}`;
    if (KINDS[kind] === "PREFIX") return typeError("ARGUMENT", `${what}, wanted an earlier sequence or -1`);
    if (KINDS[kind] === "ID") return rangeError("ID", `${what}, wanted 0 to ${limit - 1}`);
    return rangeError("OFFSETS", `${what}, wanted offsets that begin with 0, never fall and end with ${limit}`);
  }
}

/** The size that a letter has in this call. */
function limitOf(call: Call, letter: string): number {
  for (const { name, dims } of call.op.arguments) {
    if (dims === "any" || !call.has(name)) continue;
    const at = dims.findIndex((dim) => typeof dim === "object" && dim.letter === letter && dim.plus === 0);
    if (at >= 0) return call.shape(name)[at];
  }
  return 0;
}
