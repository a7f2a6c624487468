import { rangeError } from "../../device/errors.js";
import { math } from "../../device/native.js";
import { run } from "../../tensor/op.js";
import { zeros } from "../../tensor/direct.js";
import type { Parameter } from "../../tensor/parameter.js";
import { Tensor, type Data } from "../../tensor/tensor.js";

/** How AdamW steps. */
export interface AdamWOptions {
  /** Decay rates of the two moments; by default 0.9 and 0.999. */
  betas?: readonly [number, number];
  /** Added to the root of the second moment; by default 1e-8. */
  eps?: number;
  /** Decoupled, on matrices only; by default 0. */
  weightDecay?: number;
  /** Global gradient norm at most; Infinity is off. */
  clipNorm?: number;
}

/** A moment of a weight, as a checkpoint keeps it. */
export interface Moment {
  /** The shape of the weight. */
  shape: readonly number[];
  /** f32, row-major. */
  data: Data;
}

/** AdamW (Loshchilov and Hutter 2019) with global-norm clipping, in one pass over the weights. */
export class AdamW {
  /** Steps taken: one that was refused is none. */
  steps = 0;
  private readonly moments: { m: Tensor; v: Tensor }[];

  constructor(
    private readonly parameters: readonly Parameter[],
    private readonly options: AdamWOptions = {},
  ) {
    if (parameters.length === 0)
      throw rangeError("EMPTY", "there are no parameters to train: all are frozen, wanted at least one");
    this.moments = parameters.map(({ value }) => ({
      m: zeros(value.shape, value.device),
      v: zeros(value.shape, value.device),
    }));
  }

  /**
   * Steps with the gradients that the parameters hold, forgets them, and returns their global norm once it is known.
   * @throws RangeError `NAN` if a gradient is not finite: the weights are untouched then. If a gradient came from an op
   *   that failed, the error of that op
   */
  async step(learningRate: number): Promise<number> {
    const { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0, clipNorm = Infinity } = this.options;
    const { device } = this.parameters[0].value;
    const total = Tensor.from(new Float64Array(1), [1], device);
    const gradients = this.parameters.map((parameter) => parameter.gradient());
    for (const x of gradients) if (x) run("normSquared", { x, total });
    this.steps++;
    gradients.forEach((grad, i) => {
      if (!grad) return;
      const { value: weight } = this.parameters[i];
      run("adamw", {
        weight,
        grad,
        ...this.moments[i],
        normSquared: total,
        lr: learningRate,
        beta1: betas[0],
        beta2: betas[1],
        eps,
        weightDecay: weight.shape.length > 1 ? weightDecay : 0,
        maxNorm: clipNorm,
        step: this.steps,
      });
      this.parameters[i].changed();
    });
    try {
      const [squared] = await total.read(); // or the error of the op that spoilt a gradient
      if (Number.isFinite(squared)) return Math.sqrt(squared);
      this.untouched(gradients);
      const found = await this.notFinite(gradients);
      throw rangeError(
        "NAN",
        `step ${this.steps--}: adamw: the gradient norm is not finite${found}; the weights are as they were before it`,
      );
    } finally {
      total.dispose();
      for (const parameter of this.parameters) parameter.zeroGrad();
    }
  }

  /** Says so to the device, where `adamw` refused the norm: it leaves all numbers alone then. */
  private untouched(gradients: readonly (Tensor | undefined)[]): void {
    for (const [i, parameter] of this.parameters.entries()) {
      if (!gradients[i]) continue;
      const { m, v } = this.moments[i];
      for (const { device, address } of [parameter.value, m, v]) device.trust(address);
      parameter.changed();
    }
  }

  /** Which weights and gradients are not finite. */
  private async notFinite(gradients: readonly (Tensor | undefined)[]): Promise<string> {
    const isFinite = async (x: Tensor) => {
      using total = Tensor.from(new Float64Array(1), [1], x.device);
      run("normSquared", { x, total });
      return Number.isFinite((await total.read())[0]);
    };
    const names = [];
    for (const [i, { name, value }] of this.parameters.entries()) {
      if (!(await isFinite(value))) names.push(`the weight ${name}`);
      const gradient = gradients[i];
      if (gradient && !(await isFinite(gradient))) names.push(`the gradient of ${name}`);
    }
    if (names.length === 0) return "";
    const more = names.length > 4 ? ` and ${names.length - 4} more` : "";
    return `: not finite ${names.length > 1 ? "are" : "is"} ${names.slice(0, 4).join(", ")}${more}`;
  }

  /** First and second moments by the names of the weights, for a checkpoint. */
  async state(): Promise<Map<string, Moment>> {
    const state = new Map<string, Moment>();
    for (const [i, { name }] of this.parameters.entries())
      for (const [moment, tensor] of Object.entries(this.moments[i]))
        state.set(`${moment}.${name}`, { shape: tensor.shape, data: await tensor.read() });
    return state;
  }

  /** What `state` holds: names and shapes. */
  names(): (Pick<Moment, "shape"> & {
    /** `m.` or `v.` and the weight's. */
    name: string;
  })[] {
    return this.parameters.flatMap(({ name }, i) =>
      Object.entries(this.moments[i]).map(([moment, { shape }]) => ({ name: `${moment}.${name}`, shape })),
    );
  }

  /** Goes on from what `state` gave after so many steps. */
  restore(steps: number, state: ReadonlyMap<string, Pick<Moment, "data">>): void {
    this.steps = steps;
    this.parameters.forEach(({ name }, i) => {
      for (const [moment, tensor] of Object.entries(this.moments[i]))
        tensor.write(state.get(`${moment}.${name}`)!.data);
    });
  }

  /** Frees the moments. */
  dispose(): void {
    for (const { m, v } of this.moments) {
      m.dispose();
      v.dispose();
    }
  }
  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The learning rate over a run. */
export interface Schedule {
  /** The highest. */
  learningRate: number;
  /** After the warm-up. */
  schedule: "constant" | "linear" | "cosine";
  /** Steps of linear rise at the start. */
  warmup: number;
  /** Optimizer steps in all. */
  steps: number;
}

/** The learning rate of a step, counted from 0: linear warm-up, then constant or falling to 0. */
export function learningRateAt(step: number, { learningRate, schedule, warmup, steps }: Schedule): number {
  if (step < warmup) return (learningRate * (step + 1)) / warmup;
  const progress = (step - warmup) / Math.max(1, steps - warmup);
  if (schedule === "linear") return learningRate * (1 - progress);
  if (schedule === "cosine") return learningRate * 0.5 * (1 + math.cos(Math.PI * progress));
  return learningRate;
}
