import type { Parameter } from "../tensor/parameter.js";
import { pack } from "../tensor/ops/linear.js";
import type { Tensor } from "../tensor/tensor.js";

/** Matrices in the panels that the kernels of a CPU read, for as long as somebody holds them. */
export class Panels {
  private readonly kept = new Map<Parameter, { version: number; panel: Tensor }>();
  private holders = 0;

  /**
   * Packs these weights until what it returns is disposed; those that are packed already and did
   * not change stay as they are.
   */
  hold(weights: readonly Parameter[]): Disposable {
    for (const weight of weights) {
      const { working, version } = weight;
      const before = this.kept.get(weight);
      if (before?.version === version) continue;
      before?.panel.dispose();
      this.kept.set(weight, { version, panel: pack(working) });
    }
    this.holders++;
    return {
      [Symbol.dispose]: () => {
        if (--this.holders === 0) this.dispose();
      },
    };
  }

  /** The panels of a weight, if they are held and it did not change since. */
  of(weight: Parameter): Tensor | undefined {
    const kept = this.kept.get(weight);
    return kept?.version === weight.version ? kept.panel : undefined;
  }

  /** Frees all panels. */
  dispose(): void {
    for (const { panel } of this.kept.values()) panel.dispose();
    this.kept.clear();
  }
}
