// The policy's loss per token on the GPU, shared by policy_loss.cu and linear_head.cu. Formulas:
// kernels/cpu/policy_loss.h. Statistics: 4,096 tokens a block in f64, blocks added in order. Two
// launches, no atomics.
#pragma once
#include "kernels/cuda/token_loss.h"

namespace rlhf::cuda {

// policy, kl (weighted), entropy, clipped, clipped_c, k1, k3, ratio, tokens, moved, entropy (weighted)
constexpr int POLICY_SUMS = 11;

struct PolicyParams {
  Global<const float> logp, old_logp, advantages, ref_logp, importance, entropy;
  Global<const int32_t> mask, offsets;
  Global<const float> weights;  // [B], of each unmasked token of the sequence
  Global<float> dlogp, dentropy;  // null: not wanted
  Global<double> partial;  // [blocks][POLICY_SUMS]; null: not wanted
  int64_t begin, end, B;
  float low, high, c, limit, kl_coef, entropy_coef, scale;
  int32_t ratios, dual_clip, estimator, vector;  // vector: every array but entropy begins at 16 bytes
  Latch error;
};

struct PolicyFinishParams {
  Global<const double> partial;
  Global<const float> weights;
  Global<double> stats;
  Global<float> loss;
  int64_t blocks, B;
  double kl_coef, entropy_coef, scale;
  Latch error;
};

#if RLHF_HOST_CODE

// Workspace of the loss: the weights of the sequences, the sums of the blocks.
struct PolicySums {
  Global<float> weights;
  Global<double> partial;
  int64_t blocks;
  template <class A>
  PolicySums(const A& a, Workspace& w)
      : weights(w.take<float>(a.cu_seqlens.dim[0])), blocks((a.advantages.dim[0] + LOSS_TOKENS - 1) / LOSS_TOKENS) {
    partial = w.take<double>(blocks * POLICY_SUMS);
  }
};

template <class A>
PolicyParams policy_params(Context& ctx, const A& a, const PolicySums& sums, Global<const float> logp) {
  PolicyParams p{};
  p.logp = logp, p.old_logp = global(a.old_logp), p.advantages = global(a.advantages), p.ref_logp = global(a.ref_logp),
  p.importance = global(a.importance);
  p.mask = global(a.mask), p.offsets = global(a.cu_seqlens), p.weights = sums.weights;
  p.begin = 0, p.end = a.advantages.dim[0], p.B = a.cu_seqlens.dim[0] - 1;
  p.low = float(1 - a.clip_ratio_low), p.high = float(1 + a.clip_ratio_high), p.c = float(a.clip_ratio_c),
  p.limit = float(a.log_ratio_clamp);
  p.kl_coef = float(a.kl_coef), p.entropy_coef = float(a.entropy_coef), p.scale = float(a.scale);
  p.ratios = a.objective == Objective::clipped_ratio, p.dual_clip = a.clip_ratio_c < __builtin_inf(),
  p.estimator = int32_t(a.estimator);
  p.vector = at_16_bytes(logp.data) && at_16_bytes(a.old_logp.data) && at_16_bytes(a.advantages.data) &&
             at_16_bytes(a.ref_logp.data) && at_16_bytes(a.importance.data) && at_16_bytes(a.mask.data);
  p.error = latch_of(ctx);
  return p;
}

// The gradients of tokens [begin, begin + count), at their places in dlogp and dentropy (may be null).
template <class A>
void policy_gradients(Context& ctx, const A& a, const PolicySums& sums, Global<const float> logp, int64_t begin,
    int64_t count, Global<float> dlogp, Global<float> dentropy) {
  PolicyParams p = policy_params(ctx, a, sums, logp);
  p.begin = begin, p.end = begin + count, p.dlogp = dlogp, p.dentropy = dentropy, p.vector = p.vector && begin % 4 == 0;
  launch(ctx, "policy_tokens", {(count + LOSS_TOKENS - 1) / LOSS_TOKENS}, 256, 0, p);
}

// The loss and the statistics, continued, over all tokens; the gradients in the same pass where dlogp is given.
template <class A>
void policy_sums(Context& ctx, const A& a, const PolicySums& sums, Global<const float> logp,
    Global<const float> entropy, Global<float> dlogp = {}, Global<float> dentropy = {}) {
  PolicyParams p = policy_params(ctx, a, sums, logp);
  p.entropy = entropy, p.partial = sums.partial, p.dlogp = dlogp, p.dentropy = dentropy;
  p.vector = p.vector && at_16_bytes(dlogp.data) && at_16_bytes(dentropy.data);
  launch(ctx, "policy_tokens", {sums.blocks}, 256, block_sums_shared(POLICY_SUMS), p);
  const PolicyFinishParams f{sums.partial, sums.weights, global(a.stats), global(a.loss), sums.blocks, p.B, a.kl_coef,
      a.entropy_coef, a.scale, latch_of(ctx)};
  launch(ctx, "policy_finish", {1}, 256, block_sums_shared(POLICY_SUMS + 1), f);
}

#endif

}  // namespace rlhf::cuda
