import type { Transformer } from "../../model/transformer.js";
import * as ops from "../../tensor/ops/index.js";
import { Tensor } from "../../tensor/tensor.js";
import { packEpisodes, promptGroups, type Episode, type Group } from "../batch/episode.js";
import { AdamW, learningRateAt, type AdamWOptions, type Schedule } from "../learn/optimizer.js";
import { accumulate, finite, stepOn } from "../learn/update.js";

/** Options of supervised fine-tuning. */
export interface SftConfig extends Schedule, AdamWOptions {
  /** Episodes of a micro-batch; all of them by default. Bounds memory, changes no bit. */
  microBatch?: number;
  /** Backward runs each layer again instead of keeping what it computed. Bounds memory, changes no bit. */
  recompute?: boolean;
  /** Episodes that follow one another with the same prompt share its computation: on by default. Memory and speed; gradients agree to rounding. */
  sharePrompts?: boolean;
}

/** What a step tells. */
export interface SftMetrics {
  /** Counted from 1. */
  step: number;
  /** Mean negative log-prob of the completion tokens, nats. */
  loss: number;
  /** Of all weights, before it was clipped. */
  gradientNorm: number;
  /** Of this step. */
  learningRate: number;
  /** Completion tokens of the batch. */
  tokens: number;
}

/** The loss of next-token prediction over an update: mean negative log-prob of the completion tokens times `scale`. */
export function nll(
  model: Transformer,
  part: readonly (Episode | Group)[],
  denominator: number,
  stats: Tensor,
  { scale = 1, recompute = false }: { scale?: number; recompute?: boolean } = {},
): Tensor {
  const batch = packEpisodes(part);
  const { hidden, rows } = model.scored(batch, { recompute });
  return ops.linearNll(hidden, model.head, rows, batch.y, { cuSeqlens: batch.cuRows, denominator, scale, stats }).loss;
}

export const tokensIn = (episodes: readonly Episode[]) =>
  episodes.reduce((n, { completion }) => n + completion.length, 0);

/**
 * Supervised fine-tuning (and, with empty-handed prompts, pre-training): one optimizer step per batch, and its metrics.
 *
 * @param batches   the episodes of a step, counted from 0; the loss is the mean over their completions' tokens
 * @param given     an optimizer, which goes on where it stands; without one, the loop has its own
 * @throws RangeError `NAN` for a loss or gradient that is not finite; its `batch` is the offending one, the weights are the last good ones
 */
export async function* sft(
  model: Transformer,
  batches: (step: number) => readonly Episode[],
  config: SftConfig,
  given?: AdamW,
): AsyncGenerator<SftMetrics> {
  using own = given ? undefined : new AdamW(model.trained, config);
  const optimizer = given ?? own!;
  while (optimizer.steps < config.steps) {
    const step = optimizer.steps;
    const episodes = batches(step);
    const tokens = tokensIn(episodes);
    using stats = Tensor.from(new Float64Array(12), [12], model.device);
    accumulate(promptGroups(episodes, config.sharePrompts), config.microBatch, (part) =>
      nll(model, part, tokens, stats, { recompute: config.recompute }),
    );
    const learningRate = learningRateAt(step, config);
    const gradientNorm = await stepOn(episodes, optimizer.step(learningRate));
    const [loss] = await stats.read();
    yield { step: step + 1, loss: finite("the loss", loss, step + 1, episodes), gradientNorm, learningRate, tokens };
  }
}
