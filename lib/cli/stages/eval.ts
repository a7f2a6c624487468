import { sentiment } from "../../data/annotator.js";
import { distinctN, winRate } from "../../data/metrics.js";
import type { Completion } from "../../model/generate.js";
import type { Tokenizer } from "../../model/tokenizer.js";
import type { Transformer } from "../../model/transformer.js";
import { klPerCompletion } from "../../rlhf/evaluate.js";
import { scores } from "../../rlhf/logp.js";
import { sampleAll, type Prompt, type Sampler, type Sampling } from "./collect.js";

/** A line of eval.jsonl: one prompt, before and after. */
export interface EvalRow {
  prompt: string;
  base: string;
  policy: string;
  /** By the annotator. */
  baseScore: number;
  policyScore: number;
  /** By the reward model. */
  baseReward?: number;
  policyReward?: number;
  /** Exact KL to the base model, summed over the policy's completion, nats. */
  kl: number;
}

/** Who says which of two completions wins. */
export type Judge = "reward model" | "sentiment lexicon";

export interface EvalResult extends Record<string, unknown> {
  prompts: number;
  /** Of the win rate. */
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
 * Policy against base model on the same prompts: what the annotator without noise, the reward model and the KL say.
 * @param judge who decides the wins: by default the reward model, where there is one
 */
export async function evaluate(
  sampler: Sampler,
  models: { base: Transformer; policy: Transformer; reward?: Transformer },
  tokenizer: Tokenizer,
  prompts: readonly Prompt[],
  sampling: Sampling,
  judge: Judge = models.reward ? "reward model" : "sentiment lexicon",
): Promise<{ result: EvalResult; rows: EvalRow[] }> {
  const sample = (model: Transformer, title: string) => sampleAll(model, prompts, { ...sampling, samples: 1 }, sampler, title);
  const before = await sample(models.base, "eval: base");
  const after = await sample(models.policy, "eval: policy");
  const kl = await klPerCompletion(models.policy, models.base, after, { temperature: sampling.temperature || 1 });
  // both completions of a prompt side by side, so that the reward model computes it once
  const rewards =
    models.reward &&
    (await scores(
      models.reward,
      prompts.flatMap((_, i) => [before[i], after[i]]),
    ));
  const [rewardBefore, rewardAfter] = [0, 1].map((place) => rewards?.filter((_, i) => i % 2 === place));
  const rows = prompts.map(({ text }, i): EvalRow => {
    const [base, policy] = [before[i], after[i]].map(({ completion }) => tokenizer.decode(completion));
    return {
      prompt: text,
      base,
      policy,
      baseScore: sentiment(base),
      policyScore: sentiment(policy),
      ...(rewardBefore && rewardAfter ? { baseReward: rewardBefore[i], policyReward: rewardAfter[i] } : {}),
      kl: kl[i],
    };
  });
  const [winning, other] =
    judge === "reward model" ? [Array.from(rewardAfter!), Array.from(rewardBefore!)] : [rows.map((row) => row.policyScore), rows.map((row) => row.baseScore)];
  const { rate, interval, wins, ties, losses } = winRate(winning, other);
  const length = (completions: readonly Completion[]) => mean(completions.map(({ completion }) => completion.length));
  const result: EvalResult = {
    prompts: prompts.length,
    judge,
    winRate: rate,
    winRateInterval: interval,
    wins,
    ties,
    losses,
    klPerCompletion: mean(kl),
    rewardBefore: rewardBefore ? mean(rewardBefore) : null,
    rewardAfter: rewardAfter ? mean(rewardAfter) : null,
    scoreBefore: mean(rows.map(({ baseScore }) => baseScore)),
    scoreAfter: mean(rows.map(({ policyScore }) => policyScore)),
    lengthBefore: length(before),
    lengthAfter: length(after),
    distinct2Before: distinctN(
      before.map(({ completion }) => completion),
      2,
    ),
    distinct2After: distinctN(
      after.map(({ completion }) => completion),
      2,
    ),
  };
  return { result, rows };
}

const mean = (values: ArrayLike<number>) => Array.from(values).reduce((a, b) => a + b, 0) / values.length;
