import { kindOf } from "../device/arrays.js";
import { shown, typeError } from "../device/errors.js";
import { direct, NOBODY, zeros } from "./direct.js";
import { Tensor, withOwner } from "./tensor.js";

/**
 * One use of a parameter: uses are ordered by the loss term, then by their count within its forward
 * pass.
 */
export interface Use {
  term: number;
  count: number;
}

/**
 * A weight. It has one gradient accumulator per use (law of arithmetic, 5): per loss term and per
 * place in its forward pass, so that gradients do not depend on how an update is split into
 * micro-batches.
 */
export class Parameter {
  /** Whether training changes the weight. No gradient flows to it where this is false. */
  trainable = true;
  /** Counts the changes of what ops read. */
  version = 0;
  private readonly accumulators = new Map<number, Map<number, Tensor>>(); // by term, then by count
  private rounded: Tensor | undefined;

  constructor(
    /** The name in the model. */
    readonly name: string,
    /** The numbers, which the optimizer changes. */
    readonly value: Tensor,
  ) {
    if (!(value instanceof Tensor))
      throw typeError("ARGUMENT", `the value of ${shown(name)} is ${kindOf(value)}, wanted a tensor`);
  }

  /** What ops read: the value, or what it was rounded to. */
  get working(): Tensor {
    return this.rounded ?? this.value;
  }
  /**
   * Makes ops read the value rounded to bf16. Gradients and steps stay those of the f32 value. A
   * value that is bf16 stays as it is.
   */
  round(): void {
    if (this.value.dtype === "bf16") return;
    this.rounded ??= withOwner(NOBODY, () => Tensor.empty(this.value.shape, "bf16", this.value.device));
    direct("cast", this.value, this.rounded);
    this.version++;
  }
  /** Tells the parameter that its value has changed, so that what was made from it is made anew. */
  changed(): void {
    this.version++;
    if (this.rounded) this.round();
  }

  /** @internal The accumulator of a use, zero before the first gradient. */
  accumulator({ term, count }: Use): Tensor {
    let ofTerm = this.accumulators.get(term);
    if (!ofTerm) this.accumulators.set(term, (ofTerm = new Map()));
    let accumulator = ofTerm.get(count);
    if (!accumulator) ofTerm.set(count, (accumulator = zeros(this.value.shape, this.value.device)));
    return accumulator;
  }

  /**
   * The gradient: the accumulators added in the order of the uses, into the first of them.
   * Undefined if there is none.
   */
  gradient(): Tensor | undefined {
    let y: Tensor | undefined;
    for (const [, ofTerm] of ascending(this.accumulators))
      for (const [count, x] of ascending(ofTerm)) {
        if (!y) {
          y = x;
          continue;
        }
        direct("accumulate", x, y);
        x.dispose();
        ofTerm.delete(count);
      }
    return y;
  }

  /** Drops the gradient. */
  zeroGrad(): void {
    for (const ofTerm of this.accumulators.values()) for (const accumulator of ofTerm.values()) accumulator.dispose();
    this.accumulators.clear();
  }

  /** Frees the value and the gradient. */
  dispose(): void {
    this.zeroGrad();
    this.rounded?.dispose();
    this.value.dispose();
  }
}

const ascending = <T>(map: ReadonlyMap<number, T>) => [...map].sort(([a], [b]) => a - b);
