import { describe, expect, test } from "@jest/globals";
import { packSequences, Transformer, device, generate } from "../../lib/index.js";
import { fromHuggingFace, longestSequence, toHuggingFace, type ModelConfig } from "../../lib/model/config.js";
import { llama } from "../models.js";

type Json = Record<string, unknown>;

const sizes = {
  hidden_size: 16,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  num_hidden_layers: 2,
  intermediate_size: 24,
  vocab_size: 11,
};
const read = (json: Json): ModelConfig =>
  fromHuggingFace({ ...sizes, max_position_embeddings: 8192, ...json }, "config.json");

describe("a sliding window", () => {
  test.each<[number | undefined, Json]>([
    [4096, { model_type: "mistral" }], // the default of transformers
    [1024, { model_type: "mistral", sliding_window: 1024 }],
    [undefined, { model_type: "mistral", sliding_window: null }],
    [undefined, { model_type: "mistral", sliding_window: 8192 }],
    [undefined, { model_type: "llama", sliding_window: 1024 }], // which Llama has not
    [undefined, { model_type: "qwen2", use_sliding_window: false, sliding_window: 1024 }],
    [undefined, { model_type: "qwen3", use_sliding_window: true, sliding_window: 1024, max_window_layers: 2 }], // a layer beyond the last
    [undefined, { model_type: "qwen3", use_sliding_window: true, sliding_window: 8192, max_window_layers: 0 }],
  ])("is %p of %j", (window, json) => {
    const config = read(json);
    expect([config.window, longestSequence(config)]).toEqual([window, window ?? Infinity]);
    expect(fromHuggingFace(toHuggingFace(config, "logits"), "again")).toEqual(config);
  });

  test.each<[Json, string]>([
    [
      { model_type: "qwen2", use_sliding_window: true, sliding_window: 1024, max_window_layers: 1 },
      "is 1024 in the layers from max_window_layers, 1, on",
    ],
    [
      { model_type: "qwen3", use_sliding_window: true, layer_types: ["full_attention", "sliding_attention"] },
      "is 4096 in the layers that layer_types names",
    ],
    [{ model_type: "mistral", sliding_window: -1 }, "is -1"],
  ])("is refused by key, value and what is wanted in %j", (json, given) => {
    const message = expect.stringMatching(new RegExp(`sliding_window ${given}, wanted `));
    expect(() => read(json)).toThrow(expect.objectContaining({ code: "MODEL", message }));
  });

  test("limits the sequence, in training and in generation", async () => {
    const on = await device("cpu");
    const model = Transformer.random({ ...llama, kind: "mistral", window: 9 }, "logits", on, 1);
    const tokens = (count: number) => Array.from({ length: count }, (_, i) => i);
    expect(model.hidden(packSequences([tokens(9)])).shape).toEqual([9, 32]);
    const refusal = expect.objectContaining({
      code: "CONTEXT",
      message: expect.stringMatching(/10 tokens.*9.*sliding window/),
    });
    expect(() => model.hidden(packSequences([tokens(2), tokens(10)]))).toThrow(refusal);
    expect(() => model.hidden(packSequences([tokens(5), tokens(5)], [-1, 0]))).toThrow(refusal);
    await expect(
      generate(model, [{ prompt: tokens(5), index: 0, sample: 0 }], { maxTokens: 5, seed: 1 }),
    ).rejects.toMatchObject({ code: "CONTEXT" });
    model.dispose();
    await on.close();
  });
});

describe("rotary positions", () => {
  const stretch = {
    rope_type: "llama3",
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
  };
  const ropeScaling = { factor: 8, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalContext: 8192 };
  test.each<[Json]>([
    [{ rope_theta: 5e5, rope_scaling: stretch }],
    [{ rope_parameters: { rope_theta: 5e5, ...stretch } }],
    [{ rope_theta: 5e5, rope_scaling: { ...stretch, rope_type: undefined, type: "llama3" } }],
  ])("are those of Llama 3.1 in each spelling: %j", (json) => {
    const config = read({ model_type: "llama", ...json });
    expect(config).toMatchObject({ ropeTheta: 5e5, ropeScaling });
    expect(fromHuggingFace(toHuggingFace(config, "logits"), "again")).toEqual(config);
  });

  test.each<[string, Json]>([
    ["rope_type", { rope_scaling: { rope_type: "yarn", factor: 4 } }],
    ["factor", { rope_scaling: { rope_type: "llama3" } }],
    ["low_freq_factor", { rope_scaling: { ...stretch, low_freq_factor: 4 } }],
    ["partial_rotary_factor", { partial_rotary_factor: 0.5 }],
    ["dimensions", { head_dim: 3 }],
  ])("are refused by name where %s is not ours", (name, json) => {
    expect(() => read({ model_type: "llama", ...json })).toThrow(
      expect.objectContaining({ code: "MODEL", message: expect.stringContaining(name) }),
    );
  });
});

test("ids of tokens are kept; a reward model's padding is not its end of text, which transformers would pass over", () => {
  const ids = { bos_token_id: 1, eos_token_id: [2, 5], pad_token_id: 2 };
  const config = read({ model_type: "llama", ...ids });
  expect(config).toMatchObject({ bosId: 1, eosId: 2, eosIds: [2, 5], padId: 2 });
  expect(fromHuggingFace(toHuggingFace(config, "logits"), "again")).toEqual(config);
  expect(toHuggingFace(config, "logits")).toMatchObject(ids);
  expect(toHuggingFace(config, "score")).toMatchObject({ eos_token_id: [2, 5], pad_token_id: null });
  expect(toHuggingFace({ ...config, padId: 5 }, "score")).toMatchObject({ pad_token_id: null });
  expect(toHuggingFace({ ...config, padId: 3 }, "score")).toMatchObject({ pad_token_id: 3 });
  expect(toHuggingFace(read({ model_type: "llama" }), "logits")).toMatchObject({
    bos_token_id: null,
    eos_token_id: null,
    pad_token_id: null,
  });
});

test("another family is refused by name", () => {
  for (const model_type of ["gemma", undefined, "toString"])
    expect(() => read({ model_type })).toThrow(
      expect.objectContaining({ message: expect.stringContaining("gpt2, llama, qwen2, qwen3, mistral") }),
    );
});

test.each([{ scale_attn_weights: false }, { scale_attn_by_inverse_layer_idx: true }, { add_cross_attention: true }])(
  "GPT-2's %j is refused by name",
  (json) => {
    const gpt2 = {
      model_type: "gpt2",
      n_embd: 16,
      n_head: 4,
      n_layer: 2,
      vocab_size: 11,
      scale_attn_weights: true,
      reorder_and_upcast_attn: true,
    };
    expect(fromHuggingFace(gpt2, "config.json").heads).toBe(4);
    const name = expect.stringContaining(Object.keys(json)[0]);
    expect(() => fromHuggingFace({ ...gpt2, ...json }, "config.json")).toThrow(
      expect.objectContaining({ code: "MODEL", message: name }),
    );
  },
);
