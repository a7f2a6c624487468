// Token rewards: reward[t] = -kl_coef kl[t], plus the score of the sequence at its last token.
//   d = logp[t] - ref_logp[t];  kl: k1 d, |d|, k2 d^2 / 2, k3 expm1(-d) + d at most 10 (Schulman 2020; verl's limit)
//   logp, ref_logp, rewards, kl: f32 [N] packed by cu_seqlens i32 [B+1]; scores: f32 [B]
//
// Plan: threads take tokens, sixteen at once; the scores are added at the end.
#include "kernels/cpu/math.h"

namespace rlhf::RLHF_ISA {

void token_rewards(Context& ctx, const token_rewards_args& a) {
  const V coef = set(float(-a.kl_coef)), half = set(0.5f);
  ctx.split(a.logp.dim[0], LANES, 16384, [&](int64_t begin, int64_t end) {
    each_vector(begin, end, [&](int64_t i, int n) {
      const V d = load(&a.logp[i], n) - load(&a.ref_logp[i], n);
      V kl = d;
      if (a.estimator == KlEstimator::abs) kl = abs(d);
      if (a.estimator == KlEstimator::k2) kl = half * (d * d);
      if (a.estimator == KlEstimator::k3) {
        const V k3 = expm1(-d) + d;
        kl = select(isnan(k3), k3, min(k3, set(10.0f)));
      }
      store(&a.kl[i], kl, n), store(&a.rewards[i], a.kl_coef != 0 ? coef * kl : zero(), n);
    });
  });
  for (int64_t b = 0; b < a.scores.dim[0]; b++)
    if (a.cu_seqlens[b] < a.cu_seqlens[b + 1])
      a.rewards[a.cu_seqlens[b + 1] - 1] = a.rewards[a.cu_seqlens[b + 1] - 1] + a.scores[b];
}

}  // namespace rlhf::RLHF_ISA
