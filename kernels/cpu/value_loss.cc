// The value loss of PPO, weighted as the policy's loss, with its gradient:
//   0.5 max((v - R)^2, (clip(v, old - range, old + range) - R)^2) per token
//   gradient w (v - R), 0 where the clipped square is strictly larger
//
// Law and plan: as policy_loss.cc.
// Figures: 43 % of the limit to all of it. History: kernels/notes/value_loss.md.
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
    const double all[8] = {total, double(clipped), sum(v), sum(errors), sum(R), sum(squares), double(tokens), total};
    for (int k = 0; k < 8; k++) out[k] = all[k];
  });
  for (int k = 0; k < 7; k++) a.stats[k] = totals[k];
  a.loss[0] = float(totals[7]);
}

}  // namespace rlhf::RLHF_ISA
