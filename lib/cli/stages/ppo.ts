import { createHash } from "node:crypto";
import type { Request } from "../../model/generate.js";
import { ppo, ppoState, type PpoConfig, type PpoModels } from "../../rlhf/policy/ppo.js";
import type { Episode } from "../../rlhf/batch/episode.js";
import type { Transformer } from "../../model/transformer.js";
import type { Context } from "./context.js";

export interface PpoResult extends Record<string, unknown> {
  /** SHA-256 of the reference's weights: what every KL of the log is measured to. */
  referenceSha256: string;
  updates: number;
  episodes: number;
  tokens: number;
}

/** Fine-tunes the policy, update by update, with a checkpoint between them. */
export async function ppoStage(
  { config, run, progress }: Context,
  models: PpoModels,
  prompts: (update: number) => readonly Request[],
  options: PpoConfig,
  pretraining?: (step: number) => readonly Episode[],
): Promise<PpoResult> {
  const referenceSha256 = await contentHash(models.reference);
  const state = ppoState(models, options);
  let tokens = 0;
  const checkpoint = run.checkpoint("ppo", {
    models: { policy: models.policy, critic: models.critic },
    optimizers: { policy: state.policy, critic: state.critic },
    state: {
      get: () => ({
        updates: state.updates,
        tokens,
        klCoef: state.controller.coef,
        count: state.moments.count,
        mean: state.moments.mean,
        squares: state.moments.squares,
      }),
      set(saved) {
        state.updates = saved.updates as number;
        tokens = saved.tokens as number;
        state.controller.coef = saved.klCoef as number;
        Object.assign(state.moments, { count: saved.count, mean: saved.mean, squares: saved.squares });
      },
    },
  });
  await checkpoint.restore();
  const bar = progress.stage("PPO", options.updates, "updates");
  bar.advance(state.updates);
  for await (const metrics of ppo(models, prompts, options, state, pretraining)) {
    tokens += metrics.tokens;
    await run.log({ stage: "ppo", reference: referenceSha256.slice(0, 16), ...metrics });
    bar.advance(1, `reward ${metrics.reward.toFixed(2)}, KL ${metrics.kl.toFixed(1)}`);
    await checkpoint.due(metrics.step, options.updates);
  }
  bar.done();
  state.policy.dispose();
  state.critic.dispose();
  return { referenceSha256, updates: options.updates, episodes: options.updates * config.ppo.rolloutBatch, tokens };
}

async function contentHash(model: Transformer): Promise<string> {
  const hash = createHash("sha256");
  for (const [name, { value }] of model.parameters)
    hash.update(`${name} ${value.shape.join()}\n`).update(new Uint8Array((await value.read()).buffer));
  return hash.digest("hex");
}
