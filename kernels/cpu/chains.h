// Sequences that continue earlier ones: sequence b, prefix[b] before it, and so on, form a chain whose positions go on.
//   base[b]  position of the sequence's first token = end of its prefix
#pragma once
#include "kernels/cpu/attention.h"

namespace rlhf::RLHF_ISA {
namespace {

// The sequence before b; -1 also in place of one that is not earlier, which `chain` refuses.
RLHF_INLINE int64_t earlier(View<const int32_t> prefix, int64_t b) {
  return prefix && prefix[b] >= 0 && prefix[b] < b ? prefix[b] : -1;
}

struct Chains {
  int64_t B;
  const int32_t* offsets;  // cuSeqlens
  const int32_t* prefix;  // or null
  const int64_t* base;

  RLHF_INLINE int64_t length(int64_t b) const { return offsets[b + 1] - offsets[b]; }
  RLHF_INLINE int64_t end(int64_t b) const { return base[b] + length(b); }
  RLHF_INLINE int64_t before(int64_t b) const { return prefix ? prefix[b] : -1; }
  RLHF_INLINE int64_t first_tile(int64_t b) const { return base[b] / TILE; }
  RLHF_INLINE int64_t tiles(int64_t b) const { return length(b) ? (end(b) - 1) / TILE - first_tile(b) + 1 : 0; }

  // Positions that the chains of a and b have in common.
  RLHF_INLINE int64_t common(int64_t a, int64_t b) const {
    while (a != b && a >= 0 && b >= 0) {
      if (a > b) a = before(a);
      else b = before(b);
    }
    return a == b && a >= 0 ? end(a) : 0;
  }

  // f(key in the tile, token row, count) for each run of b's tile whose tokens lie together.
  template <class F>
  RLHF_INLINE void runs(int64_t b, int64_t tile, F&& f) const {
    const int64_t stop = least(end(b), (tile + 1) * TILE);
    for (int64_t p = tile * TILE; p < stop;) {
      int64_t limit = stop, owner = b;
      while (p < base[owner]) limit = least(limit, base[owner]), owner = before(owner);
      f(p - tile * TILE, offsets[owner] + p - base[owner], limit - p);
      p = limit;
    }
  }
};

RLHF_INLINE bool chain(
    Context& ctx, View<const int32_t> cu_seqlens, View<const int32_t> prefix, int64_t* base, Chains& chains) {
  const int64_t B = cu_seqlens.dim[0] - 1;
  chains = {B, cu_seqlens.data, prefix.data, base};
  for (int64_t b = 0; b < B; b++) {
    const int64_t before = chains.before(b);
    if (before < -1 || before >= b) return ctx.fail("prefix must hold an earlier sequence for each, or -1"), false;
    base[b] = before < 0 ? 0 : chains.end(before);
  }
  return true;
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
