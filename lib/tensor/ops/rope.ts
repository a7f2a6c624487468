import { run, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

/**
 * Rotary position embedding (Su et al. 2021), pairs (d, d + R) as in Llama: each pair is rotated by
 * position * inverseFrequency[d].
 *
 * @param x                f32 [N, H, D]
 * @param positions        int32 [N]
 * @param inverseFrequency f32 [R], R <= D / 2; dimensions from 2R on are left as they are
 * @returns f32 [N, H, D]
 */
export function rope(x: Input, positions: Input, inverseFrequency: Input): Tensor {
  return run("rope", { x, positions, inverseFrequency, inverse: 0 }, ({ y: dy }, { positions, inverseFrequency }) => ({
    x: run("rope", { x: dy, positions, inverseFrequency, inverse: 1 }).y,
  })).y;
}
