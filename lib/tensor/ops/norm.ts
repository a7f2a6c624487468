import { optionsOf, run, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

/**
 * Layer normalisation (Ba et al. 2016): y = (x - mean) / sqrt(variance + eps) * gain + bias, over
 * the last dimension.
 *
 * @param x    f32 [N, C]
 * @param gain f32 [C]
 * @param bias f32 [C]; none is 0
 * @returns f32 [N, C]
 */
export function layerNorm(x: Input, gain: Input, bias?: Input, options: { eps?: number } = {}): Tensor {
  const { eps = 1e-5, ...unknown } = optionsOf("layerNorm", options);
  return run("layerNorm", { ...unknown, x, gain, bias, eps }, ({ y: dy }, { x, gain, mean, rstd }, wants) => {
    const { dx } = run("layerNormGrad", {
      dy,
      x,
      gain,
      mean,
      rstd,
      dgain: wants.into("gain"),
      dbias: wants.into("bias"),
    });
    return { x: dx };
  }).y;
}

/**
 * Root-mean-square normalisation (Zhang and Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * gain,
 * over the last dimension.
 *
 * @param x    f32 [N, C]
 * @param gain f32 [C]
 * @returns f32 [N, C]
 */
export function rmsNorm(x: Input, gain: Input, options: { eps?: number } = {}): Tensor {
  const { eps = 1e-6, ...unknown } = optionsOf("rmsNorm", options);
  return run("rmsNorm", { ...unknown, x, gain, eps }, ({ y: dy }, { x, gain, rstd }, wants) => {
    const { dx } = run("rmsNormGrad", { dy, x, gain, rstd, dgain: wants.into("gain") });
    return { x: dx };
  }).y;
}
