// The value loss of PPO: 0.5 max((v - R)^2, (clip(v, old - range, old + range) - R)^2) per token, weighted as the policy's loss,
// with its gradient: w (v - R), 0 where the clipped square is strictly larger.
// Law: statistics by law 4. Plan: tokens over threads for the gradient, blocks over threads for the sums, which are added in order.
#include "kernels/cpu/policy_loss.h"

namespace rlhf::RLHF_ISA {
namespace {

struct ValueToken {
  V loss, error;
  B clipped;
};

RLHF_INLINE ValueToken value_token(const value_loss_args& a, int64_t i, int n, B counts) {
  const V v = load_where(&a.values[i], n, counts), R = load_where(&a.returns[i], n, counts), half = set(0.5f);
  const V error = v - R, squared = error * error;
  if (!a.old_values) return {half * squared, error, zero() < zero()};
  const V old = load_where(&a.old_values[i], n, counts), range = set(float(a.clip_range));
  const V kept = max(min(v, old + range), old - range) - R, other = kept * kept;
  const B clipped = squared < other;
  return {half * select(clipped, other, squared), select(clipped, zero(), error), clipped};
}

}  // namespace

void value_loss(Context& ctx, const value_loss_args& a) {
  const int64_t M = a.values.dim[0];
  const int64_t sums = packed_sums_scratch(M, a.cu_seqlens, 8);
  double* memory = static_cast<double*>(ctx.scratch(sums * int64_t(sizeof(double)) + (M + LANES) * int64_t(sizeof(float)) + 64));
  if (!memory) return;
  float* w = reinterpret_cast<float*>(memory + sums);
  if (a.clip_range < __builtin_inf() && !a.old_values) return ctx.fail("clip_range is given, and old_values is missing");
  token_weights(a, w);
  const V scale = set(float(a.scale)), one = set(1.0f);
  ctx.split(M, LANES, 8192, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) {
      const int n = end - i < LANES ? int(end - i) : LANES;
      const V weight = load(w + i, n);
      store(&a.dvalues[i], scale * weight * value_token(a, i, n, zero() < weight).error, n);
    }
  });
  double totals[8] = {};  // the last one the loss of this call alone
  for (int k = 0; k < 7; k++) totals[k] = a.stats[k];
  packed_sums(ctx, a.cu_seqlens, M, 8, memory, totals, [&](int64_t begin, int64_t end, double* out) {
    D sums[7];
    for (auto& s : sums) s = setd(0);
    for (int64_t i = begin; i < end; i += LANES) {
      const int n = end - i < LANES ? int(end - i) : LANES;
      const V weight = load(w + i, n);
      const B counts = zero() < weight;
      const ValueToken t = value_token(a, i, n, counts);
      const D wide = widen(weight), v = widen(load_where(&a.values[i], n, counts)), R = widen(load_where(&a.returns[i], n, counts));
      sums[0] = fma(setd(a.scale) * wide, widen(t.loss), sums[0]);
      sums[1] = sums[1] + wide * widen(select(t.clipped & counts, one, zero()));
      sums[2] = fma(wide, v, sums[2]);
      sums[3] = fma(wide, (v - R) * (v - R), sums[3]);
      sums[4] = fma(wide, R, sums[4]);
      sums[5] = fma(wide, R * R, sums[5]);
      sums[6] = sums[6] + widen(select(counts, one, zero()));
    }
    for (int k = 0; k < 7; k++) out[k] = sum(sums[k]);
    out[7] = out[0];
  });
  for (int k = 0; k < 7; k++) a.stats[k] = totals[k];
  a.loss[0] = float(totals[7]);
}

}  // namespace rlhf::RLHF_ISA
