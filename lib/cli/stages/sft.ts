import { existsSync } from "node:fs";
import { copyFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { DemonstrationRow } from "../../data/preferences.js";
import { rangeError } from "../../device/errors.js";
import { trainBpe } from "../../model/bpe.js";
import { loadModel } from "../../model/checkpoint.js";
import { baseFolder } from "../../model/peft.js";
import { writeFileDurably } from "../../model/safetensors.js";
import { Tokenizer } from "../../model/tokenizer.js";
import { Transformer } from "../../model/transformer.js";
import type { Episode } from "../../rlhf/episode.js";
import { bitsPerByte } from "../../rlhf/evaluate.js";
import { AdamW } from "../../rlhf/optimizer.js";
import { sft, tokensIn } from "../../rlhf/sft.js";
import { itemBatches, textBatches, windows } from "../../rlhf/text.js";
import { fit } from "../fit.js";
import { modelConfig, saveTrained, toTrain } from "../model.js";
import type { Context } from "./context.js";

/** Documents, of which every token is learnt, or demonstrations, of which the completions are. */
export type SftText = readonly string[] | readonly DemonstrationRow[];

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
}

/** Trains a language model on text, from nothing or from a model. */
export async function sftStage({ config, device, run, progress }: Context, files: SftFiles): Promise<SftResult> {
  const { sft: options, seed } = config;
  await mkdir(files.out, { recursive: true });
  const tokenizer = files.model ? await Tokenizer.load(files.model) : await newTokenizer(files, config.model.vocabulary, progress);
  const begin = files.model ? await loadModel(files.model, device) : Transformer.random(modelConfig(config, tokenizer.eosId), "logits", device, seed);
  if (files.model) fit("--model", files.model, begin, "logits", tokenizer);
  const model = files.model ? toTrain(begin, config) : begin;
  if (model !== begin) begin.dispose();
  const { sequenceLength: length } = options;
  const perBatch = (each: number) => Math.max(1, Math.round(options.batchTokens / each));
  let batches: (step: number) => Episode[];
  if (areDemonstrations(files.text)) {
    const episodes = demonstrations(files.text, tokenizer, length);
    batches = itemBatches(episodes, { batch: perBatch(tokensIn(episodes) / episodes.length), seed });
  } else batches = textBatches(stream(files.text, tokenizer), { length, batch: perBatch(length), seed });
  const optimizer = new AdamW(model.trained, options);
  let loss = NaN;
  let tokens = 0;
  const checkpoint = run.checkpoint("sft", {
    models: { model },
    optimizers: { model: optimizer },
    state: { get: () => ({ loss, tokens }), set: (saved) => ({ loss, tokens } = saved as { loss: number; tokens: number }) },
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
  const { heldOut } = files;
  const [judged, judgedText] = areDemonstrations(heldOut)
    ? [demonstrations(heldOut, tokenizer, context), heldOut.map(({ completion }) => completion)]
    : [windows(stream(heldOut, tokenizer), { length: context - 1, stride: context >> 1 }), heldOut];
  const heldOutBytes = judgedText.reduce((n, text) => n + Buffer.byteLength(text), 0);
  const bpb = await bitsPerByte(model, judged, heldOutBytes);
  await saveTrained(model, files.out, files.model);
  const parameters = model.size;
  model.dispose();
  bar.done(heldOutBytes > 0 ? `${bpb.toFixed(2)} bits per byte` : `loss ${loss.toFixed(2)}`);
  return { parameters, tokens, tokensPerSecond: (tokens - before) / seconds, loss, bitsPerByte: bpb, heldOutBytes };
}

const areDemonstrations = (text: SftText): text is readonly DemonstrationRow[] => typeof text[0] === "object";

const end = ({ eosId }: Tokenizer) => (eosId === undefined ? [] : [eosId]);

/** Documents end to end, each after the token that ends one. */
function stream(documents: readonly string[], tokenizer: Tokenizer): Int32Array {
  const ids: number[] = [];
  for (const text of documents) {
    ids.push(...end(tokenizer));
    for (const id of tokenizer.encode(text)) ids.push(id);
  }
  return Int32Array.from(ids);
}

/** Demonstrations as the loss wants them: tokenised apart, the completion with its end, cut to `length` tokens in all. */
function demonstrations(rows: readonly DemonstrationRow[], tokenizer: Tokenizer, length: number): Episode[] {
  return rows.map((row, i) => {
    const prompt = tokenizer.encodePrompt(row.prompt);
    if (prompt.length > length)
      throw rangeError("CONTEXT", `demonstration ${i}: the prompt has ${prompt.length} tokens, which leaves no room for its completion in ${length}`);
    return { prompt, completion: [...tokenizer.encode(row.completion), ...(row.closed ? [] : end(tokenizer))].slice(0, length + 1 - prompt.length) };
  });
}

async function newTokenizer({ text, out }: SftFiles, vocabulary: number, progress: Context["progress"]): Promise<Tokenizer> {
  const bar = progress.stage("tokenizer", 1, "vocabulary");
  const { tokenizer, tokenizerConfig } = trainBpe(areDemonstrations(text) ? text.flatMap(({ prompt, completion }) => [prompt, completion]) : text, {
    vocabulary,
    specials: ["<|endoftext|>"],
  });
  await writeFileDurably(join(out, "tokenizer.json"), JSON.stringify(tokenizer));
  await writeFileDurably(join(out, "tokenizer_config.json"), JSON.stringify(tokenizerConfig, null, 2) + "\n");
  bar.advance(1);
  bar.done(`${vocabulary} tokens`);
  return Tokenizer.load(out);
}

/** A model's tokenizer goes where the model goes; an adapter that has none has its base's. */
export async function copyTokenizer(model: string, to: string): Promise<void> {
  const from = existsSync(join(model, "tokenizer.json")) ? model : await baseFolder(model);
  for (const file of ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"])
    if (existsSync(join(from, file))) await copyFile(join(from, file), join(to, file));
}
