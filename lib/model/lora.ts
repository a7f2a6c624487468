import { rangeError, typeError } from "../device/errors.js";
import type { ModelConfig } from "./config.js";

/** Linear layers of a block: query, key, value, the attention's output, and the MLP's. */
export const LORA_TARGETS = ["q", "k", "v", "o", "gate", "up", "down"] as const;
/** One of the linear layers that may have an adapter. */
export type LoraTarget = (typeof LORA_TARGETS)[number];

/**
 * Low-rank adaptation (Hu et al. 2021): y = x W^T + alpha / rank (x A^T) B^T. W [O, I] is frozen, A
 * [rank, I] and B [O, rank] are trained. In GPT-2, whose query, key and value are one layer of 3 C
 * outputs, the three share their A.
 */
export interface Lora {
  /** Rows of A and columns of B; from 1. */
  rank: number;
  /** The product of the factors is scaled by alpha / rank; above 0. */
  alpha: number;
  /** The layers that have an adapter, in every block. */
  targets: readonly LoraTarget[];
}

/** Options of a LoRA adapter. */
export interface LoraOptions extends Omit<Lora, "targets"> {
  /**
   * The layers that get an adapter; `all-linear`, the default, means every one that the model has.
   */
  targets?: "all-linear" | readonly LoraTarget[];
}

/**
 * Checks the options of an adapter against a model. @throws RangeError `RANGE` for a rank or alpha
 * that is none, TypeError `LORA` for a target that the model does not have
 */
export function loraOf({ kind, activation }: ModelConfig, { rank, alpha, targets = "all-linear" }: LoraOptions): Lora {
  if (!Number.isInteger(rank) || rank < 1) throw rangeError("RANGE", `rank is ${rank}, wanted a whole number from 1`);
  if (!(alpha > 0 && alpha < Infinity)) throw rangeError("RANGE", `alpha is ${alpha}, wanted a number above 0`);
  const known = LORA_TARGETS.filter((target) => target !== "gate" || activation === "swiglu");
  if (targets === "all-linear") return { rank, alpha, targets: known };
  const unknown = targets.find((target) => !known.includes(target));
  if (unknown !== undefined || targets.length === 0)
    throw typeError(
      "LORA",
      `targets is [${targets.join(", ")}], wanted some of ${known.join(", ")}, which this model has`,
    );
  const joined = ["q", "k", "v"].filter((name) => targets.includes(name as LoraTarget)).length;
  if (kind === "gpt2" && joined % 3 !== 0)
    throw typeError(
      "LORA",
      `targets is [${targets.join(", ")}], wanted all of q, k, v or none: in gpt2 they are one layer`,
    );
  return { rank, alpha, targets: known.filter((target) => targets.includes(target)) };
}

/** The name of the A that a layer, `layers.0.q`, reads. */
export const loraA = (layer: string, { kind }: ModelConfig) =>
  `${kind === "gpt2" ? layer.replace(/\.[qkv]$/, ".qkv") : layer}.loraA`;

/**
 * The factors of an adapter: A is drawn uniformly from +- `bound` (He et al. 2015, as PEFT has it),
 * B begins at 0.
 */
export function loraShapes(
  config: ModelConfig,
  { rank, targets }: Lora,
): { name: string; shape: number[]; bound: number }[] {
  const { width: C, mlp: F, headSize: D } = config;
  const [Q, K] = [config.heads * D, config.kvHeads * D];
  const sizes: Record<LoraTarget, [O: number, I: number]> = {
    q: [Q, C],
    k: [K, C],
    v: [K, C],
    o: [C, Q],
    gate: [F, C],
    up: [F, C],
    down: [C, F],
  };
  const shapes = new Map<string, { name: string; shape: number[]; bound: number }>();
  for (let i = 0; i < config.layers; i++)
    for (const target of targets) {
      const [layer, [O, I]] = [`layers.${i}.${target}`, sizes[target]];
      const name = loraA(layer, config);
      shapes.set(name, { name, shape: [rank, I], bound: 1 / Math.sqrt(I) });
      shapes.set(`${layer}.loraB`, { name: `${layer}.loraB`, shape: [O, rank], bound: 0 });
    }
  return [...shapes.values()];
}
