import type { DemonstrationRow } from "../../data/preferences.js";
import type { Source } from "../../data/rows.js";
import { countWords, trainBpe } from "../../tokenizer/bpe.js";
import { loadModel } from "../../model/checkpoint.js";
import { makeFolder } from "../../files/durable.js";
import { writeListed } from "../../files/listed.js";
import { Tokenizer } from "../../tokenizer/tokenizer.js";
import { Transformer } from "../../model/transformer.js";
import { bitsPerByte } from "../../rlhf/measure/evaluate.js";
import { AdamW } from "../../rlhf/learn/optimizer.js";
import { Demonstrations, Documents } from "../../rlhf/batch/rows.js";
import { sft } from "../../rlhf/offline/sft.js";
import { itemBatches, textBatches, windowsOf } from "../../rlhf/batch/order.js";
import { fit } from "../fit.js";
import { modelConfig, saveTrained, toTrain } from "../model.js";
import type { Context } from "./context.js";

/** Documents, of which every token is learnt, or demonstrations, of which the completions are. Without a model to start from they are read twice. */
export type SftText = Source<string | DemonstrationRow>;

export interface SftFiles {
  /** To learn from. */
  text: SftText;
  /** Never learnt from. */
  heldOut: SftText;
  /** A model to start from; without one, a tokenizer is trained and the weights are drawn. */
  model?: string;
  out: string;
}

export interface SftResult extends Record<string, unknown> {
  parameters: number;
  tokens: number;
  tokensPerSecond: number;
  loss: number;
  bitsPerByte: number;
  heldOutBytes: number;
  /** Demonstrations that were learnt from in part, for their length. */
  cut: number;
}

/** Trains a language model on text, from nothing or from a model. */
export async function sftStage({ config, device, run, progress }: Context, files: SftFiles): Promise<SftResult> {
  const { sft: options, seed } = config;
  await makeFolder(files.out);
  const tokenizer = files.model
    ? await Tokenizer.load(files.model)
    : await newTokenizer(files, config.model.vocabulary, progress);
  const begin = files.model
    ? await loadModel(files.model, device)
    : Transformer.random(modelConfig(config, tokenizer.eosId), "logits", device, seed);
  if (files.model) fit("--model", files.model, begin, "logits", tokenizer);
  const model = files.model ? toTrain(begin, config) : begin;
  if (model !== begin) begin.dispose();
  const { sequenceLength: length } = options;
  const perBatch = (each: number) => Math.max(1, Math.round(options.batchTokens / each));
  using text = await tokenised(files.text, tokenizer, length, run.folder);
  using heldOut = await tokenised(files.heldOut, tokenizer, model.config.context, run.folder);
  const taught = text instanceof Demonstrations;
  const cut = taught ? text.cut : 0;
  if (cut > 0)
    progress
      .stage("demonstrations", text.length, "")
      .done(`${cut} of ${text.length} are cut to the ${length} tokens of sft.sequenceLength`);
  const batches = taught
    ? itemBatches(text, { batch: perBatch(text.tokens / text.length), seed })
    : textBatches(text, { length, batch: perBatch(length), seed });
  const optimizer = new AdamW(model.trained, options);
  let loss = NaN;
  let tokens = 0;
  const checkpoint = run.checkpoint("sft", {
    models: { model },
    optimizers: { model: optimizer },
    state: {
      get: () => ({ loss, tokens }),
      set: (saved) => ({ loss, tokens } = saved as { loss: number; tokens: number }),
    },
  });
  await checkpoint.restore();
  const bar = progress.stage("base model", options.steps, "steps");
  bar.advance(optimizer.steps);
  const [start, before] = [performance.now(), tokens];
  for await (const metrics of sft(model, batches, options, optimizer)) {
    tokens += metrics.tokens;
    loss = metrics.loss;
    await run.log({ stage: "sft", ...metrics });
    bar.advance(1, `loss ${loss.toFixed(2)}`);
    await checkpoint.due(metrics.step, options.steps);
  }
  const seconds = (performance.now() - start) / 1000;
  optimizer.dispose();

  const { context } = model.config;
  const judged =
    heldOut instanceof Demonstrations ? heldOut : windowsOf(heldOut, { length: context - 1, stride: context >> 1 });
  const heldOutBytes = heldOut.bytes;
  const bpb = await bitsPerByte(model, judged, heldOutBytes);
  await saveTrained(model, files.out, files.model);
  const parameters = model.size;
  model.dispose();
  bar.done(heldOutBytes > 0 ? `${bpb.toFixed(2)} bits per byte` : `loss ${loss.toFixed(2)}`);
  return {
    parameters,
    tokens,
    tokensPerSecond: (tokens - before) / seconds,
    loss,
    bitsPerByte: bpb,
    heldOutBytes,
    cut,
  };
}

/** Reads and tokenises all of a text, demonstrations cut to `length` tokens. Which of both it is, its first item says. */
async function tokenised(
  text: SftText,
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

async function newTokenizer(
  { text, out }: SftFiles,
  vocabulary: number,
  progress: Context["progress"],
): Promise<Tokenizer> {
  const bar = progress.stage("tokenizer", 1, "vocabulary");
  const words = new Map<string, number>();
  for await (const one of text)
    for (const part of typeof one === "string" ? [one] : [one.prompt, one.completion]) countWords(part, words);
  const { tokenizer, tokenizerConfig } = trainBpe(words, { vocabulary, specials: ["<|endoftext|>"] });
  await writeListed(out, {
    "tokenizer.json": JSON.stringify(tokenizer),
    "tokenizer_config.json": JSON.stringify(tokenizerConfig, null, 2) + "\n",
  });
  bar.advance(1);
  bar.done(`${vocabulary} tokens`);
  return Tokenizer.load(out);
}
