import * as ops from "../../tensor/ops/index.js";
import { run } from "../../tensor/op.js";
import { scope } from "../../tensor/tensor.js";
import type { Transformer } from "../../model/transformer.js";
import type { Batch } from "../batch/batch.js";
import type { Episode } from "../batch/episode.js";
import { packEpisodes, split } from "../batch/pack.js";
import { forwardParts } from "../batch/units.js";

/** Figures of the tokens of completions, nats. */
export interface TokenLogps {
  /** Per episode, for each token of its completion. */
  logp: Float32Array[];
  /** Entropy of the distribution that each token was drawn from. */
  entropy: Float32Array[];
}

/**
 * Log-probs of completions under the model, by the forward pass that training uses: the bits that `generate` reported.
 *
 * @param options `microBatch` episodes at once and `sharePrompts` change no bit; `temperature` divides the logits
 * @throws RangeError `EMPTY` for an episode without a prompt or a completion, `ID`
 */
export async function logps(
  model: Transformer,
  episodes: readonly Episode[],
  { microBatch = 64, temperature = 1, sharePrompts = true } = {},
): Promise<TokenLogps> {
  const result: TokenLogps = { logp: [], entropy: [] };
  for (const part of forwardParts(episodes, microBatch, sharePrompts)) {
    const batch = packEpisodes(part);
    const { logp, entropy } = scope(() => {
      const { hidden, rows } = model.hiddenRows(batch);
      const { logp, entropy } = ops.linearLogprob(hidden, model.head, rows, batch.y, { temperature });
      return { logp, entropy };
    });
    for (const one of split((await logp.read()) as Float32Array, batch.cuRows)) result.logp.push(one);
    for (const one of split((await entropy.read()) as Float32Array, batch.cuRows)) result.entropy.push(one);
    logp.dispose();
    entropy.dispose();
  }
  return result;
}

/** Sets the column `refLogp` to the log-probs of a batch's tokens under the reference. */
export function setRefLogp(batch: Batch, reference: Transformer, { temperature = 1 } = {}): void {
  batch.measure("refLogp", ({ packed }, logp) => {
    const { hidden, rows } = reference.hiddenRows(packed);
    run("linearLogprob", { h: hidden, weight: reference.head, rows, y: packed.y, temperature, logp });
  });
}

/**
 * KL(model || reference) at each token of the completions, over the whole vocabulary, in nats. It is the sum of
 * p (expm1(d) - d), d = log q - log p, so it is never negative.
 * @returns per episode, f32 [its completion's tokens]
 * @throws RangeError `EMPTY` for an episode without a prompt or a completion, `ID`
 */
export async function fullKl(
  model: Transformer,
  reference: Transformer,
  episodes: readonly Episode[],
  { microBatch = 16, temperature = 1, sharePrompts = true } = {},
): Promise<Float32Array[]> {
  const all: Float32Array[] = [];
  for (const part of forwardParts(episodes, microBatch, sharePrompts)) {
    const batch = packEpisodes(part);
    using kl = scope(() => {
      const [logits, refLogits] = [model, reference].map((one) => {
        const { hidden, rows } = one.hiddenRows(batch);
        return one.logits(ops.embedding(rows, hidden));
      });
      return run("fullKl", { logits, refLogits, temperature }).kl;
    });
    for (const one of split((await kl.read()) as Float32Array, batch.cuRows)) all.push(one);
  }
  return all;
}
