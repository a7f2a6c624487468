import { rangeError, typeError } from "../../device/errors.js";
import type { Completion } from "../../model/generate.js";

/** The coefficient of the KL in the reward. */
export interface KlController {
  /** What a nat costs. */
  coef: number;
  /**
   * Moves `coef` after an update.
   * @param kl       mean KL per completion, nats
   * @param episodes how many completions it is the mean of
   */
  observe(kl: number, episodes: number): void;
}

/**
 * The coefficient of the KL: fixed, or adaptive as in Ziegler et al. 2019. The adaptive one moves toward `klTarget`
 * nats over `klHorizon` episodes, in proportion to the error, which is clipped to +-20 %.
 * @throws RangeError `RANGE` for a klCoef below 0, or an adaptive one without klTarget and klHorizon above 0
 * @throws TypeError `CHOICE` for another controller
 */
export function klController({
  klCoef,
  klController,
  klTarget,
  klHorizon,
}: {
  klCoef: number;
  klController: "fixed" | "adaptive";
  klTarget?: number;
  klHorizon?: number;
}): KlController {
  if (!(klCoef >= 0 && klCoef < Infinity)) throw rangeError("RANGE", `klCoef is ${klCoef}, wanted a number from 0`);
  if (klController === "fixed") return { coef: klCoef, observe: () => undefined };
  if (klController !== "adaptive")
    throw typeError("CHOICE", `klController is "${String(klController)}", wanted fixed or adaptive`);
  const above0 = (name: string, value = NaN) => {
    if (!(value > 0 && value < Infinity))
      throw rangeError("RANGE", `${name} is ${value}, wanted a number above 0 where klController is adaptive`);
    return value;
  };
  const [target, horizon] = [above0("klTarget", klTarget), above0("klHorizon", klHorizon)];
  return {
    coef: klCoef,
    observe(kl, episodes) {
      const error = Math.max(-0.2, Math.min(0.2, kl / target - 1));
      this.coef *= 1 + (error * episodes) / horizon;
    },
  };
}

/** Mean and deviation of all that was observed (Welford 1962). */
export class RunningMoments {
  constructor(
    /** Numbers observed. */
    public count = 0,
    /** The mean of the numbers. */
    public mean = 0,
    /** Sum of the squared differences from the mean. */
    public squares = 0,
  ) {}
  /** Takes x in. */
  observe(x: number): void {
    this.count++;
    const delta = x - this.mean;
    this.mean += delta / this.count;
    this.squares += delta * (x - this.mean);
  }
  /** (x - mean) / (deviation + 1e-8), the deviation unbiased. */
  normalise(x: number): number {
    const deviation = this.count > 1 ? Math.sqrt(this.squares / (this.count - 1)) : 0;
    return (x - this.mean) / (deviation + 1e-8);
  }
}

/** How scores are shaped before a policy learns from them. */
export interface ShapeOptions {
  /** Scores are divided by their running deviation after their running mean is taken off. */
  rewardNormalise?: boolean;
  /** Scores are clipped to +- this after that. Infinity is off. */
  rewardClip?: number;
  /** Taken off the score of a completion that did not stop by itself. */
  missingEosPenalty?: number;
}

/** The scores that a policy learns from: normalised, clipped, less the penalty for not ending. */
export function shapeScores(
  raw: Float32Array,
  completions: readonly Pick<Completion, "stopped">[],
  { rewardNormalise = false, rewardClip = Infinity, missingEosPenalty = 0 }: ShapeOptions,
  moments: RunningMoments,
): Float32Array {
  if (rewardNormalise) for (const score of raw) moments.observe(score);
  return raw.map((score, i) => {
    const normalised = rewardNormalise ? moments.normalise(score) : score;
    const clipped = Math.max(-rewardClip, Math.min(rewardClip, normalised));
    return completions[i].stopped ? clipped : clipped - missingEosPenalty;
  });
}
