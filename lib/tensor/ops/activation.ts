import { run, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

/**
 * Gaussian error linear unit (Hendrycks and Gimpel 2016): x Phi(x), exactly (`erf`) or by GPT-2's
 * approximation (`tanh`).
 * @param x f32 [...]
 * @returns f32 [...]
 */
export function gelu(x: Input, form: "tanh" | "erf" = "tanh"): Tensor {
  return run("gelu", { x, form }, ({ y: dy }, { x }) => ({ x: run("geluGrad", { dy, x, form }).dx })).y;
}

/**
 * silu(gate) * up, silu(x) = x / (1 + exp(-x)) (Shazeer 2020).
 * @param gate f32 [...]
 * @param up   f32 [...], the same shape
 * @returns f32 [...]
 */
export function swiglu(gate: Input, up: Input): Tensor {
  return run("swiglu", { gate, up }, ({ y: dy }, { gate, up }) => {
    const { dgate, dup } = run("swigluGrad", { dy, gate, up });
    return { gate: dgate, up: dup };
  }).y;
}
