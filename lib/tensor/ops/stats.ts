import type { Device } from "../../device/device.js";
import { rangeError, shown, typeError } from "../../device/errors.js";
import { wantTensor } from "../op.js";
import { Tensor } from "../tensor.js";

/** Figures of `policyLoss`, `linearPolicyLoss` and `linearNll`, in the order of the list of ops. */
export interface PolicyStats {
  /** The whole loss. */
  loss: number;
  /** The part of the loss that the advantages make. */
  policyLoss: number;
  /** The KL to the reference, weighted as the loss, before its coefficient. */
  klLoss: number;
  /** Sum of the entropies of the tokens, nats. */
  entropy: number;
  /** Tokens whose ratio was clipped. */
  clipped: number;
  /** Tokens that the dual clip bounded. */
  dualClipped: number;
  /** Sum over tokens of the k1 estimate of the KL to the old policy, nats. */
  k1: number;
  /** Sum over tokens of the k3 estimate of the KL to the old policy, nats. */
  k3: number;
  /** Sum of the ratios of the tokens. */
  ratio: number;
  /** Tokens that count. */
  tokens: number;
  /** Tokens whose ratio is not 1. */
  moved: number;
  /** Sequences with a token that counts. */
  sequences: number;
}

/** Figures of `valueLoss`, in the order of the list of ops. */
export interface ValueStats {
  /** The loss. */
  loss: number;
  /** Tokens whose value was clipped. */
  clipped: number;
  /** Sum of the values. */
  value: number;
  /** Sum of the squared differences from the returns. */
  squaredError: number;
  /** Sum of the returns. */
  return: number;
  /** Sum of the squared returns. */
  squaredReturn: number;
  /** Tokens that count. */
  tokens: number;
}

/** Figures of `preferenceLoss`, sums over pairs in the order of the list of ops. */
export interface PreferenceStats {
  /** The loss. */
  loss: number;
  /** Pairs whose chosen one wins; a tie counts half. */
  wins: number;
  /** Sum of what the loss is a function of: the difference of the scores, with reference, beta and margin. */
  difference: number;
  /** Sum of the scores of the chosen, less those of the reference where there is one. */
  chosen: number;
  /** Sum of the scores of the rejected, less those of the reference where there is one. */
  rejected: number;
  /** Pairs. */
  pairs: number;
  /** Sum of the probabilities that the chosen is preferred. */
  probability: number;
}

/** The figures of each kind of loss. */
export interface LossStats {
  /** Figures of the losses of a policy. */
  policy: PolicyStats;
  /** Figures of the loss of values. */
  value: ValueStats;
  /** Figures of the loss of preferences. */
  preference: PreferenceStats;
}

const NAMES: { [K in keyof LossStats]: readonly (keyof LossStats[K])[] } = {
  policy: [
    "loss",
    "policyLoss",
    "klLoss",
    "entropy",
    "clipped",
    "dualClipped",
    "k1",
    "k3",
    "ratio",
    "tokens",
    "moved",
    "sequences",
  ],
  value: ["loss", "clipped", "value", "squaredError", "return", "squaredReturn", "tokens"],
  preference: ["loss", "wins", "difference", "chosen", "rejected", "pairs", "probability"],
};
const SIZES = { policy: 12, value: 8, preference: 8 };

/** A kind of loss that has statistics. @throws TypeError `CHOICE` for another one */
function known<K extends keyof LossStats>(what: string, kind: K): K {
  if (typeof kind !== "string" || !Object.hasOwn(SIZES, kind))
    throw typeError("CHOICE", `${what}: kind is ${shown(kind)}, wanted ${Object.keys(SIZES).join(", ")}`);
  return kind;
}

/**
 * Zeros for the statistics of a loss to be added to: its option `stats`, f64.
 * @throws TypeError `CHOICE` for another kind of loss, `DEVICE`
 */
export function zeroStats(kind: keyof LossStats, on: Device): Tensor {
  const size = SIZES[known("zeroStats", kind)];
  return Tensor.from(new Float64Array(size), [size], on);
}

/**
 * Reads the statistics of a loss, each by its name. Sums are to be divided by the tokens or pairs.
 * @param stats f64: the loss's option, or what it gave
 * @throws TypeError `CHOICE` for another kind of loss, `ARGUMENT` for what is no tensor, RangeError `SHAPE`
 */
export async function readStats<K extends keyof LossStats>(kind: K, stats: Tensor): Promise<LossStats[K]> {
  const size = SIZES[known("readStats", kind)];
  wantTensor("readStats: stats", stats);
  if (stats.dtype !== "f64" || stats.size !== size)
    throw rangeError("SHAPE", `readStats: stats is ${stats.dtype} [${stats.shape}], wanted f64 [${size}] of ${kind}`);
  const numbers = await stats.read();
  return Object.fromEntries(NAMES[kind].map((name, i) => [name, numbers[i]])) as unknown as LossStats[K];
}
