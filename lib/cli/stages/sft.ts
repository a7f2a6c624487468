import { existsSync } from "node:fs";
import { copyFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { trainBpe } from "../../model/bpe.js";
import { loadModel, saveModel } from "../../model/checkpoint.js";
import { writeFileDurably } from "../../model/safetensors.js";
import { Tokenizer } from "../../model/tokenizer.js";
import { Transformer } from "../../model/transformer.js";
import { bitsPerByte } from "../../rlhf/evaluate.js";
import { AdamW } from "../../rlhf/optimizer.js";
import { sft } from "../../rlhf/sft.js";
import { textBatches, windows } from "../../rlhf/text.js";
import { modelConfig } from "../model.js";
import type { Context } from "./context.js";

export interface SftFiles {
  /** Documents to learn from. */
  text: readonly string[];
  /** Documents that are never learnt from. */
  heldOut: readonly string[];
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
}

/** Trains a language model on text, from nothing or from a model. */
export async function sftStage({ config, device, run, progress }: Context, files: SftFiles): Promise<SftResult> {
  const { sft: options, seed } = config;
  await mkdir(files.out, { recursive: true });
  const tokenizer = files.model ? await Tokenizer.load(files.model) : await newTokenizer(files, config.model.vocabulary, progress);
  const model = files.model ? await loadModel(files.model, device) : Transformer.random(modelConfig(config, tokenizer.eosId), "logits", device, seed);
  const encode = (documents: readonly string[]) => {
    const ids: number[] = [];
    for (const text of documents) {
      ids.push(tokenizer.eosId!);
      for (const id of tokenizer.encode(text)) ids.push(id);
    }
    return Int32Array.from(ids);
  };

  const stream = encode(files.text);
  const batch = Math.max(1, Math.round(options.batchTokens / options.sequenceLength));
  const batches = textBatches(stream, { length: options.sequenceLength, batch, seed });
  const optimizer = new AdamW([...model.parameters.values()], options);
  const checkpoint = run.checkpoint("sft", { models: { model }, optimizers: { model: optimizer } });
  await checkpoint.restore();
  const bar = progress.stage("base model", options.steps, "steps");
  bar.advance(optimizer.steps);
  const start = performance.now();
  let tokens = 0;
  let loss = NaN;
  for await (const metrics of sft(model, batches, options, optimizer)) {
    tokens += metrics.tokens;
    loss = metrics.loss;
    await run.log({ stage: "sft", ...metrics });
    bar.advance(1, `loss ${loss.toFixed(2)}`);
    await checkpoint.due();
  }
  const seconds = (performance.now() - start) / 1000;
  optimizer.dispose();

  const heldOutBytes = files.heldOut.reduce((n, text) => n + Buffer.byteLength(text), 0);
  const { context } = model.config;
  const bpb = await bitsPerByte(model, windows(encode(files.heldOut), { length: context - 1, stride: context >> 1 }), heldOutBytes);
  await saveModel(model, files.out);
  const parameters = model.size;
  model.dispose();
  bar.done(`${bpb.toFixed(2)} bits per byte`);
  return { parameters, tokens: options.steps * batch * options.sequenceLength, tokensPerSecond: tokens / seconds, loss, bitsPerByte: bpb, heldOutBytes };
}

async function newTokenizer({ text, out }: SftFiles, vocabulary: number, progress: Context["progress"]): Promise<Tokenizer> {
  const bar = progress.stage("tokenizer", 1, "vocabulary");
  const { tokenizer, tokenizerConfig } = trainBpe(text, { vocabulary, specials: ["<|endoftext|>"] });
  await writeFileDurably(join(out, "tokenizer.json"), JSON.stringify(tokenizer));
  await writeFileDurably(join(out, "tokenizer_config.json"), JSON.stringify(tokenizerConfig, null, 2) + "\n");
  bar.advance(1);
  bar.done(`${vocabulary} tokens`);
  return Tokenizer.load(out);
}

/** A model's tokenizer goes where the model goes. */
export async function copyTokenizer(from: string, to: string): Promise<void> {
  for (const file of ["tokenizer.json", "tokenizer_config.json"]) if (existsSync(join(from, file))) await copyFile(join(from, file), join(to, file));
}
