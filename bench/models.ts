import { BYTES } from "../lib/device/ops.js";
import { Transformer } from "../lib/model/transformer.js";
import { weightShapes } from "../lib/model/weights.js";
import type { ModelConfig } from "../lib/model/config.js";
import { generate, type Request } from "../lib/model/generate.js";
import { Learner } from "../lib/rlhf/learn/learner.js";
import { sft } from "../lib/rlhf/offline/sft.js";
import { ppo, type PpoOptions } from "../lib/rlhf/policy/ppo.js";
import type { Device } from "../lib/index.js";
import { gpt2, llama } from "../test/models.js";
import type { Cost } from "./limit.js";
import type { Timer } from "./measure.js";

// Where the time of these steps goes, and what was tried and lost: bench/notes.md.

/** Sizes of a model and of its batches. */
export interface Shape {
  layers: number;
  width: number;
  heads: number;
  vocabulary: number;
  batch: number;
  prompt: number;
  response: number;
}

export const shapes: Record<"demo" | "gpt2", Shape> = {
  demo: { layers: 4, width: 256, heads: 4, vocabulary: 8192, batch: 64, prompt: 32, response: 48 },
  gpt2: { layers: 12, width: 768, heads: 12, vocabulary: 50257, batch: 16, prompt: 64, response: 64 },
};

export interface StepRow {
  name: string;
  shape: string;
  cost: Cost;
  tokens: number;
  /** Sizes that a peer builds its model by. */
  sizes: Shape | (ModelConfig & { half: boolean; prompt: number; response: number });
  prepare(on: Device): { timer: Timer; dispose(): void };
}

export const configOf = ({ layers, width, heads, vocabulary, prompt, response }: Shape): ModelConfig => ({
  ...gpt2,
  layers,
  width,
  heads,
  kvHeads: heads,
  headSize: width / heads,
  mlp: 4 * width,
  vocabulary,
  context: prompt + response,
});

/** Numbers of weights: those of the layers, those of the head, and both together. */
function weights(config: ModelConfig): { body: number; head: number; all: number } {
  const size = (s: readonly number[]) => s.reduce((a, b) => a * b, 1);
  const matrices = weightShapes(config, "logits").filter(({ shape: s }) => s.length === 2);
  const body = matrices
    .filter(({ name }) => name.startsWith("layers."))
    .reduce((sum, { shape: s }) => sum + size(s), 0);
  return { body, head: config.vocabulary * config.width, all: body + config.vocabulary * config.width };
}

/**
 * FLOPs of a forward pass over `batch` sequences of `length`. The head reads `asked` rows. For the
 * other rows the last layer computes only keys and values.
 */
function forward(shape: Shape, length: number, asked: number): number {
  const { body, head } = weights(configOf(shape));
  const tokens = shape.batch * length;
  const keysAndValues = 2 * shape.width * shape.width;
  const unasked = (tokens - asked) * (body / shape.layers - keysAndValues);
  return 2 * (body * tokens - unasked) + 2 * shape.layers * shape.width * (length + 1) * tokens + 2 * head * asked;
}

/**
 * Bytes that the optimizer moves in `steps` steps. It updates weights and both moments in place,
 * once all gradients are there.
 */
function adamBytes(shape: Shape, steps: number): Omit<Cost, "flops"> {
  const bytes = 4 * steps * weights(configOf(shape)).all;
  return { read: 4 * bytes, write: 3 * bytes, update: 3 * bytes, apart: true };
}

export const ids = (n: number, below: number, seed: number): Int32Array => {
  let state = seed;
  return Int32Array.from({ length: n }, () => ((state = (Math.imul(state, 1103515245) + 12345) >>> 0) >>> 8) % below);
};
const prompts = ({ batch, prompt, vocabulary }: Shape): Request[] =>
  Array.from({ length: batch }, (_, i) => ({ prompt: ids(prompt, vocabulary, i + 1), index: i, sample: 0 }));

export const timed =
  (work: () => Promise<unknown>): Timer =>
  async (runs) => {
    const start = performance.now();
    for (let i = 0; i < runs; i++) await work();
    return performance.now() - start;
  };

/** What AdamW does in a step, which the loop takes from its learner. */
const optimizer = { betas: [0.9, 0.999], clipNorm: 1, schedule: "constant", warmup: 0 } as const;

/** A learner that always has one more round to go. */
export const endless = (trained: Record<string, Transformer>, learningRate: number): Learner =>
  new Learner(trained, { ...optimizer, learningRate, steps: Infinity });

/** One round of a loop. */
export async function once(loop: AsyncGenerator<unknown>): Promise<void> {
  for await (const _ of loop) break;
}

/** Generation, a step of SFT and an update of PPO. */
export function steps(name: string, shape: Shape): [StepRow, StepRow, StepRow] {
  const { batch, prompt, response, vocabulary } = shape;
  const length = prompt + response;
  const model = (on: Device, head: "logits" | "score" = "logits") => Transformer.random(configOf(shape), head, on, 0);
  const generated = batch * response;
  const generation: StepRow = {
    name: "generation",
    shape: `${name} (${batch} x ${prompt} + ${response} tokens)`,
    tokens: generated,
    sizes: shape,
    // each step reads every weight once
    cost: { flops: forward(shape, length - 1, generated), read: 4 * weights(configOf(shape)).all * response, write: 0 },
    prepare(on) {
      const policy = model(on);
      return {
        timer: timed(() => generate(policy, prompts(shape), { maxTokens: response, seed: 0, slots: batch })),
        dispose: () => policy.dispose(),
      };
    },
  };
  const sftStep: StepRow = {
    name: "SFT step",
    shape: `${name} (${batch} x ${length} tokens)`,
    tokens: batch * (length - 1),
    sizes: shape,
    cost: { flops: 3 * forward(shape, length - 1, batch * (length - 1)), ...adamBytes(shape, 1) },
    prepare(on) {
      const policy = model(on);
      const learner = endless({ model: policy }, 1e-4);
      const episodes = Array.from({ length: batch }, (_, i) => {
        const all = ids(length, vocabulary, i + 1);
        return { prompt: all.subarray(0, 1), completion: all.subarray(1) };
      });
      const step = () => once(sft(policy, () => episodes, { microBatch: batch }, learner));
      return { timer: timed(step), dispose: () => (learner[Symbol.dispose](), policy.dispose()) };
    },
  };
  const epochs = 4;
  const score = { ...shape, vocabulary: 0 };
  const ppoUpdate: StepRow = {
    name: "PPO update",
    shape: `${name} (${batch} x ${prompt} + ${response} tokens, 4 epochs of 4 minibatches)`,
    tokens: generated,
    sizes: shape,
    cost: {
      flops:
        2 * forward(shape, length - 1, generated) + // generation, reference
        forward(score, length, batch) + // reward
        forward(score, length - 1, generated) + // values
        3 * epochs * (forward(shape, length - 1, generated) + forward(score, length - 1, generated)),
      ...adamBytes(shape, 4 * epochs * 2),
    },
    prepare(on) {
      const models = {
        policy: model(on),
        reference: model(on),
        reward: model(on, "score"),
        critic: model(on, "score"),
      };
      const options: PpoOptions = { epochs, minibatches: 4, maxTokens: response, klCoef: 0.05, microBatch: batch };
      const learner = endless({ policy: models.policy, critic: models.critic }, 1e-5);
      const update = () => once(ppo(models, () => prompts(shape), options, learner));
      return {
        timer: timed(update),
        dispose() {
          learner[Symbol.dispose]();
          for (const one of Object.values(models)) one.dispose();
        },
      };
    },
  };
  return [generation, sftStep, ppoUpdate];
}

const smollm2: ModelConfig = {
  ...llama,
  layers: 30,
  width: 576,
  heads: 9,
  kvHeads: 3,
  headSize: 64,
  mlp: 1536,
  vocabulary: 49152,
  context: 8192,
  ropeTheta: 100000,
};

/** Decoding of one sequence by the likeliest token. Each step reads every weight. */
function decode(dtype: "f32" | "bf16"): StepRow {
  const [prompt, response] = [16, 128];
  const { all } = weights(smollm2);
  return {
    name: "decode",
    shape: `SmolLM2-135M ${dtype} (1 x ${prompt} + ${response} tokens)`,
    tokens: response,
    sizes: { ...smollm2, half: dtype === "bf16", prompt, response },
    cost: { flops: 2 * all * (prompt + response), read: BYTES[dtype] * all * response, write: 0 },
    prepare(on) {
      const model = Transformer.random(smollm2, "logits", on, 0);
      if (dtype === "bf16") model.toBf16();
      model.packWeights(); // once, as a peer does when it loads
      const request = { prompt: ids(prompt, smollm2.vocabulary, 1), index: 0, sample: 0 };
      return {
        timer: timed(() => generate(model, [request], { maxTokens: response, temperature: 0, seed: 0 })),
        dispose: () => model.dispose(),
      };
    },
  };
}

export const stepRows: StepRow[] = [
  ...Object.entries(shapes).flatMap(([name, shape]) => steps(name, shape)),
  decode("f32"),
  decode("bf16"),
];
