// AdamW with decoupled decay, the global-norm clip fused. Formulas: kernels/cpu/optimizer.cc. A
// norm that is not finite is latched, and nothing is touched.
//
// Plan: one pass, four elements a thread: 16 bytes read and 12 written an element. The norm:
// sums.h.
// History: kernels/notes/optimizer.md.
#include <cmath>

#include "kernels/cuda/sums.h"
#include "native/list/functions.h"

namespace rlhf::cuda {

struct AdamwParams {
  Global<float> weight, m, v;
  Global<const float> grad;
  Global<const double> norm_squared;
  int64_t n;
  double max_norm;
  float decay, one_minus_beta1, beta2, one_minus_beta2, rate, correction, eps;
  int32_t vector;
  Latch error;
};
struct NormParams {
  Global<const float> x;
  Global<double> partial, total;
  int64_t n;
  int32_t vector;
};

#if RLHF_DEVICE_CODE

KERNEL(adamw, AdamwParams, 256) {
  const double norm = sqrt(p.norm_squared[0]);
  const int64_t i = 4 * (int64_t(block_x()) * 256 + thread());
  if (!(norm < double(INFINITE))) return latch(p.error, NOT_FINITE);
  const double clip = p.max_norm / (norm + 1e-6);
  const float factor = float(clip < 1 ? clip : 1);
  float w[4], g[4], m[4], v[4];
  load_four<float>(p.weight, i, p.n, p.vector, w), load_four(p.grad, i, p.n, p.vector, g);
  load_four<float>(p.m, i, p.n, p.vector, m), load_four<float>(p.v, i, p.n, p.vector, v);
  UNROLL for (int k = 0; k < 4; k++) {
    const float clipped = g[k] * factor;
    m[k] = fma(p.one_minus_beta1, clipped - m[k], m[k]);
    v[k] = fma(p.one_minus_beta2 * clipped, clipped, v[k] * p.beta2);
    w[k] = fma(p.rate, m[k] / (sqrt(v[k]) / p.correction + p.eps), w[k] * p.decay);
  }
  store_four(p.m, i, p.n, p.vector, m), store_four(p.v, i, p.n, p.vector, v), store_four(p.weight, i, p.n, p.vector, w);
}

KERNEL(norm_blocks, NormParams, 256) {
  sum_elements(p.x, p.n, p.vector, p.partial, [](float x) { return double(x) * double(x); });
}
KERNEL(norm_finish, NormParams, 256) {
  const double sum = sum_of_blocks(p.partial, p.n);
  if (thread() == 0) p.total[0] += sum;
}

#endif

#if RLHF_HOST_CODE
void norm_squared(Context& ctx, const norm_squared_args& a) {
  const int64_t n = a.x.size(), blocks = sum_blocks_of(n);
  double* memory = static_cast<double*>(ctx.scratch((blocks + 1) * int64_t(sizeof(double))));
  if (!memory) return;
  const NormParams p{
      global<const float>(a.x.data, n), global<double>(memory, blocks + 1), global(a.total), n, at_16_bytes(a.x.data)};
  launch(ctx, "norm_blocks", {blocks}, 256, block_sums_shared(1), p);
  launch(ctx, "norm_finish", {1}, 256, block_sums_shared(1), p);
}

void adamw(Context& ctx, const adamw_args& a) {
  const int64_t n = a.weight.size();
  const AdamwParams p{global<float>(a.weight.data, n), global<float>(a.m.data, n), global<float>(a.v.data, n),
      global<const float>(a.grad.data, n), global(a.norm_squared), n, a.max_norm, float(1 - a.lr * a.weight_decay),
      float(1 - a.beta1), float(a.beta2), float(1 - a.beta2), float(-(a.lr / (1 - rlhf_pow(a.beta1, double(a.step))))),
      float(std::sqrt(1 - rlhf_pow(a.beta2, double(a.step)))), float(a.eps),
      at_16_bytes(a.weight.data) && at_16_bytes(a.m.data) && at_16_bytes(a.v.data) && at_16_bytes(a.grad.data),
      latch_of(ctx)};
  launch(ctx, "adamw", {(n + 1023) / 1024}, 256, 0, p);
}
#endif

}  // namespace rlhf::cuda
