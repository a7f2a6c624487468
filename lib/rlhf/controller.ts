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

/** Fixed, or adaptive as in Ziegler et al. 2019: proportional to the error, clipped to +-20 %, over `klHorizon` episodes, toward `klTarget` nats. */
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
  if (klController === "fixed") return { coef: klCoef, observe: () => undefined };
  return {
    coef: klCoef,
    observe(kl, episodes) {
      const error = Math.max(-0.2, Math.min(0.2, kl / klTarget! - 1));
      this.coef *= 1 + (error * episodes) / klHorizon!;
    },
  };
}
