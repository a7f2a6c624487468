import { rangeError } from "../../device/errors.js";
import { optionsOf, run, shapeOfInput, type Input } from "../op.js";
import type { Tensor } from "../tensor.js";

/**
 * Causal grouped-query attention over packed sequences: softmax(scale q k^T) v, with online softmax
 * and memory O(N) (Dao et al. 2022). Query head h reads key/value head h / (H / G).
 *
 * @param q         f32 [N, H, D]
 * @param k         f32 [N, G, D], H a multiple of G
 * @param v         f32 [N, G, D]
 * @param cuSeqlens int32 [B+1], from 0 to N: where each sequence begins
 * @param options   `prefix` int32 [B]: the earlier sequence that each one continues, -1 for none;
 *   `scale` is 1 / sqrt(D) by default
 * @returns f32 [N, H, D]
 * @throws RangeError `SHAPE`, `OFFSETS` if cuSeqlens is not monotone from 0 to N
 */
export function attention(
  q: Input,
  k: Input,
  v: Input,
  cuSeqlens: Input,
  options: { prefix?: Input; scale?: number } = {},
): Tensor {
  const shape = shapeOf("q", q);
  const groups = shapeOf("k", k)[1];
  if (shape[1] % groups !== 0)
    throw rangeError("SHAPE", `attention: q has ${shape[1]} heads, wanted a multiple of k's ${groups}`);
  const { prefix, scale = 1 / Math.sqrt(shape[2]), ...unknown } = optionsOf("attention", options);
  return run(
    "attention",
    { ...unknown, q, k, v, cuSeqlens, prefix, scale },
    ({ o: dO }, { q, k, v, o, lse, cuSeqlens, prefix }) => {
      const { dq, dk, dv } = run("attentionGrad", { dO, q, k, v, o, lse, cuSeqlens, prefix, scale });
      return { q: dq, k: dk, v: dv };
    },
  ).o;
}

function shapeOf(name: string, x: Input): readonly number[] {
  const shape = shapeOfInput(`attention: ${name}`, x);
  if (shape.length !== 3)
    throw rangeError(
      "SHAPE",
      `attention: q, k and v have three dimensions [tokens, heads, head size], one has shape [${shape}]`,
    );
  return shape;
}
