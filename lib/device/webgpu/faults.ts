import { rangeError, typeError, type CodedError } from "../errors.js";
import type { OpSpec } from "../ops.js";
import { bytesOf, grid, type Call } from "./call.js";
import type { Entry } from "./ledger.js";
import type { Memory, Region } from "./memory.js";
import { read, u32, write, type Queue } from "./queue.js";

const WORDS = 8;
const KINDS = ["", "ID", "OFFSETS", "PREFIX", "FEW"];

/** Calls that are told apart between two reads. */
export const SLOTS = 1024;

/**
 * Errors that a kernel finds on the device: which calls had one, and of the first what it was; both
 * come back with the next read. Arguments that hold ids or offsets are checked before the op; where
 * one is wrong, the op runs on clamped values and its outputs are then overwritten by NaN.
 */
export class Faults {
  readonly region: Region;
  private number = 0; // of the last call

  constructor(
    private readonly queue: Queue,
    memory: Memory,
  ) {
    const bytes = 4 * (WORDS + SLOTS);
    this.region = memory.at(memory.allocate(bytes), bytes);
    this.clear();
  }

  /** Forgets all faults. */
  clear(): void {
    this.queue.clear(this.region);
  }
  /** A number for the next call. */
  next(): number {
    return (this.number = (this.number % 0xffffffff) + 1);
  }

  /** @returns whether there was anything to check */
  check(call: Call): boolean {
    let any = false;
    call.op.arguments.forEach((argument, i) => {
      const prefix = argument.name === "prefix";
      if ((argument.kind !== "ids" && argument.kind !== "offsets" && !prefix) || !call.has(argument.name)) return;
      any = true;
      const kind = prefix ? 3 : KINDS.indexOf(argument.kind === "ids" ? "ID" : "OFFSETS");
      const scalars = [
        call.size(argument.name),
        limitOf(call, argument.limit),
        kind,
        call.op.index,
        i,
        call.checked,
        call.checked % SLOTS,
      ];
      const count = grid(call.size(argument.name));
      this.queue.dispatch(
        { files: ["check"], entry: "check" },
        { 0: call.in(argument.name), 1: write(this.region) },
        scalars.map(u32),
        count,
      );
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
        const scalars = [u32(part.bytes / 4), u32(call.checked), u32(nan)];
        this.queue.dispatch(
          { files: ["check"], entry: "poison" },
          { 0: read(this.region), 1: write(part) },
          scalars,
          grid(part.bytes / 4, 65536),
        );
      }
    }
  }

  /**
   * Gives the calls that had a fault their error: `words` are those of the region after the last of
   * these calls.
   */
  blame(words: Uint32Array, entries: readonly Entry[], ops: ReadonlyMap<string, OpSpec>): void {
    if (words[0] === 0) return;
    for (const entry of entries) {
      const slot = entry.number % SLOTS;
      const found = words[WORDS + slot];
      if (entry.number > 0 && found > 0)
        entry.failure ??= errorOf(ops.get(entry.name)!, found, slot === words[7] ? words : undefined);
    }
  }
}

/** @param latched of the first fault, whose element is known */
function errorOf(op: OpSpec, found: number, latched: Uint32Array | undefined): CodedError {
  const [kind, , argument, element, value, limit] = latched ?? [found % 16, 0, Math.floor(found / 16)];
  if (KINDS[kind] === "FEW") return typeError("ARGUMENT", `${op.name}: whitening needs at least two unmasked tokens`);
  const { name } = op.arguments[argument];
  const what = latched
    ? `${op.name}: ${name}[${element}] is ${value | 0}`
    : `${op.name}: ${name} has a number out of its range`;
  const wanted = (text: string) => (latched ? `${what}, wanted ${text}` : what);
  if (KINDS[kind] === "PREFIX") return typeError("ARGUMENT", wanted("an earlier sequence or -1"));
  if (KINDS[kind] === "ID") return rangeError("ID", wanted(`0 to ${limit - 1}`));
  return rangeError("OFFSETS", wanted(`offsets that begin with 0, never fall and end with ${limit}`));
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
