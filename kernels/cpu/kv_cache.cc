// The cache of keys and values of one layer: writes of new tokens, and copies of whole slots.
//
//   k, v f32 [N,G,D] -> k_cache, v_cache f32 [S,G,T,D], slot by slot, T a multiple of 64
//   Within a slot and head, keys lie as panels [T/64][D][64] and values as rows [T][D]. A tile of the online softmax
//   reads them in this order, so keys and values stream once (attention_decode.cc).
//
// Plan: tokens in order, so that the last one written to a place stays. Threads share the columns of the heads.
#include "kernels/cpu/attention.h"

namespace rlhf::RLHF_ISA {

void kv_write(Context& ctx, const kv_write_args& a) {
  const int64_t N = a.k.dim[0], G = a.k.dim[1], D = a.k.dim[2], T = a.k_cache.dim[2];
  if (ctx.measuring) return;
  if (T % TILE) return ctx.fail("the capacity of the cache must be a multiple of 64");
  ctx.split(G * D, LANES, (1 << 16) / most(1, N), [&](int64_t begin, int64_t end) {
    for (int64_t n = 0, run; n < N; n += run) {
      const int64_t at = a.positions[n];
      for (run = 1;
           n + run < N && a.slots[n + run] == a.slots[n] && a.positions[n + run] == at + run && (at + run) % TILE;
           run++) {}
      for (int64_t column = begin; column < end;) {
        const int64_t g = column / D, d = column % D, columns = least(end - column, D - d);
        const int64_t head = (a.slots[n] * G + g) * T * D;
        float* keys = a.k_cache.data + head + at / TILE * TILE * D;
        for (int64_t i = 0; i < run; i++)
          memcpy(a.v_cache.data + head + (at + i) * D + d, a.v.row(n + i) + column, size_t(columns) * sizeof(float));
        pack_keys(a.k.row(n) + column, a.k.stride, run, columns, keys + d * TILE, at % TILE);
        column += columns;
      }
    }
  });
}

void kv_copy(Context& ctx, const kv_copy_args& a) {
  const int64_t size = a.k_cache.dim[1] * a.k_cache.dim[2] * a.k_cache.dim[3], M = a.from.dim[0];
  if (ctx.measuring) return;
  ctx.split(size, 1024, 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < M; m++) {
      if (a.from[m] == a.to[m]) continue;
      const int64_t from = a.from[m] * size + begin, to = a.to[m] * size + begin;
      memcpy(a.k_cache.data + to, a.k_cache.data + from, size_t(end - begin) * sizeof(float));
      memcpy(a.v_cache.data + to, a.v_cache.data + from, size_t(end - begin) * sizeof(float));
    }
  });
}

}  // namespace rlhf::RLHF_ISA
