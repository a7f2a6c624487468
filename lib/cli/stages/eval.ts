import { sentiment } from "../../data/annotator.js";
import { distinctN, winRate } from "../../data/metrics.js";
import { sliceOf, type Indexed } from "../../data/spool.js";
import type { Completion } from "../../model/generate.js";
import { loadModels } from "../../model/checkpoint.js";
import { Tokenizer } from "../../tokenizer/tokenizer.js";
import type { Transformer } from "../../model/transformer.js";
import { klPerCompletion } from "../../rlhf/measure/evaluate.js";
import { scores } from "../../rlhf/measure/score.js";
import type { Prompt } from "../../rlhf/batch/rows.js";
import type { Config } from "../config/schema.js";
import { checkModel, stopIds, withModels } from "../model.js";
import { sampleAll, type Sampler, type Sampling, type SamplingStage } from "./collect.js";
import type { Context } from "./context.js";

/** A line of eval.jsonl: one prompt, before and after. */
export interface EvalRow {
  prompt: string;
  base: string;
  policy: string;
  /** What the annotator says of the base model's completion. */
  baseScore: number;
  policyScore: number;
  /** What the reward model says of the base model's completion. */
  baseReward?: number;
  policyReward?: number;
  /** Exact KL to the base model, summed over the policy's completion, nats. */
  kl: number;
}

/** Who says which of two completions wins. */
export type Judge = "reward model" | "sentiment lexicon";

export interface EvalResult extends Record<string, unknown> {
  prompts: number;
  /** Who decides the win rate. */
  judge: Judge;
  winRate: number;
  winRateInterval: [number, number];
  wins: number;
  ties: number;
  losses: number;
  klPerCompletion: number;
  rewardBefore: number | null;
  rewardAfter: number | null;
  scoreBefore: number;
  scoreAfter: number;
  lengthBefore: number;
  lengthAfter: number;
  distinct2Before: number;
  distinct2After: number;
}

/**
 * Policy against base model on the same prompts: what the annotator without noise, the reward model
 * and the KL say.
 * @param judge who decides the wins: by default the reward model, where there is one
 */
export async function evaluate(
  sampler: Sampler,
  models: { base: Transformer; policy: Transformer; reward?: Transformer },
  tokenizer: Tokenizer,
  prompts: Indexed<Prompt>,
  sampling: Sampling,
  judge: Judge = models.reward ? "reward model" : "sentiment lexicon",
): Promise<{ result: EvalResult; rows: EvalRow[] }> {
  const sample = (model: Transformer, title: string) =>
    sampleAll(model, prompts, { ...sampling, samples: 1 }, sampler, title);
  using before = await sample(models.base, "eval: base");
  using after = await sample(models.policy, "eval: policy");
  const rows: EvalRow[] = [];
  for (let first = 0; first < prompts.length; first += AT_ONCE) {
    const last = first + AT_ONCE;
    const sampled = { before: sliceOf(before, first, last), after: sliceOf(after, first, last) };
    for (const row of await compared(models, tokenizer, sliceOf(prompts, first, last), sampled, sampling))
      rows.push(row);
  }
  const all = (name: "baseScore" | "policyScore" | "baseReward" | "policyReward" | "kl") =>
    rows.map((row) => row[name]!);
  const { rate, interval, wins, ties, losses } =
    judge === "reward model"
      ? winRate(all("policyReward"), all("baseReward"))
      : winRate(all("policyScore"), all("baseScore"));
  const result: EvalResult = {
    prompts: prompts.length,
    judge,
    winRate: rate,
    winRateInterval: interval,
    wins,
    ties,
    losses,
    klPerCompletion: mean(all("kl")),
    rewardBefore: models.reward ? mean(all("baseReward")) : null,
    rewardAfter: models.reward ? mean(all("policyReward")) : null,
    scoreBefore: mean(all("baseScore")),
    scoreAfter: mean(all("policyScore")),
    lengthBefore: before.tokens / before.length,
    lengthAfter: after.tokens / after.length,
    distinct2Before: distinctN(tokensOf(before), 2),
    distinct2After: distinctN(tokensOf(after), 2),
  };
  return { result, rows };
}

/** Evaluates the models in folders, and writes the rows. It is the work of a stage. */
export async function evaluateModels(
  context: Context,
  folders: { base: string; policy: string; reward?: string },
  { sampling, prompts, write }: SamplingStage<EvalRow> & { sampling: Config["eval"] },
  judge?: Judge,
): Promise<{ result: EvalResult; rows: EvalRow[] }> {
  const { config, device } = context;
  const named = Object.entries(folders).filter(([, folder]) => folder !== undefined);
  const tokenizer = await Tokenizer.load(folders.policy);
  const loaded = await loadModels(
    named.map(([, folder]) => folder),
    device,
    sampling.weights,
  );
  return withModels(loaded, async () => {
    const models = Object.fromEntries(named.map(([name], i) => [name, loaded[i]])) as Parameters<typeof evaluate>[1];
    for (const [i, [name, folder]] of named.entries())
      checkModel(`--${name}`, folder, loaded[i], name === "reward" ? "score" : "logits", tokenizer);
    const stop = await stopIds(folders.policy, models.policy, tokenizer);
    const asked = await prompts(tokenizer);
    try {
      const options = { ...sampling, samples: 1, seed: config.seed, stop };
      const evaluated = await evaluate(context, models, tokenizer, asked, options, judge);
      await write(evaluated.rows);
      return evaluated;
    } finally {
      asked[Symbol.dispose]?.();
    }
  });
}

const AT_ONCE = 1024; // prompts

/** The rows of some prompts and their completions. */
async function compared(
  models: { base: Transformer; policy: Transformer; reward?: Transformer },
  tokenizer: Tokenizer,
  prompts: readonly Prompt[],
  { before, after }: Record<"before" | "after", readonly Completion[]>,
  sampling: Sampling,
): Promise<EvalRow[]> {
  const kl = await klPerCompletion(models.policy, models.base, after, { temperature: sampling.temperature || 1 });
  // both completions of a prompt side by side, so that the reward model computes it once
  const sideBySide = prompts.flatMap((_, i) => [before[i], after[i]]);
  const rewards = models.reward && (await scores(models.reward, sideBySide));
  return prompts.map(({ text }, i) => {
    const [base, policy] = [before[i], after[i]].map(({ completion }) => tokenizer.decode(completion));
    return {
      prompt: text,
      base,
      policy,
      baseScore: sentiment(base),
      policyScore: sentiment(policy),
      ...(rewards ? { baseReward: rewards[2 * i], policyReward: rewards[2 * i + 1] } : {}),
      kl: kl[i],
    };
  });
}

function* tokensOf(completions: Indexed<Completion>): Generator<Int32Array> {
  for (let i = 0; i < completions.length; i++) yield completions.at(i)!.completion;
}

const mean = (values: ArrayLike<number>) => Array.from(values).reduce((a, b) => a + b, 0) / values.length;
