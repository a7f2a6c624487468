// A head with one output at chosen rows.
//
//   value[m] = h[rows[m]] . w + b
//   dh[rows[m]] += dvalue[m] w,  dw = sum of dvalue[m] h[rows[m]],  db = sum of dvalue[m]
//   h f32 [N,C]  w f32 [1,C]  b f32 [1]  rows i32 [M]  value f32 [M]
//
// Law: value is summed in 16 lanes. The gradients are chains over m, in order.
// Plan: forward threads take rows. Gradients take columns, so that each element is one chain
// whatever the threads.
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {

void score(Context& ctx, const score_args& a) {
  const int64_t C = a.h.dim[1];
  ctx.split(a.rows.dim[0], 1, 16384 / (C + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
      const float* h = a.h.row(a.rows[m]);
      V total = zero();
      each_vector(0, C, [&](int64_t i, int n) { total = fma(load(h + i, n), load(&a.weight[i], n), total); });
      a.value[m] = a.bias ? sum(total) + a.bias[0] : sum(total);
    }
  });
}

void score_grad(Context& ctx, const score_grad_args& a) {
  const int64_t M = a.rows.dim[0], N = a.h.dim[0], C = a.h.dim[1];
  ctx.split(C, LANES, 16384 / (N + M + 1) + 1, [&](int64_t begin, int64_t end) {
    each_vector(begin, end, [&](int64_t i, int n) {
      if (a.dh)
        for (int64_t r = 0; r < N; r++) store(a.dh.row(r) + i, zero(), n);
      const V w = load(&a.weight[i], n);
      V dw = a.dweight ? load(&a.dweight[i], n) : zero();
      for (int64_t m = 0; m < M; m++) {
        const V d = set(a.dvalue[m]);
        if (a.dh) {
          float* dh = a.dh.row(a.rows[m]) + i;
          store(dh, fma(d, w, load(dh, n)), n);
        }
        dw = fma(d, load(a.h.row(a.rows[m]) + i, n), dw);
      }
      if (a.dweight) store(&a.dweight[i], dw, n);
    });
  });
  if (a.dbias)
    for (int64_t m = 0; m < M; m++) a.dbias[0] = a.dbias[0] + a.dvalue[m];
}

}  // namespace rlhf::RLHF_ISA
