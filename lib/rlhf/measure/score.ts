import type { Packed } from "../../model/packed.js";
import type { HiddenOptions, Transformer } from "../../model/transformer.js";
import { run } from "../../tensor/op.js";
import { scope, Tensor } from "../../tensor/tensor.js";
import type { Batch } from "../batch/batch.js";
import type { Episode } from "../batch/episode.js";
import { packEpisodes, packWhole, split } from "../batch/pack.js";
import { forwardParts } from "../batch/units.js";

/** The model's score at the rows of a batch: f32 [rows]. */
export function scoreOf(model: Transformer, batch: Packed & { rows: Int32Array }, options?: HiddenOptions): Tensor {
  const { hidden, rows } = model.hiddenRows(batch, options);
  return model.score(hidden, rows);
}

/**
 * The score of whole episodes, at their last token.
 * @param model one with a score for a head
 * @returns f32 [episodes]
 * @throws RangeError `EMPTY` for a completion without tokens, `ID`
 */
export async function scores(
  model: Transformer,
  episodes: readonly Episode[],
  { microBatch = 64, sharePrompts = true } = {},
): Promise<Float32Array> {
  using all = Tensor.empty([episodes.length], "f32", model.device);
  let at = 0;
  for (const part of forwardParts(episodes, microBatch, sharePrompts)) {
    const batch = packWhole(part);
    scope(() => {
      const { hidden, rows } = model.hiddenRows(batch);
      const value = all.rows(at, (at += batch.rows.length));
      run("score", { h: hidden, weight: model.parameter("score"), rows, value });
    });
  }
  return (await all.read()) as Float32Array;
}

/**
 * The value before each token of the completions.
 * @param model one with a score for a head
 * @returns per episode, f32 [its completion's tokens]
 * @throws RangeError `EMPTY` for an episode without a prompt or a completion, `ID`
 */
export async function values(
  model: Transformer,
  episodes: readonly Episode[],
  { microBatch = 64, sharePrompts = true } = {},
): Promise<Float32Array[]> {
  const all: Float32Array[] = [];
  for (const part of forwardParts(episodes, microBatch, sharePrompts)) {
    const batch = packEpisodes(part);
    using value = scope(() => scoreOf(model, batch));
    for (const one of split((await value.read()) as Float32Array, batch.cuRows)) all.push(one);
  }
  return all;
}

/** Sets the column `values` to the critic's value before each token of a batch. */
export function setValues(batch: Batch, critic: Transformer): void {
  batch.measure("values", ({ packed }, value) => {
    const { hidden, rows } = critic.hiddenRows(packed);
    run("score", { h: hidden, weight: critic.parameter("score"), rows, value });
  });
}
