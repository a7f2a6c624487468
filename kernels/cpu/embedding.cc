// Rows of a table.
//
//   y[n] = table[ids[n]];  dtable[ids[n]] += dy[n], tokens in order
//
// Plan: forward threads take tokens; gradients take columns, so that each element is one chain whatever the threads.
// AMD Zen 4, AVX-512, 2 cores, two threads, 2,048 tokens of 50,257 x 768: 0.59 ms, and 0.88 the gradient. Rows of 3 KiB
// lie anywhere in 154 MB: 28 and 8 % of what streams through the last level of caches could move, a thousandth of a
// step of GPT-2 at most. Zen 3, AVX2, the same: 0.16 to 0.47 ms and 0.34 to 0.61. Zen 5, AVX-512, the same: 0.10 ms and
// 0.17. Intel Xeon (Sapphire Rapids or later), AVX-512, the same: 0.24 ms and 0.35.
#include "kernels/cpu/vector.h"
#include "native/list/types.h"

namespace rlhf::RLHF_ISA {

void embedding(Context& ctx, const embedding_args& a) {
  const int64_t C = a.table.dim[1];
  ctx.split(a.ids.dim[0], 1, 16384 / (C + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t row = a.ids[n] * C;
      if (a.table.dtype == RLHF_F32) {
        std::memcpy(a.y.row(n), a.table.data + row, size_t(C) * sizeof(float));
        continue;
      }
      const bf16* from = reinterpret_cast<const bf16*>(a.table.data) + row;
      each_vector(0, C, [&](int64_t i, int k) { store(a.y.row(n) + i, load(from + i, k), k); });
    }
  });
}

void embedding_grad(Context& ctx, const embedding_grad_args& a) {
  const int64_t N = a.ids.dim[0], C = a.dtable.dim[1];
  ctx.split(C, LANES, 16384 / (N + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < N; n++) {
      float* to = a.dtable.row(a.ids[n]);
      const float* from = a.dy.row(n);
      each_vector(begin, end, [&](int64_t i, int k) { store(to + i, load(to + i, k) + load(from + i, k), k); });
    }
  });
}

}  // namespace rlhf::RLHF_ISA
