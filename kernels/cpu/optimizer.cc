// AdamW with decoupled decay (Loshchilov and Hutter 2019) in torch's order of operations, the global-norm clip fused.
//
//   g = grad min(1, max_norm / (norm + 1e-6));  w = w (1 - lr decay);  m = m + (1 - beta1) (g - m);  v = v beta2 + (1 -
//   beta2) g g w = w - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
//
// A norm that is not finite is an error, and nothing is touched.
// Law: the norm by law 4. Plan: one pass, threads take contiguous ranges; memory is the limit: 16 bytes read, 12
// written. AMD Zen 4, AVX-512, 2 cores, two threads, 8 M weights: 3.2 to 4.9 ms, 82 to 109 % of the limit (others use
// the memory too), and 0.8 to 1.0 more with the norm, which reads the gradient at the bandwidth: with it, seven eighths
// of the limit are the most. Two divisions and a root take 22 cycles a sixteen, 1.6 ms if nothing else bound. Lost,
// against 4.5 to 5.0 in the same run: prefetching each stream 1 or 4 KiB ahead (5.5 to 6.1), stores past the caches
// (5.6 to 6.3), 2 KiB of each stream in turn (6.8 to 7.3); two or four sixteens at a time take as long. Zen 3, AVX2, 2
// cores, two threads: 4.7 to 7.2 ms, all of the limit; clipped 6.0 to 8.9, 82 to 86 %, 1.4 to 1.7 times torch: the norm
// reads the gradients once more, seven eighths at most. Zen 5, AVX-512, 2 cores, two threads: 3.5 ms, all of the limit;
// clipped 4.1, 94 %. With masks 5.4 and 6.5. Nothing was won there by asking 64 to 1,024 values ahead, nor by stores
// past the caches (a C harness: 3.0 to 3.5 ms, 67 to 77 GB/s, with all of them). Intel Xeon (Sapphire Rapids or later,
// L2 of 2 MB), AVX-512, 2 cores, two threads: 4.6 ms, at the limit; clipped 5.6 ms, 87 %, 1.6 times torch.
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
