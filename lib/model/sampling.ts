import { rangeError } from "../device/errors.js";
import { word } from "../device/philox.js";

/**
 * How completions are sampled: temperature, then top-k, top-p, min-p on what is left, in this
 * order.
 */
export interface SamplingOptions {
  /** The most tokens that a completion may have. */
  maxTokens: number;
  /** Divides the logits; 0 takes the likeliest token. 1 by default. */
  temperature?: number;
  /** The k likeliest tokens stay; 0 is off, the default. */
  topK?: number;
  /**
   * The likeliest tokens stay until they have this probability (Holtzman et al. 2020); 1 is off,
   * the default.
   */
  topP?: number;
  /**
   * Tokens of less than this share of the likeliest one's probability go; 0 is off, the default.
   */
  minP?: number;
  /** A completion ends with one of these ids. */
  stop?: readonly number[];
  /** The seed of the random numbers: a whole number from 0 to 2^32 - 1. */
  seed: number;
  /** Part of the random counter: the update that samples. */
  update?: number;
  /** Sequences in flight at once, 64 by default: memory and speed, no bit of a completion. */
  slots?: number;
}

/** @throws RangeError `RANGE` for an option outside its range */
export function checkSampling(options: SamplingOptions): void {
  const { maxTokens, temperature = 1, topK = 0, topP = 1, minP = 0, seed, update = 0, slots = 64 } = options;
  const within = (name: string, value: number, holds: boolean, wanted: string) => {
    if (!holds) throw rangeError("RANGE", `${name} is ${value}, wanted ${wanted}`);
  };
  within("maxTokens", maxTokens, Number.isInteger(maxTokens) && maxTokens >= 1, "a whole number from 1");
  within("slots", slots, Number.isInteger(slots) && slots >= 1, "a whole number from 1");
  within(
    "temperature",
    temperature,
    temperature === 0 || (temperature >= 2 ** -127 && temperature <= 2 ** 120),
    "0 or a number from 2^-127 to 2^120",
  );
  within("topK", topK, Number.isInteger(topK) && topK >= 0, "a whole number from 0");
  within("topP", topP, topP > 0 && topP <= 1, "a number above 0, 1 at most");
  within("minP", minP, minP >= 0 && minP <= 1, "a number from 0 to 1");
  word("seed", seed);
  word("update", update);
}
