import { z } from "zod";
import { rangeError, shown, typeError, type CodedError } from "../device/errors.js";

// The options of the algorithms. Each is declared once, with its range, its default and what it means.
// The command line, the configuration file, its checks, the docs and the library's defaults come from there.

/** A whole number from `least`. */
export const whole = (least: number) => z.number().int().min(least);
/** A number above 0. */
export const positive = z.number().positive();
/** A number from 0. */
export const atLeast0 = z.number().min(0);
/** A number from 0 to 1. */
export const share = z.number().min(0).max(1);
/** A number from 0 that infinity (`.inf` in YAML) switches off. */
export const limit = z.union([z.number().min(0), z.literal(Infinity)]);

/** Options of the optimizer and of the learning rate. */
export const optimizerOptions = {
  betas: z.tuple([share, share]).readonly().default([0.9, 0.99]).describe("AdamW's decay rates of the two moments"),
  eps: positive.default(1e-8).describe("AdamW's eps, added to the root of the second moment"),
  weightDecay: atLeast0.default(0).describe("decoupled, on matrices only"),
  clipNorm: limit.default(1).describe("global gradient norm at most; .inf is off"),
  schedule: z.enum(["constant", "linear", "cosine"]).default("cosine").describe("the learning rate after the warm-up"),
  warmup: whole(0).default(0).describe("steps of linear rise"),
};

/** Options that bound the memory of a training step. `units` are what a micro-batch holds. */
export const memoryOptions = (units: string) => ({
  microBatch: whole(1).default(32).describe(`${units} at once; bounds memory, changes no bit`),
  recompute: z
    .boolean()
    .default(false)
    .describe("the backward pass runs each layer again instead of keeping it: memory for speed, changes no bit"),
  sharePrompts: z
    .boolean()
    .default(true)
    .describe("a prompt is computed once for what follows it: less memory, faster; gradients agree to rounding"),
});

/** Options of sampling, as `SamplingOptions` has them. */
export const samplingOptions = {
  maxTokens: whole(1).default(24).describe("tokens of a completion at most"),
  temperature: atLeast0.default(1).describe("0 takes the likeliest token"),
  topK: whole(0).default(0).describe("the likeliest tokens that stay; 0 is off"),
  topP: z
    .number()
    .gt(0)
    .max(1)
    .default(1)
    .describe("the likeliest tokens stay until they have this probability; 1 is off"),
  minP: share.default(0).describe("tokens below this share of the likeliest one's probability go; 0 is off"),
};

/** The dtype of the weights that a model computes with. */
export const weightsOption = z.enum(["f32", "bf16"]).default("f32");

/** What an option means, in words; another default does not change it. */
export function meaningOf(type: z.core.$ZodType): string | undefined {
  const { description } = z.globalRegistry.get(type) ?? {};
  const { innerType } = type._zod.def as { innerType?: z.core.$ZodType };
  return description ?? (innerType && meaningOf(innerType));
}

/** A list of options: a strict object of zod types with defaults. */
export type OptionList = z.ZodObject;

/**
 * The options with their defaults, each in its range.
 * @param what who takes them, for the message
 * @throws TypeError `ARGUMENT` for an unknown name or another type, RangeError `RANGE` for a number outside its range
 */
export function resolve<T extends OptionList>(what: string, list: T, given: z.input<T>): z.output<T> {
  if (typeof given !== "object" || given === null)
    throw typeError("ARGUMENT", `${what}: options are ${shown(given)}, wanted an object`);
  const result = list.safeParse(given);
  if (result.success) return result.data;
  throw faultOf(what, result.error.issues[0], given, Object.keys(list.shape));
}

/** Picks the options of a list. A section has the options of the loop beside those of its material. */
export function picked<T extends OptionList>(list: T, options: Record<string, unknown>): z.input<T> {
  const own = Object.entries(options).filter(([name]) => name in list.shape);
  return Object.fromEntries(own) as z.input<T>;
}

function faultOf(what: string, issue: z.core.$ZodIssue, given: object, known: string[]): CodedError {
  if (issue.code === "unrecognized_keys") {
    const [key] = issue.keys;
    return typeError(
      "ARGUMENT",
      `${what}: there is no option "${key}", did you mean ${nearest(key, known) ?? `one of ${known.join(", ")}`}?`,
    );
  }
  const text = `${what}: ${issue.path.join(".")} is ${shown(valueAt(given, issue.path))}, wanted ${wanted(issue)}`;
  const isRange = issue.code === "too_small" || issue.code === "too_big" || issue.code === "invalid_union";
  return isRange ? rangeError("RANGE", text) : typeError("ARGUMENT", text);
}

/** What stands at a path of nested options. */
export const valueAt = (options: unknown, path: readonly PropertyKey[]): unknown =>
  path.reduce<unknown>((at, name) => (at as Record<PropertyKey, unknown> | undefined)?.[name], options);

/** What an option takes, in words. */
export const wanted = ({ message }: z.core.$ZodIssue): string =>
  message
    .replace(/^Invalid input: expected /, "")
    .replace(/^Invalid option: expected /, "")
    .replace(/, received .*$/, "")
    .replace(/^Too (small|big): expected \w+ to be /, "a number ");

/** The name with the smallest edit distance (Levenshtein), if it is near. */
export function nearest(name: string, names: readonly string[]): string | undefined {
  const [best] = names
    .map((other) => ({ other, distance: distance(name.toLowerCase(), other.toLowerCase()) }))
    .sort((a, b) => a.distance - b.distance);
  return best && best.distance <= Math.max(2, name.length / 2) ? best.other : undefined;
}

function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + Number(a[i - 1] !== b[j - 1]));
    row = next;
  }
  return row[b.length];
}
