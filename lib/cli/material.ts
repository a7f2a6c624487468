import type { Calibration } from "../data/metrics.js";
import { orders } from "../data/order.js";
import type { ComparisonRow, DemonstrationRow } from "../data/preferences.js";
import type { Source } from "../data/rows.js";
import { part, type Indexed } from "../data/spool.js";
import { Random } from "../device/philox.js";
import { requestsFor } from "../model/generate.js";
import type { Transformer } from "../model/transformer.js";
import type { Algorithm, Material, Materials, Options } from "../rlhf/algorithms.js";
import { itemBatches, textBatches, windowsOf } from "../rlhf/batch/order.js";
import { Comparisons, Demonstrations, Documents, type Prompt } from "../rlhf/batch/rows.js";
import { bitsPerByte } from "../rlhf/measure/evaluate.js";
import { judge } from "../rlhf/reward/judge.js";
import type { Tokenizer } from "../tokenizer/tokenizer.js";
import type { Context } from "./stages/context.js";

// What an algorithm learns from, as its loop takes it, and what judges the models after the loop.

/** Documents, of which every token is learnt, or demonstrations, of which the completions are. */
export type TextSource = Source<string | DemonstrationRow>;

/** Where the material of an algorithm comes from. */
export interface Sources {
  /**
   * Texts to learn from, and texts that judge the model. Without a model to start from the first
   * are read twice.
   */
  texts: { text: TextSource; heldOut: TextSource };
  /** Comparisons to learn from, and those that judge the model in place of a share of the first. */
  comparisons: Record<"data" | "heldOut", ((tokenizer: Tokenizer) => Source<ComparisonRow>) | undefined>;
  /**
   * Prompts to sample from, in an order that is drawn or as they are, and texts of the pretraining
   * mix.
   */
  prompts: {
    prompts: (tokenizer: Tokenizer, folder: string) => Promise<Indexed<Pick<Prompt, "ids">> & Partial<Disposable>>;
    asTheyAre?: boolean;
    pretraining?: Source<string>;
  };
}

/** What is said of the models after the loop. */
export interface Judgement {
  /** For people, in a line. */
  verdict: string;
  /** For stages.json. */
  figures: Record<string, unknown> & { heldOut?: number; calibration?: Calibration };
}

/** The material of a run. */
export interface OpenMaterial extends Disposable {
  /** What the loop takes. */
  material: Materials[Material];
  /** Options that follow from the material. */
  options: Options;
  /** @param last the metrics of the last round */
  judge(models: Record<string, Transformer>, last: Record<string, number>): Promise<Judgement>;
}

interface Given {
  name: string;
  entry: Algorithm;
  options: Options;
  tokenizer: Tokenizer;
  models: Record<string, Transformer>;
}

/** Opens the material of an algorithm: reads and tokenises all of it. */
export function openMaterial(context: Context, given: Given, sources: Sources[Material]): Promise<OpenMaterial> {
  const open = { texts: openTexts, comparisons: openComparisons, prompts: openPrompts }[given.entry.material];
  return open(context, given, sources as never); // the sources are those of the entry's material
}

/** How many sequences of so many tokens are in a batch of tokens. */
const sequencesIn = (tokens: number, each: number) => Math.max(1, Math.round(tokens / each));

async function openTexts(
  { config: { seed }, run, progress }: Context,
  { name, entry, options, tokenizer, models }: Given,
  sources: Sources["texts"],
): Promise<OpenMaterial> {
  const model = models[entry.saves];
  const { context } = model.config;
  const { sequenceLength: length, batchTokens } = options as { sequenceLength: number; batchTokens: number };
  const text = await tokenised(sources.text, tokenizer, length, run.folder);
  const heldOut = await tokenised(sources.heldOut, tokenizer, context, run.folder);
  const demonstrates = text instanceof Demonstrations;
  const cut = demonstrates ? text.cut : 0;
  if (cut > 0)
    progress
      .stage("demonstrations", text.length, "")
      .done(`${cut} of ${text.length} are cut to the ${length} tokens of ${name}.sequenceLength`);
  const batches = demonstrates
    ? itemBatches(text, { batch: sequencesIn(batchTokens, text.tokens / text.length), seed })
    : textBatches(text, { length, batch: sequencesIn(batchTokens, length), seed });
  const judging =
    heldOut instanceof Demonstrations ? heldOut : windowsOf(heldOut, { length: context - 1, stride: context >> 1 });
  return {
    material: { batches },
    options: {},
    async judge(_, { loss }) {
      const bytes = await bitsPerByte(model, judging, heldOut.bytes);
      const judged = heldOut.bytes > 0 ? `, ${bytes.toFixed(3)} bits per held-out byte` : "";
      return {
        verdict: `${model.size} weights, loss ${loss.toFixed(3)}${judged}`,
        figures: { loss, bitsPerByte: bytes, heldOutBytes: heldOut.bytes, cut },
      };
    },
    [Symbol.dispose]() {
      text[Symbol.dispose]();
      heldOut[Symbol.dispose]();
    },
  };
}

/**
 * Reads and tokenises all of a text, demonstrations cut to `length` tokens. The first item says
 * which of both it is.
 */
async function tokenised(
  text: TextSource,
  tokenizer: Tokenizer,
  length: number,
  folder: string,
): Promise<Demonstrations | Documents> {
  let all: Demonstrations | Documents | undefined;
  for await (const one of text) {
    all ??=
      typeof one === "string" ? new Documents(tokenizer, folder) : new Demonstrations(tokenizer, { length, folder });
    (all as { add(item: typeof one): void }).add(one);
  }
  return all ?? new Documents(tokenizer, folder);
}

/** What the held-out comparisons say of a reward model. */
export const rewardVerdict = (judged: { heldOut: number; accuracy: number; calibration: Calibration }): string =>
  judged.heldOut > 0
    ? `${(100 * judged.accuracy).toFixed(1)} % of ${judged.heldOut} held-out comparisons right, calibration error ${judged.calibration.error.toFixed(3)}`
    : "no comparisons held out to judge it";

/**
 * Opens comparisons. Without a file that judges the model, the last share of them does, in whole
 * prompts. At least one is left to learn from.
 */
async function openComparisons(
  { config: { seed }, run }: Context,
  { entry, options, tokenizer, models }: Given,
  sources: Sources["comparisons"],
): Promise<OpenMaterial> {
  const {
    softLabels,
    heldOut: share,
    batch,
    epochs,
  } = options as Record<"heldOut" | "batch" | "epochs", number> & {
    softLabels: boolean;
  };
  const read = (source: (tokenizer: Tokenizer) => Source<ComparisonRow>) =>
    Comparisons.read(source(tokenizer), tokenizer, { softLabels, folder: run.folder });
  const all = await read(sources.data!);
  const judging = sources.heldOut && (await read(sources.heldOut));
  const held = judging ? 0 : Math.min(all.length - 1, Math.round(all.length * share));
  const training = part(all, 0, all.length - held);
  return {
    material: { batches: itemBatches(training, { batch, seed }) },
    options: { [entry.rounds]: Math.ceil(training.length / batch) * epochs },
    async judge() {
      const judged = await judge(models[entry.saves], judging ?? part(all, training.length, all.length));
      const { pairs: heldOut, ...others } = judged;
      const figures = { comparisons: all.pairs - (judging ? 0 : heldOut), heldOut, ...others };
      return { verdict: rewardVerdict(figures), figures };
    },
    [Symbol.dispose]() {
      all[Symbol.dispose]();
      judging?.[Symbol.dispose]();
    },
  };
}

const PROMPT_ORDER_STREAM = 48;

async function openPrompts(
  { config, run }: Context,
  { entry, options, tokenizer }: Given,
  sources: Sources["prompts"],
): Promise<OpenMaterial> {
  const { seed } = config;
  const { rolloutBatch, samples } = options as Record<"rolloutBatch" | "samples", number>;
  const all = await sources.prompts(tokenizer, run.folder);
  const drawn = orders(all.length, (round) => new Random(seed, PROMPT_ORDER_STREAM).at(round));
  const placeOf = (i: number) =>
    sources.asTheyAre ? i % all.length : drawn(Math.floor(i / all.length))[i % all.length];
  const each = rolloutBatch / samples; // prompts of an update
  const idsOf = (update: number) => Array.from({ length: each }, (_, i) => all.at(placeOf(update * each + i))!.ids);
  const tokens = sources.pretraining && (await Documents.read(sources.pretraining, tokenizer, run.folder));
  const length = config.sft.sequenceLength as number;
  const batch = sequencesIn(options.ptxBatchTokens as number, length);
  return {
    material: {
      prompts: (update) => requestsFor(idsOf(update), samples),
      ...(tokens ? { pretraining: textBatches(tokens, { length, batch, seed }) } : {}),
    },
    options: {},
    judge() {
      const updates = options[entry.rounds] as number;
      const figures = { updates, episodes: updates * rolloutBatch };
      return Promise.resolve({ verdict: `${updates} updates of ${rolloutBatch} completions`, figures });
    },
    [Symbol.dispose]() {
      all[Symbol.dispose]?.();
      tokens?.[Symbol.dispose]();
    },
  };
}
