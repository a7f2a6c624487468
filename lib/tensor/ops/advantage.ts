import { optionsOf, run, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

/**
 * What `gae` gives, in the shape of the rewards. These are targets: no gradient flows from them to
 * rewards or values.
 */
export interface Advantages {
  /** f32 */
  advantages: Tensor;
  /** f32: advantages + values */
  returns: Tensor;
}

/**
 * Generalised advantage estimation over packed sequences (Schulman et al. 2016, eq. 16): delta[t] =
 * r[t] + gamma v[t+1] - v[t], A[t] = delta[t] + gamma lambda A[t+1], both 0 past the end.
 *
 * @param rewards   f32 [N]
 * @param values    f32 [N], before each token
 * @param cuSeqlens int32 [B+1]
 * @param options   `mask` int32 [N]: tokens that are not the policy's are passed over, as in verl
 * @returns advantages and returns = advantages + values, f32 [N]: targets, so no gradient flows
 *   from them to rewards or values
 * @throws RangeError `SHAPE`, `OFFSETS` if cuSeqlens is not monotone from 0 to N
 */
export function gae(
  rewards: Input,
  values: Input,
  cuSeqlens: Input,
  options: { gamma?: number; lambda?: number; mask?: Input } = {},
): Advantages {
  const { gamma = 1, lambda = 0.95, mask, ...unknown } = optionsOf("gae", options);
  const { advantages, returns } = run("gae", { ...unknown, rewards, values, mask, cuSeqlens, gamma, lambda });
  return { advantages, returns };
}

/**
 * Generalised advantage estimation over padded rows with a mask, verl's semantics; `gae` has the
 * formula.
 *
 * @param rewards f32 [B, T]
 * @param values  f32 [B, T]
 * @param mask    int32 [B, T]: 1 for the policy's tokens
 * @returns advantages and returns, f32 [B, T], 0 where masked: targets, so no gradient flows from
 *   them to rewards or values
 */
export function gaePadded(
  rewards: Input,
  values: Input,
  mask: Input,
  options: { gamma?: number; lambda?: number } = {},
): Advantages {
  const { gamma = 1, lambda = 0.95, ...unknown } = optionsOf("gaePadded", options);
  const { advantages, returns } = run("gaePadded", { ...unknown, rewards, values, mask, gamma, lambda });
  return { advantages, returns };
}
