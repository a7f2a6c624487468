import { sliceOf, type Indexed } from "../../data/spool.js";
import type { Completion } from "../../model/generate.js";
import type { Transformer } from "../../model/transformer.js";
import type { Episode } from "../batch/episode.js";
import { fullKl, logps } from "./logp.js";

/**
 * KL of the policy to the reference per completion, exact at each token, summed over the completion; in nats.
 * @param options `temperature` divides both models' logits
 * @returns f64 [completions]
 */
export async function klPerCompletion(
  policy: Transformer,
  reference: Transformer,
  completions: readonly Completion[],
  options: { temperature?: number } = {},
): Promise<Float64Array> {
  const kl = await fullKl(policy, reference, completions, options);
  return Float64Array.from(kl, (tokens) => tokens.reduce((a, b) => a + b, 0));
}

/**
 * Bits per byte of held-out text: -log2 p(tokens) over the bytes that they stand for.
 * @param episodes what is predicted, as by `windows`
 * @param bytes    of the text that their completions are, UTF-8
 */
export async function bitsPerByte(model: Transformer, episodes: Indexed<Episode>, bytes: number): Promise<number> {
  let nats = 0;
  for (let first = 0; first < episodes.length; first += AT_ONCE) {
    const { logp } = await logps(model, sliceOf(episodes, first, first + AT_ONCE));
    for (const tokens of logp) for (const one of tokens) nats -= one;
  }
  return nats / Math.LN2 / bytes;
}

const AT_ONCE = 1024; // episodes
