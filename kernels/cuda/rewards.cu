// Token rewards: reward[t] = -kl_coef kl[t], plus the score of the sequence at its last token.
//   d = logp[t] - ref_logp[t];  kl: k1 d, |d|, k2 d^2 / 2, k3 expm1(-d) + d at most 10 (Schulman 2020; verl's limit)
//   logp, ref_logp, rewards, kl: f32 [N] packed by cu_seqlens i32 [B+1]; scores: f32 [B]
// Plan: a thread per token, then one per sequence for its score. Memory is the limit.
#include "kernels/cuda/offsets.h"

namespace rlhf::cuda {

struct RewardParams {
  Global<const float> logp, ref_logp, scores;
  Global<const int32_t> offsets;
  Global<float> rewards, kl;
  int64_t N, B;
  float kl_coef;
  int32_t estimator;
  Latch error;
};

#if RLHF_DEVICE_CODE

KERNEL(token_kl, RewardParams, 256) {
  const int64_t i = int64_t(block_x()) * 256 + thread();
  if (i >= p.N) return;
  const float d = p.logp[i] - p.ref_logp[i];
  float kl = d;
  if (p.estimator == 1) kl = d < 0 ? -d : d;
  if (p.estimator == 2) kl = 0.5f * d * d;
  if (p.estimator == 3) kl = expm1(-d) + d, kl = kl > 10 ? 10 : kl;
  const bool bad = p.error[0] != 0;
  p.kl[i] = bad ? NOT_A_NUMBER : kl, p.rewards[i] = bad ? NOT_A_NUMBER : p.kl_coef != 0 ? -p.kl_coef * kl : 0;
}
KERNEL(last_rewards, RewardParams, 128) {
  const int64_t b = int64_t(block_x()) * 128 + thread();
  if (b >= p.B || p.error[0] != 0 || p.offsets[b] == p.offsets[b + 1]) return;
  const int64_t last = p.offsets[b + 1] - 1;
  p.rewards[last] = p.rewards[last] + p.scores[b];
}

#endif

#if RLHF_HOST_CODE
void token_rewards(Context& ctx, const token_rewards_args& a) {
  const int64_t N = a.logp.dim[0], B = a.scores.dim[0];
  check_offsets(ctx, a.cu_seqlens, N);
  const RewardParams p{global(a.logp), global(a.ref_logp), global(a.scores), global(a.cu_seqlens), global(a.rewards),
      global(a.kl), N, B, float(a.kl_coef), int32_t(a.estimator), latch_of(ctx)};
  launch(ctx, "token_kl", {(N + 255) / 256}, 256, 0, p);
  launch(ctx, "last_rewards", {(B + 127) / 128}, 128, 0, p);
}
#endif

}  // namespace rlhf::cuda
