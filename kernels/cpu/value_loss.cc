// The value loss of PPO: 0.5 max((v - R)^2, (clip(v, old - range, old + range) - R)^2) per token, weighted as the policy's loss,
// with its gradient: w (v - R), 0 where the clipped square is strictly larger.
// Law: statistics by law 4. Plan: tokens over threads for the gradient; the sums on one thread, in order.
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
  float* w = static_cast<float*>(ctx.scratch((M + LANES) * int64_t(sizeof(float)) + 64));
  if (!w) return;
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
  double loss = 0;
  for (int64_t b = 0; b + 1 < a.cu_seqlens.dim[0]; b++)
    for (int64_t block = a.cu_seqlens[b]; block < a.cu_seqlens[b + 1]; block += SUM_BLOCK) {
      const int64_t end = block + SUM_BLOCK < a.cu_seqlens[b + 1] ? block + SUM_BLOCK : a.cu_seqlens[b + 1];
      D sums[7];
      for (auto& s : sums) s = setd(0);
      for (int64_t i = block; i < end; i += LANES) {
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
      loss = loss + sum(sums[0]);
      for (int k = 0; k < 7; k++) a.stats[k] = a.stats[k] + sum(sums[k]);
    }
  a.loss[0] = float(loss);
}

}  // namespace rlhf::RLHF_ISA
