import type { Device } from "../../device/device.js";
import { Tensor } from "../tensor.js";

/** What each loss adds to its statistics, in the order of the list of ops. */
const NAMES = {
  /** `policyLoss`, `linearPolicyLoss`, `linearNll`: the first three as the loss is weighted, then sums over tokens. */
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
  /** `valueLoss`: the loss, then sums over tokens. */
  value: ["loss", "clipped", "value", "squaredError", "return", "squaredReturn", "tokens", "unused"],
  /** `preferenceLoss`: sums over pairs. */
  preference: ["loss", "wins", "difference", "chosen", "rejected", "pairs", "probability", "unused"],
} as const;

type Kind = keyof typeof NAMES;

/** The figures of a loss, by name. */
export type Stats<K extends Kind> = Record<(typeof NAMES)[K][number], number>;

/** Zeros for the statistics of a loss to be added to: f64, one number per name. */
export const zeroStats = (kind: Kind, on: Device): Tensor =>
  Tensor.from(new Float64Array(NAMES[kind].length), [NAMES[kind].length], on);

/** Reads the statistics of a loss, each by its name. */
export async function readStats<K extends Kind>(kind: K, stats: Tensor): Promise<Stats<K>> {
  const numbers = await stats.read();
  return Object.fromEntries(NAMES[kind].map((name, i) => [name, numbers[i]])) as Stats<K>;
}
