import * as ops from "../tensor/ops/index.js";
import { forget } from "../tensor/tape.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Weights } from "./weights.js";

/**
 * The MLP of a layer, `layers.0`: down(gelu(up(x))), or down(swiglu(gate(x), up(x))). f32 [N, C] to
 * f32 [N, C].
 */
export function mlp(model: Weights, x: Tensor, layer: string): Tensor {
  const { activation } = model.config;
  const up = model.linear(x, `${layer}.up`);
  const inner =
    activation === "swiglu"
      ? ops.swiglu(model.linear(x, `${layer}.gate`), up)
      : ops.gelu(up, activation === "gelu-erf" ? "erf" : "tanh");
  const y = model.linear(inner, `${layer}.down`);
  forget(x, inner);
  return y;
}
