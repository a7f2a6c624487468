// Sums per sequence: y[b] = sum of x[t] over its tokens, divided by their number if mean.
//   gradient: dx[t] = dy[b], divided by the number if mean
//   x, dx: f32 [N] packed by cu_seqlens i32 [B+1]; y, dy: f32 [B]
//
// Law: each sum by law 4. Plan: threads take sequences.
#include "kernels/cpu/sums.h"

namespace rlhf::RLHF_ISA {

void sequence_sum(Context& ctx, const sequence_sum_args& a) {
  ctx.split(a.y.dim[0], 1, 1 + 16384 * a.y.dim[0] / (a.x.dim[0] + 1), [&](int64_t first_sequence, int64_t last) {
    for (int64_t b = first_sequence; b < last; b++) {
      const int64_t begin = a.cu_seqlens[b], end = a.cu_seqlens[b + 1];
      const double total = sequence_total(0, begin, end, [&](int64_t i, int n) { return widen(load(&a.x[i], n)); });
      a.y[b] = float(a.mean && end > begin ? total / double(end - begin) : total);
    }
  });
}

void sequence_sum_grad(Context&, const sequence_sum_grad_args& a) {
  for (int64_t b = 0; b < a.dy.dim[0]; b++) {
    const int64_t begin = a.cu_seqlens[b], end = a.cu_seqlens[b + 1];
    const V d = set(a.mean ? float(double(a.dy[b]) / double(end - begin)) : a.dy[b]);
    each_vector(begin, end, [&](int64_t i, int n) { store(&a.dx[i], d, n); });
  }
}

}  // namespace rlhf::RLHF_ISA
