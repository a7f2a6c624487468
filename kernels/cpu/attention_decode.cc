// Attention of one new token per sequence against a cache of keys and values (kv_cache.cc).
//
//   q [B,H,D], the first lengths[b] tokens of slot slots[b] -> o [B,H,D]
//
// Law: the tiles, chains and joins of attention, by the same function. So o is bit for bit the row
// that attention gives for the same token. What the cache holds beyond lengths[b] enters no sum.
// Figures: 29 % of the limit of memory to all of it. History: kernels/notes/attention.md.
#include "kernels/cpu/attention.h"

namespace rlhf::RLHF_ISA {

void attention_decode(Context& ctx, const attention_decode_args& a) {
  const int64_t B = a.q.dim[0], H = a.q.dim[1], D = a.q.dim[2], G = a.k_cache.dim[1], T = a.k_cache.dim[2];
  const int64_t W = width(D), heads = G ? H / G : 0;
  const auto lay = [&](Places& p, Rows& x, int64_t*& seen, float*& values) {
    x.o = p.take<float>(heads * W), x.s = p.take<float>(heads * TILE);
    x.m = p.take<float>(heads), x.l = p.take<float>(heads), x.fall = p.take<float>(heads);
    seen = p.take<int64_t>(heads), values = p.take<float>(D == W ? 0 : TILE * W);
  };
  Places places{nullptr};
  Rows nothing;
  int64_t* none;
  float* no_values;
  lay(places, nothing, none, no_values);
  char* memory = static_cast<char*>(ctx.scratch(ctx.threads * places.bytes));
  if (ctx.measuring || ctx.failure) return;
  if (G == 0 ? H != 0 : H % G != 0) return ctx.fail("the heads of q must be a multiple of those of the cache");
  if (T % TILE) return ctx.fail("the capacity of the cache must be a multiple of 64");
  int64_t total = 0;
  for (int64_t b = 0; b < B; b++) {
    if (a.lengths[b] < 1 || a.lengths[b] > T) return ctx.fail("lengths must be from 1 to the capacity of the cache");
    total += a.lengths[b] * (heads + 4) * D + 1;
  }

  share(ctx, total * G, [&](int thread, int64_t begin, int64_t end) {
    Places own{memory + thread * places.bytes};
    Rows x;
    int64_t* seen;
    float* padded;
    lay(own, x, seen, padded);
    int64_t at = 0;
    for (int64_t b = 0; b < B; b++)
      for (int64_t g = 0; g < G; g++) {
        const int64_t start = at, length = a.lengths[b];
        at += length * (heads + 4) * D + 1;
        if (start < begin || start >= end) continue;
        const float* keys = a.k_cache.data + (a.slots[b] * G + g) * T * D;
        const float* values = a.v_cache.data + (a.slots[b] * G + g) * T * D;
        x.q = a.q.row(b) + g * heads * D;
        memset(x.o, 0, size_t(heads * W) * sizeof(float));
        for (int64_t h = 0; h < heads; h++) x.m[h] = -__builtin_inff(), x.l[h] = 0;
        for (int64_t tile = 0; tile * TILE < length; tile++) {
          const int64_t n = least(TILE, length - tile * TILE);
          const float* rows = values + tile * TILE * D;
          if (D != W) pack_rows(rows, D, n, D, padded), rows = padded;
          for (int64_t h = 0; h < heads; h++) seen[h] = n;
          attend(D, float(a.scale), x, 0, heads, keys + tile * TILE * D, rows, seen);
        }
        for (int64_t h = 0; h < heads; h++) finish(x.o + h * W, x.l[h], D, a.o.row(b) + (g * heads + h) * D);
      }
  });
}

}  // namespace rlhf::RLHF_ISA
