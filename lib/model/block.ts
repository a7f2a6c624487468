import { addTo } from "../tensor/ops/elementwise.js";
import * as ops from "../tensor/ops/index.js";
import { forget } from "../tensor/tape.js";
import type { Tensor } from "../tensor/tensor.js";
import { mlp } from "./mlp.js";
import type { Weights } from "./weights.js";

/** How queries meet keys and values in a layer: all at once, or against a cache. */
export type Attend = (layer: number, q: Tensor, k: Tensor, v: Tensor) => Tensor;

/** What the layers of one pass share. */
export interface Pass {
  /** int32 [N]: the place of each token in its sequence */
  at: Tensor;
  attend: Attend;
  /** f32 [D / 2], radians per position; undefined where positions are learned */
  inverseFrequency?: Tensor;
  /** int32 [K]: after the last layer's keys and values, only these rows are computed */
  wanted?: Tensor;
}

/**
 * A layer: x + attention(norm(x)), then the same with the MLP. f32 [N, C] to f32 [N, C], or [K, C]
 * where rows are chosen.
 */
export function block(model: Weights, i: number, x: Tensor, { at, attend, inverseFrequency, wanted }: Pass): Tensor {
  const { config } = model;
  const layer = `layers.${i}`;
  const N = at.size;
  const heads = (x: Tensor, count: number) => ops.reshape(x, [N, count, config.headSize]);
  const kept = (x: Tensor) => (wanted && i === config.layers - 1 ? ops.embedding(wanted, x) : x);
  const a = model.normed(x, `${layer}.attentionNorm`);
  const rotated = (name: "q" | "k", count: number) => {
    const flat = model.linear(a, `${layer}.${name}`);
    const x = normedHeads(model, heads(flat, count), `${layer}.${name}Norm`);
    if (!inverseFrequency) return x;
    const y = ops.rope(x, at, inverseFrequency);
    if (!config.qkNorm) for (const one of [flat, x]) one.dispose(); // no gradient needs their numbers
    return y;
  };
  const q = rotated("q", config.heads);
  const k = rotated("k", config.kvHeads);
  const v = heads(model.linear(a, `${layer}.v`), config.kvHeads);
  forget(a);
  const o = ops.reshape(attend(i, q, k, v), [N, config.heads * config.headSize]);
  const y = addTo(model.linear(kept(o), `${layer}.o`), kept(x));
  return addTo(mlp(model, model.normed(y, `${layer}.mlpNorm`), layer), y);
}

/** Queries or keys, f32 [N, H, D], normed head by head where the model does so (Qwen3). */
function normedHeads(model: Weights, x: Tensor, name: string): Tensor {
  const { qkNorm, headSize } = model.config;
  if (!qkNorm) return x;
  return ops.reshape(model.normed(ops.reshape(x, [x.size / headSize, headSize]), name), x.shape);
}
