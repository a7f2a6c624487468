import { rangeError } from "../../device/errors.js";
import { generate, type Request } from "../../model/generate.js";
import type { SamplingOptions } from "../../model/sampling.js";
import type { Transformer } from "../../model/transformer.js";
import { Batch } from "../batch/batch.js";
import { allFinite } from "../learn/update.js";
import { scored, type Reward } from "../reward/criteria.js";

/** How completions are sampled, scored and packed. */
export interface RolloutOptions extends SamplingOptions {
  microBatch?: number;
  sharePrompts?: boolean;
  /** A score that cannot be had, or is not finite, stops the run, or its completion is left out and counted. */
  rewardFailure?: "stop" | "mask";
}

/**
 * Samples completions of the requests, scores each, and packs those that have a score.
 * The sampler's log-probs are the old log-probs of the update.
 * @param update counted from 0: part of the random numbers' counter
 * @throws RangeError `EMPTY` for no requests, and what `generate` and `scored` throw
 */
export async function rollout(
  policy: Transformer,
  reward: Reward,
  requests: readonly Request[],
  options: RolloutOptions,
  update: number,
): Promise<Batch> {
  if (requests.length === 0) throw rangeError("EMPTY", `update ${update + 1} has no prompts`);
  const sampled = await generate(policy, requests, { ...options, update });
  const { completions, rawScores, masked } = await scored(reward, sampled, options, update + 1);
  completions.forEach((one, i) => allFinite(`logp of completion ${i}`, one.logp, update + 1, [one]));
  return new Batch(completions, rawScores, policy.device, { ...options, masked });
}
