import { native, type NativeArgument } from "./native.js";

/** A dimension: a letter (bound by the op's arguments), a letter plus one, or a number. */
export type Dim =
  | {
      /** Equal letters of an op are equal sizes. */
      letter: string;
      /** What is added to it: 0 or 1. */
      plus: number;
    }
  | number;

/** An argument of an op, under its public name. */
export interface Argument {
  /** What the op does with the argument. */
  kind: NativeArgument["kind"];
  /** The name in the list, in camel case. */
  name: string;
  /** The type of the numbers, unless one of the two flags below says more. */
  dtype: Dtype;
  /** Dimension 0 may be strided. */
  rows: boolean;
  /** On a GPU that takes the op at bf16: bf16, together with the others of its kind. */
  bf16Together: boolean;
  /** On a CPU: f32 or bf16, whatever the others are. */
  bf16Alone: boolean;
  /** The argument may be packed. */
  weight: boolean;
  /** The dimensions; `any` stands for one shape that all such arguments of a call share. */
  dims: Dim[] | "any";
  /** The dimensions as the list spells them, for messages. */
  dimsText: string;
  /** For ids and offsets: the letter of the size that they stay below, or end with. */
  limit: string;
  /** What a real or an integer may be. */
  range: Pick<NativeArgument, "low" | "high" | "openLow" | "openHigh">;
  /** For a choice: the names to choose from. */
  choices: string[];
}

/** An op of the list. */
export interface OpSpec {
  /** The name in the list, in camel case. */
  name: string;
  /** The place of the op in the list. */
  index: number;
  /** All arguments, in the order in which a device is given them. */
  arguments: Argument[];
  /**
   * The dtypes that each device of the addon takes the op at (a CPU: its weights); none where it
   * lacks it.
   */
  dtypes: Record<"cpu" | "cuda", readonly Dtype[]>;
}

/** The type of numbers: IEEE floats of 32, 64 and 16 bits, int32, bfloat16. */
export type Dtype = "f32" | "f64" | "i32" | "bf16" | "f16";
export const BYTES: Readonly<Record<Dtype, number>> = { f32: 4, f64: 8, i32: 4, bf16: 2, f16: 2 };

export const camel = (name: string) => name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());

function dims(text: string): Dim[] | "any" {
  if (text === "...") return "any";
  if (text === "") return [];
  return text
    .split(",")
    .map((dim) => (/^\d+$/.test(dim) ? Number(dim) : { letter: dim[0], plus: dim.endsWith("+1") ? 1 : 0 }));
}

const names = new Set(native.ops.flatMap((op) => [op.name, ...op.arguments.map((a) => a.name)]));

/** A message of the addon with the names of ops and arguments as JavaScript has them. */
export const inCamel = (message: string) =>
  message.replace(/\w+_\w+/g, (word) => (names.has(word) ? camel(word) : word));

/** Every op by its name, as native/list/ops.h lists it; names are the list's in camel case. */
export const specs: ReadonlyMap<string, OpSpec> = new Map(
  native.ops.map((op, index) => [
    camel(op.name),
    {
      name: camel(op.name),
      index,
      dtypes: { cpu: op.cpu, cuda: op.cuda },
      arguments: op.arguments.map((a) => ({
        kind: a.kind,
        name: camel(a.name),
        dtype: a.type === "I32" ? "i32" : a.type === "F64" ? "f64" : "f32",
        rows: a.type === "ROWS",
        bf16Together: ["ROWS", "WEIGHT", "SAME"].includes(a.type),
        bf16Alone: ["EITHER", "WEIGHT"].includes(a.type),
        weight: a.type === "WEIGHT",
        dims: dims(a.dims),
        dimsText: a.dims,
        limit: a.limit,
        range: a,
        choices: a.kind === "choice" ? native.choices[a.type].map((item) => item.replaceAll("_", "-")) : [],
      })),
    },
  ]),
);
