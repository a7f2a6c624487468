import * as ops from "../../tensor/ops/index.js";
import { run } from "../../tensor/op.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import type { HiddenOptions, Packed, Transformer } from "../../model/transformer.js";
import { packEpisodes, packWhole, promptGroups, split, type Episode } from "../batch/episode.js";
import { microBatches } from "../learn/update.js";

/**
 * Micro-batches of a forward pass, of at most `microBatch` episodes. Those that follow one another with the same prompt share its
 * computation, unless `sharePrompts` is false: no bit changes, so a group larger than a micro-batch is split, where training would not.
 */
const parts = (episodes: readonly Episode[], microBatch: number, sharePrompts: boolean) =>
  microBatches(
    promptGroups(episodes, sharePrompts).flatMap((group) => microBatches(group, microBatch)),
    microBatch,
  );

/** Figures of the tokens of completions, nats. */
export interface TokenLogps {
  /** Per episode, for each token of its completion. */
  logp: Float32Array[];
  /** Of the distribution that each token was drawn from. */
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
  for (const part of parts(episodes, microBatch, sharePrompts)) {
    const batch = packEpisodes(part);
    const { logp, entropy } = scope(() => {
      const { hidden, rows } = model.scored(batch);
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

/** The model's score at the rows of a batch: f32 [rows]. */
export function scoreOf(model: Transformer, batch: Packed & { rows: Int32Array }, options?: HiddenOptions): Tensor {
  const { hidden, rows } = model.scored(batch, options);
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
  const all = new Float32Array(episodes.length);
  let at = 0;
  for (const part of parts(episodes, microBatch, sharePrompts)) {
    const batch = packWhole(part);
    using value = scope(() => scoreOf(model, batch));
    all.set(await value.read(), at);
    at += batch.rows.length;
  }
  return all;
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
  for (const part of parts(episodes, microBatch, sharePrompts)) {
    const batch = packEpisodes(part);
    using value = scope(() => scoreOf(model, batch));
    for (const one of split((await value.read()) as Float32Array, batch.cuRows)) all.push(one);
  }
  return all;
}

/**
 * KL(model || reference) at each token of the completions, over the whole vocabulary, in nats: the sum of p (expm1(d) - d), d = log q - log p,
 * so never negative.
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
  for (const part of parts(episodes, microBatch, sharePrompts)) {
    const batch = packEpisodes(part);
    using kl = scope(() => {
      const [logits, refLogits] = [model, reference].map((one) => {
        const { hidden, rows } = one.scored(batch);
        return one.logits(ops.embedding(rows, hidden));
      });
      return run("fullKl", { logits, refLogits, temperature }).kl;
    });
    for (const one of split((await kl.read()) as Float32Array, batch.cuRows)) all.push(one);
  }
  return all;
}
