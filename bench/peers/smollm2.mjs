// SmolLM2-135M's shape with random weights, in llama.cpp's format (GGUF 3: header, metadata, tensor list, aligned data).
import { closeSync, existsSync, openSync, renameSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [layers, width, heads, kvHeads, mlp, vocabulary, context] = [30, 576, 9, 3, 1536, 49152, 8192];
const kv = (width / heads) * kvHeads;
const ALIGNMENT = 32;

/** Name and shape, in llama.cpp's order: the inner dimension first. */
const tensors = [
  ["token_embd.weight", width, vocabulary],
  ["output_norm.weight", width],
  ...Array.from({ length: layers }, (_, i) =>
    [
      ["attn_norm", width],
      ["attn_q", width, width],
      ["attn_k", width, kv],
      ["attn_v", width, kv],
      ["attn_output", width, width],
      ["ffn_norm", width],
      ["ffn_gate", width, mlp],
      ["ffn_up", width, mlp],
      ["ffn_down", mlp, width],
    ].map(([name, ...shape]) => [`blk.${i}.${name}.weight`, ...shape]),
  ).flat(),
];

const u32 = (x) => Buffer.from(Uint32Array.of(x).buffer);
const u64 = (x) => Buffer.from(BigUint64Array.of(BigInt(x)).buffer);
const f32 = (x) => Buffer.from(Float32Array.of(x).buffer);
const text = (x) => Buffer.concat([u64(Buffer.byteLength(x)), Buffer.from(x)]);
const [U32, F32, STRING, ARRAY, I32] = [4, 6, 8, 9, 5];
const array = (type, items) => Buffer.concat([u32(type), u64(items.length), ...items]);

const metadata = [
  ["general.architecture", STRING, text("llama")],
  ["general.name", STRING, text("SmolLM2-135M, random weights")],
  ["llama.block_count", U32, u32(layers)],
  ["llama.context_length", U32, u32(context)],
  ["llama.embedding_length", U32, u32(width)],
  ["llama.feed_forward_length", U32, u32(mlp)],
  ["llama.attention.head_count", U32, u32(heads)],
  ["llama.attention.head_count_kv", U32, u32(kvHeads)],
  ["llama.attention.layer_norm_rms_epsilon", F32, f32(1e-5)],
  ["llama.rope.dimension_count", U32, u32(width / heads)],
  ["llama.rope.freq_base", F32, f32(100000)],
  ["llama.vocab_size", U32, u32(vocabulary)],
  // ids are all that is fed to it, but it does not load without words
  ["tokenizer.ggml.model", STRING, text("gpt2")],
  ["tokenizer.ggml.pre", STRING, text("smollm")],
  [
    "tokenizer.ggml.tokens",
    ARRAY,
    array(
      STRING,
      Array.from({ length: vocabulary }, (_, i) => text(`t${i}`)),
    ),
  ],
  [
    "tokenizer.ggml.token_type",
    ARRAY,
    array(
      I32,
      Array.from({ length: vocabulary }, () => u32(1)),
    ),
  ],
  ["tokenizer.ggml.merges", ARRAY, array(STRING, [text("t 1")])],
  ["tokenizer.ggml.bos_token_id", U32, u32(0)],
  ["tokenizer.ggml.eos_token_id", U32, u32(0)],
];

const up = (n) => Math.ceil(n / ALIGNMENT) * ALIGNMENT;
const matrix = (shape) => shape.length > 1;
const bytesOf = (shape, half) => shape.reduce((a, b) => a * b) * (half && matrix(shape) ? 2 : 4);

let state = 1;
const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0);

/** Weights between 1/128 and 1/32 in size, of either sign, made of random bits: sign and mantissa, and one bit of the exponent. */
function weights(shape, half) {
  const size = shape.reduce((a, b) => a * b);
  if (!matrix(shape)) return new Float32Array(size).fill(1);
  return half
    ? Uint16Array.from({ length: size }, () => {
        const bits = random() >>> 8;
        return (bits & 0x83ff) | ((8 + ((bits >> 16) & 1)) << 10);
      })
    : Uint32Array.from({ length: size }, () => {
        const bits = random();
        return ((bits & 0x807fffff) | ((120 + ((bits >>> 24) & 1)) << 23)) >>> 0;
      });
}

/** The path of the model, which is made where it is not there yet. @param half f16 instead of f32 */
export function smollm2(half) {
  const path = join(tmpdir(), `rlhf-bench-smollm2-135m-${half ? "f16" : "f32"}.gguf`);
  if (existsSync(path)) return path;
  let offset = 0;
  const list = tensors.map(([name, ...shape]) => {
    const at = offset;
    offset += up(bytesOf(shape, half));
    return Buffer.concat([text(name), u32(shape.length), ...shape.map(u64), u32(half && matrix(shape) ? 1 : 0), u64(at)]);
  });
  const kinds = metadata.map(([key, type, value]) => Buffer.concat([text(key), u32(type), value]));
  const header = Buffer.concat([Buffer.from("GGUF"), u32(3), u64(tensors.length), u64(metadata.length), ...kinds, ...list]);
  const file = openSync(`${path}.part`, "w");
  const put = (bytes) => {
    writeSync(file, bytes);
    writeSync(file, Buffer.alloc(up(bytes.byteLength) - bytes.byteLength));
  };
  put(header);
  for (const [, ...shape] of tensors) put(weights(shape, half));
  closeSync(file);
  renameSync(`${path}.part`, path);
  return path;
}
