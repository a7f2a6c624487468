import { z } from "zod";
import type { Transformer } from "../../model/transformer.js";
import * as ops from "../../tensor/ops/index.js";
import { readStats, zeroStats } from "../../tensor/ops/stats.js";
import type { Tensor } from "../../tensor/tensor.js";
import { promptGroups, type Episode, type Group } from "../batch/episode.js";
import { packEpisodes } from "../batch/pack.js";
import { tokensIn } from "../batch/units.js";
import { Learner } from "../learn/learner.js";
import { accumulate, finite } from "../learn/update.js";
import { memoryOptions, optimizerOptions, positive, resolve, whole } from "../options.js";

/** The options of supervised fine-tuning. @hidden */
export const sftOptions = z.strictObject({
  steps: whole(1).default(1350).describe("optimizer steps"),
  learningRate: positive.default(3e-3).describe("the highest learning rate"),
  ...optimizerOptions,
  weightDecay: optimizerOptions.weightDecay.default(0.1),
  warmup: optimizerOptions.warmup.default(20),
  ...memoryOptions("sequences"),
});

/** Options of supervised fine-tuning; `rlhf config` lists them with their defaults. */
export type SftOptions = z.input<typeof sftOptions>;

/** What a step of supervised fine-tuning tells. */
export interface SftMetrics {
  /** Counted from 1. */
  step: number;
  /** Mean negative log-prob of the completion tokens, nats. */
  loss: number;
  /** Norm of the gradient of all weights before clipping. */
  gradientNorm: number;
  /** The learning rate of this step. */
  learningRate: number;
  /** Completion tokens of the batch. */
  tokens: number;
}

/** The optimizer and the counters of supervised fine-tuning, for `sft` to begin or go on with. */
export const sftLearner = (model: Transformer, options: SftOptions): Learner =>
  new Learner({ model }, resolve("sft", sftOptions, options));

/** The loss of next-token prediction: the mean negative log-prob of the completion tokens, times `scale`. */
export function nll(
  model: Transformer,
  part: readonly (Episode | Group)[],
  denominator: number,
  stats: Tensor,
  { scale = 1, recompute = false }: { scale?: number; recompute?: boolean } = {},
): Tensor {
  const batch = packEpisodes(part);
  const { hidden, rows } = model.hiddenRows(batch, { recompute });
  return ops.linearNll(hidden, model.head, rows, batch.y, { cuSeqlens: batch.cuRows, denominator, scale, stats }).loss;
}

/**
 * Supervised fine-tuning, and pre-training where a prompt is one token: one optimizer step per batch, then its metrics.
 *
 * @param batches the episodes of a step, counted from 0; the loss is the mean over their completions' tokens
 * @param options `SftOptions`; what is left out has its default
 * @param given   a learner, which goes on where it stands; without one, the loop has its own
 * @throws RangeError `NAN` for a loss or gradient that is not finite; its `batch` is the offending one, the weights are
 *   the last good ones
 */
export async function* sft(
  model: Transformer,
  batches: (step: number) => readonly Episode[],
  options: SftOptions = {},
  given?: Learner,
): AsyncGenerator<SftMetrics> {
  const { microBatch, sharePrompts, recompute } = resolve("sft", sftOptions, options);
  using own = given ? undefined : sftLearner(model, options);
  const learner = given ?? own!;
  for (const step of learner.rounds()) {
    const episodes = batches(step);
    const tokens = tokensIn(episodes);
    using stats = zeroStats("policy", model.device);
    const units = promptGroups(episodes, sharePrompts);
    accumulate(units, microBatch, (part) => nll(model, part, tokens, stats, { recompute }));
    const learningRate = learner.learningRate("model");
    const gradientNorm = await learner.step("model", episodes);
    const { loss } = await readStats("policy", stats);
    yield learner.endRound({ loss: finite("the loss", loss, step + 1, episodes), gradientNorm, learningRate, tokens });
  }
}
