import type { Device } from "../device/device.js";
import { run } from "../tensor/op.js";
import * as ops from "../tensor/ops/index.js";
import { Parameter } from "../tensor/parameter.js";
import { activeRecorder } from "../tensor/recorder.js";
import { Tensor } from "../tensor/tensor.js";
import type { ModelConfig } from "./config.js";
import { loraA, type Lora } from "./lora.js";
import { Panels } from "./panels.js";

/**
 * Name, shape and first values of each weight of a model: normal of this deviation, else `fill`.
 * Linear layers are [outputs, inputs].
 */
export function weightShapes(
  config: ModelConfig,
  head: "logits" | "score",
): { name: string; shape: number[]; deviation: number; fill: number }[] {
  const { width: C, headSize: D, mlp: F } = config;
  const shapes: { name: string; shape: number[]; deviation: number; fill: number }[] = [];
  // GPT-2: what is added to the residual stream is scaled by its depth
  const residual = 0.02 / Math.sqrt(2 * config.layers);
  const matrix = (name: string, shape: number[], deviation = 0.02) => shapes.push({ name, shape, deviation, fill: 0 });
  const vector = (name: string, size: number, fill = 0) => shapes.push({ name, shape: [size], deviation: 0, fill });
  const linear = (name: string, outputs: number, inputs: number, bias: boolean, deviation?: number) => {
    matrix(`${name}.weight`, [outputs, inputs], deviation);
    if (bias) vector(`${name}.bias`, outputs);
  };
  const norm = (name: string) => {
    vector(`${name}.gain`, C, 1);
    if (config.norm === "layer") vector(`${name}.bias`, C);
  };
  matrix("embedding", [config.vocabulary, C]);
  if (config.positions === "learned") matrix("positions", [config.context, C], 0.01);
  for (let i = 0; i < config.layers; i++) {
    const layer = `layers.${i}`;
    norm(`${layer}.attentionNorm`);
    linear(`${layer}.q`, config.heads * D, C, config.qkvBias);
    linear(`${layer}.k`, config.kvHeads * D, C, config.qkvBias);
    linear(`${layer}.v`, config.kvHeads * D, C, config.qkvBias);
    if (config.qkNorm) for (const name of ["qNorm", "kNorm"]) vector(`${layer}.${name}.gain`, D, 1);
    linear(`${layer}.o`, C, config.heads * D, config.outBias, residual);
    norm(`${layer}.mlpNorm`);
    if (config.activation === "swiglu") linear(`${layer}.gate`, F, C, config.mlpBias);
    linear(`${layer}.up`, F, C, config.mlpBias);
    linear(`${layer}.down`, C, F, config.mlpBias, residual);
  }
  norm("norm");
  if (head === "score") matrix("score", [1, C], 1 / Math.sqrt(C + 1)); // Stiennon et al. 2020
  else if (!config.tied) matrix("head", [config.vocabulary, C]);
  return shapes;
}

const isMatrix = ({ name, value }: Parameter) => value.shape.length === 2 && name !== "score";

/** The weights of a model, and its layers as they read them. */
export class Weights {
  /** The weights by name, in the order of `weightShapes`. */
  readonly parameters = new Map<string, Parameter>();
  private readonly panels = new Panels();

  constructor(
    /** The shape of the model. */
    readonly config: ModelConfig,
    /** What the model ends in: logits over the vocabulary, or one score. */
    readonly headKind: "logits" | "score",
    /** Where the weights lie. */
    readonly device: Device,
    /** The adapter, if there is one: A and B of each target are weights beside the others. */
    readonly lora?: Lora,
  ) {}

  /** Matrices but for the score's one row: they may be bf16. */
  get matrices(): Parameter[] {
    return [...this.parameters.values()].filter(isMatrix);
  }

  /**
   * Keeps the matrices, or the one of this name, in bf16 alone, rounded to nearest: for inference,
   * at half the memory. What is no matrix is f32.
   */
  toBf16(only?: string): void {
    for (const parameter of only === undefined ? [...this.parameters.values()] : [this.parameter(only)]) {
      const { name, value } = parameter;
      const dtype = isMatrix(parameter) ? "bf16" : "f32";
      if (value.dtype === dtype) continue;
      this.set(name, ops.cast(value, dtype));
      value.dispose();
    }
  }

  /** Puts a weight in its place, or in that of another, which is the caller's to free. */
  set(name: string, value: Tensor, trainable = true): void {
    const parameter = new Parameter(name, value);
    parameter.trainable = trainable;
    this.parameters.set(name, parameter);
  }

  /** What training changes. */
  get trained(): Parameter[] {
    return [...this.parameters.values()].filter(({ trainable }) => trainable);
  }

  /** The weight of this name, one of `weightShapes`. */
  parameter(name: string): Parameter {
    return this.parameters.get(name)!;
  }
  /** The weight that turns a hidden state into logits, [V, C]. */
  get head(): Parameter {
    return this.parameter(this.config.tied ? "embedding" : "head");
  }
  /** How many weights there are. */
  get size(): number {
    let size = 0;
    for (const { value } of this.parameters.values()) size += value.size;
    return size;
  }

  /**
   * Packs the linear layers for the kernels until what it returns is disposed: for many forward
   * passes over unchanged weights, at the cost of their memory. What is packed already is not
   * packed again unless it changed. A device that packs nothing does nothing.
   */
  packWeights(): Disposable {
    const read = this.matrices.filter(({ name }) => name !== "positions" && (name !== "embedding" || this.config.tied));
    return this.panels.hold(this.device.has("pack") ? read : []);
  }

  /** @internal A copy of a weight, f32. */
  copied(name: string): Tensor {
    const { value } = this.parameter(name);
    return run("cast", { x: value, y: Tensor.empty(value.shape, "f32", this.device) }).y;
  }
  /** @internal The linear layer of this name, `layers.0.q`, with its adapter. */
  linear(x: Tensor, name: string): Tensor {
    const [weight, bias] = [this.weight(`${name}.weight`), this.parameters.get(`${name}.bias`)];
    if (!this.lora || !this.parameters.has(`${name}.loraB`)) return ops.linear(x, weight, bias);
    const { alpha, rank } = this.lora;
    return ops.loraLinear(x, weight, bias, {
      a: this.weight(loraA(name, this.config)),
      b: this.weight(`${name}.loraB`),
      scale: alpha / rank,
    });
  }
  /** @internal A weight as ops read it: packed where it is and no tape records. */
  weight(name: string): Parameter | Tensor {
    const parameter = this.parameter(name);
    return activeRecorder() ? parameter : (this.panels.of(parameter) ?? parameter);
  }
  /** @internal The norm of this name, `layers.0.mlpNorm`. */
  normed(x: Tensor, name: string): Tensor {
    const gain = this.parameter(`${name}.gain`);
    const { normEps: eps } = this.config;
    return this.config.norm === "rms"
      ? ops.rmsNorm(x, gain, { eps })
      : ops.layerNorm(x, gain, this.parameter(`${name}.bias`), { eps });
  }

  /** Frees the weights. */
  dispose(): void {
    this.panels.dispose();
    for (const parameter of this.parameters.values()) parameter.dispose();
  }
}
