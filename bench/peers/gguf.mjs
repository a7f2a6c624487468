// A model of Llama's shape with random weights, in llama.cpp's format (GGUF 3: header, metadata,
// tensor list, aligned data).
import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, renameSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ALIGNMENT = 32;

/** Name and shape, in llama.cpp's order: the inner dimension first. The head is the embedding. */
const tensors = ({ layers, width, heads, kvHeads, headSize, mlp, vocabulary }) => [
  ["token_embd.weight", width, vocabulary],
  ["output_norm.weight", width],
  ...Array.from({ length: layers }, (_, i) =>
    [
      ["attn_norm", width],
      ["attn_q", width, heads * headSize],
      ["attn_k", width, kvHeads * headSize],
      ["attn_v", width, kvHeads * headSize],
      ["attn_output", heads * headSize, width],
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

const metadata = ({ layers, width, heads, kvHeads, headSize, mlp, vocabulary, context, normEps, ropeTheta }) => [
  ["general.architecture", STRING, text("llama")],
  ["general.name", STRING, text("random weights")],
  ["llama.block_count", U32, u32(layers)],
  ["llama.context_length", U32, u32(context)],
  ["llama.embedding_length", U32, u32(width)],
  ["llama.feed_forward_length", U32, u32(mlp)],
  ["llama.attention.head_count", U32, u32(heads)],
  ["llama.attention.head_count_kv", U32, u32(kvHeads)],
  ["llama.attention.layer_norm_rms_epsilon", F32, f32(normEps)],
  ["llama.rope.dimension_count", U32, u32(headSize)],
  ["llama.rope.freq_base", F32, f32(ropeTheta)],
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

/**
 * Weights between 1/128 and 1/32 in size, of either sign, made of random bits: sign and mantissa,
 * and one bit of the exponent.
 */
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

/**
 * The path of the model of these sizes, which is made where it is not there yet; with `half`, its
 * matrices are f16 instead of f32.
 */
export function gguf({ half, ...sizes }) {
  const all = tensors(sizes);
  let offset = 0;
  const list = all.map(([name, ...shape]) => {
    const at = offset;
    offset += up(bytesOf(shape, half));
    return Buffer.concat([
      text(name),
      u32(shape.length),
      ...shape.map(u64),
      u32(half && matrix(shape) ? 1 : 0),
      u64(at),
    ]);
  });
  const kinds = metadata(sizes).map(([key, type, value]) => Buffer.concat([text(key), u32(type), value]));
  const header = Buffer.concat([Buffer.from("GGUF"), u32(3), u64(all.length), u64(kinds.length), ...kinds, ...list]);
  const path = join(tmpdir(), `rlhf-bench-${createHash("sha256").update(header).digest("hex").slice(0, 16)}.gguf`);
  if (existsSync(path)) return path;
  const file = openSync(`${path}.part`, "w");
  const put = (bytes) => {
    writeSync(file, bytes);
    writeSync(file, Buffer.alloc(up(bytes.byteLength) - bytes.byteLength));
  };
  put(header);
  for (const [, ...shape] of all) put(weights(shape, half));
  closeSync(file);
  renameSync(`${path}.part`, path);
  return path;
}
