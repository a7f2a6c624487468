// The value loss of PPO: 0.5 max((v - R)^2, (clip(v, old - range, old + range) - R)^2) per token, weighted as the
// policy's loss, with its gradient: w (v - R), 0 where the clipped square is strictly larger. Law and plan: as
// policy_loss.cc. AMD Zen 4, AVX-512, 2 cores, two threads, 1 M tokens: 0.26 ms, at the limit of memory that the
// benchmarks measure; 0.39 with the arguments read again after every store. A sixteen is 80 operations of 256 bits on
// four ports, 20 cycles, of 27 that it takes (0.49 ms on one thread): half of them widen and add five f64 sums, which
// the law asks for. Lost: those additions as multiply-adds (2 %), the sums of a sixteen beside the loss of the next (3
// % on one thread, nothing on two). Zen 3, AVX2, 2 cores, two threads: 0.43 ms, 43 % of the limit, that of the last
// cache when its others leave it room; 0.69 ms, 71 %, when they do not. 37 cycles a sixteen, in memory or in a cache:
// 20 registers of sums in 16. Sums of values and returns widened from memory again: nothing; each sum in a pass of its
// own 2 %; in functions of their own over what is held in a cache, 10 % for 20 lines, not kept. Zen 5, AVX-512, 2
// cores, two threads: 0.14 to 0.18 ms, 62 % to all of the limit. Intel Xeon (Sapphire Rapids or later, L2 of 2 MB),
// AVX-512, 2 cores, two threads: 0.32 to 0.42 ms, 72 to 93 %, 2.6 times torch compiled.
#include "kernels/cpu/token_loss.h"

namespace rlhf::RLHF_ISA {
namespace {

struct ValueToken {
  V loss, error;
  B clipped;
};

// The arguments in registers, whatever the stores may touch.
struct ValueTerms {
  const float *values, *returns, *old_values;
  V range, half;

  RLHF_INLINE explicit ValueTerms(const value_loss_args& a)
      : values(a.values.data),
        returns(a.returns.data),
        old_values(a.old_values.data),
        range(set(float(a.clip_range))),
        half(set(0.5f)) {}

  RLHF_INLINE ValueToken at(V v, V R, const Sixteen& x) const {
    const V error = v - R, squared = error * error;
    if (!old_values) return {half * squared, error, zero() < zero()};
    const V old = x.of(old_values);
    const V kept = max(min(v, old + range), old - range) - R, other = kept * kept;
    const B clipped = squared < other;
    return {half * select(clipped, other, squared), select(clipped, zero(), error), clipped};
  }
};

}  // namespace

void value_loss(Context& ctx, const value_loss_args& a) {
  const int64_t M = a.values.dim[0];
  const int64_t sums = packed_sums_scratch(M, a.cu_seqlens, 8);
  double* memory =
      static_cast<double*>(ctx.scratch(sums * int64_t(sizeof(double)) + a.cu_seqlens.dim[0] * int64_t(sizeof(float))));
  if (!memory) return;
  float* weights = reinterpret_cast<float*>(memory + sums);
  if (a.clip_range < __builtin_inf() && !a.old_values)
    return ctx.fail("clip_range is given, and old_values is missing");
  sequence_weights(a, weights);
  double totals[8] = {};  // the last one the loss of this call alone
  for (int k = 0; k < 7; k++) totals[k] = a.stats[k];
  packed_sums(ctx, a.cu_seqlens, M, 8, memory, totals, [&](int64_t b, int64_t begin, int64_t end, double* out) {
    const V factor = set(float(a.scale)) * set(weights[b]);
    D loss = setd(0), v = loss, R = loss, errors = loss, squares = loss;
    int64_t tokens = 0, clipped = 0;
    const ValueTerms terms(a);
    float* dvalues = a.dvalues.data;
    each_sixteen(
        a.mask, begin, end, [&](const Sixteen& x) __attribute__((always_inline)) {
          const V v16 = x.of(terms.values), R16 = x.of(terms.returns);
          const ValueToken t = terms.at(v16, R16, x);
          x.put(dvalues, factor * t.error);
          const D value = widen(v16), target = widen(R16), error = value - target;
          tokens += x.count(), clipped += x.count(t.clipped);
          loss = plus(loss, t.loss), v = plus(v, value), R = plus(R, target);
          errors = fma(error, error, errors), squares = fma(target, target, squares);
        });
    const double w = weights[b], total = a.scale * w * sum(loss);
    const double all[8] = {
        total, w * double(clipped), w * sum(v), w * sum(errors), w * sum(R), w * sum(squares), double(tokens), total};
    for (int k = 0; k < 8; k++) out[k] = all[k];
  });
  for (int k = 0; k < 7; k++) a.stats[k] = totals[k];
  a.loss[0] = float(totals[7]);
}

}  // namespace rlhf::RLHF_ISA
