// AdamW with decoupled decay (Loshchilov and Hutter 2019) in torch's order of operations, the
// global-norm clip fused.
//
//   g = grad min(1, max_norm / (norm + 1e-6));  w = w (1 - lr decay)
//   m = m + (1 - beta1) (g - m);  v = v beta2 + (1 - beta2) g g
//   w = w - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
//
// A norm that is not finite is an error, and nothing is touched.
// Law: the norm by law 4. Plan: one pass, threads take contiguous ranges. Memory is the limit: 16
// bytes read, 12 written.
// Figures: 82 % of the limit to all of it. History: kernels/notes/optimizer.md.
#include "kernels/cpu/math.h"
#include "kernels/cpu/sums.h"

namespace rlhf::RLHF_ISA {

void norm_squared(Context& ctx, const norm_squared_args& a) {
  const int64_t size = a.x.size(), blocks = (size + SUM_BLOCK - 1) / SUM_BLOCK;
  double* sums = static_cast<double*>(ctx.scratch(blocks * int64_t(sizeof(double)) + 64));
  if (!sums) return;
  ctx.split(blocks, 1, 4, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const int64_t from = b * SUM_BLOCK, to = from + SUM_BLOCK < size ? from + SUM_BLOCK : size;
      sums[b] = block_sum(from, to, [&](int64_t i, int n) {
        const D x = widen(load(&a.x[i], n));
        return x * x;
      });
    }
  });
  for (int64_t b = 0; b < blocks; b++) a.total[0] = a.total[0] + sums[b];
}

void adamw(Context& ctx, const adamw_args& a) {
  const double norm = __builtin_sqrt(a.norm_squared[0]);
  if (!(norm < __builtin_inf())) return ctx.fail("the gradient norm is not finite");
  const double clip = a.max_norm / (norm + 1e-6);
  const V factor = set(float(clip < 1 ? clip : 1)), decay = set(float(1 - a.lr * a.weight_decay));
  const V one_minus_beta1 = set(float(1 - a.beta1)), beta2 = set(float(a.beta2)),
          one_minus_beta2 = set(float(1 - a.beta2));
  const V rate = set(float(-(a.lr / (1 - pow(a.beta1, double(a.step)))))), eps = set(float(a.eps));
  const V correction = set(float(__builtin_sqrt(1 - pow(a.beta2, double(a.step)))));
  ctx.split(a.weight.size(), 1024, 16384, [&](int64_t begin, int64_t end) {
    each_vector(
        begin, end, [&](int64_t i, int n) __attribute__((always_inline)) {
          const V g = load(&a.grad[i], n) * factor;
          V m = load(&a.m[i], n), v = load(&a.v[i], n);
          m = fma(one_minus_beta1, g - m, m);
          v = fma(one_minus_beta2 * g, g, v * beta2);
          const V w = fma(rate, m / (sqrt(v) / correction + eps), load(&a.weight[i], n) * decay);
          store(&a.m[i], m, n), store(&a.v[i], v, n), store(&a.weight[i], w, n);
        });
  });
}

}  // namespace rlhf::RLHF_ISA
