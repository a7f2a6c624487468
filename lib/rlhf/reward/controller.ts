import { rangeError, typeError } from "../../device/errors.js";

/** The coefficient of the KL in the reward. */
export interface KlController {
  /** Per nat. */
  coef: number;
  /**
   * Moves `coef` after an update.
   * @param kl       mean KL per completion, nats
   * @param episodes how many completions it is the mean of
   */
  observe(kl: number, episodes: number): void;
}

/**
 * Fixed, or adaptive as in Ziegler et al. 2019: proportional to the error, clipped to +-20 %, over `klHorizon` episodes, toward `klTarget` nats.
 * @throws RangeError `RANGE` for a klCoef below 0, and where it is adaptive unless klTarget and klHorizon are above 0; TypeError `CHOICE`
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
