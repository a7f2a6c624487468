// The policy's loss per token, shared by policy_loss and linear_policy_loss (A is any argument struct with POLICY_LOSS).
//
//   d = logp - old_logp (clamped to +- log_ratio_clamp),  r = exp(d)
//   clipped_ratio (Schulman et al. 2017):  l = max(-A r, -A clip(r, 1 - low, 1 + high)); where A < 0, l = min(l, -A c) (Ye et al. 2020);
//     l times importance
//   log_likelihood: l = -A logp
//   kl(logp, ref): k1 d', |d'|, d'^2 / 2, k3 = expm1(-d') + d' at most 10, d' = logp - ref_logp (Schulman 2020; the limit is verl's)
//   loss = scale sum over tokens of w (l + kl_coef kl - entropy_coef entropy)
//   w: token_mean, seq_mean_token_sum, seq_mean_token_sum_norm 1/denominator; seq_mean_token_mean 1/(denominator n), n the
//     sequence's unmasked tokens; 0 where masked
//
// Gradients at ties: where clipping changes nothing (r inside the interval, ends included; |d| at the clamp) the gradient
// is the unclipped one; it is 0 where the clipped branch is strictly larger, and where c holds.
// Law: per token nothing to order; statistics by law 4.
#pragma once
#include "kernels/cpu/math.h"
#include "kernels/cpu/sums.h"

namespace rlhf::RLHF_ISA {
namespace {

// w[M], and how many sequences have a token that counts
template <class A>
RLHF_INLINE int64_t token_weights(const A& a, float* w) {
  int64_t sequences = 0;
  for (int64_t b = 0; b + 1 < a.cu_seqlens.dim[0]; b++) {
    const int64_t begin = a.cu_seqlens[b], end = a.cu_seqlens[b + 1];
    int64_t n = 0;
    for (int64_t i = begin; i < end; i++) n += !a.mask || a.mask[i] != 0;
    sequences += n > 0;
    const float weight = float(a.aggregation == Aggregation::seq_mean_token_mean ? 1 / (a.denominator * double(n)) : 1 / a.denominator);
    for (int64_t i = begin; i < end; i++) w[i] = !a.mask || a.mask[i] != 0 ? weight : 0.0f;
  }
  return sequences;
}

struct TokenLoss {
  V loss, dlogp;  // of the policy term
  V kl, dkl;
  V d, ratio;
  B clipped, clipped_c;
};

// sixteen tokens from i; lanes that do not count are 0 throughout
template <class A>
RLHF_INLINE TokenLoss token_loss(const A& a, const float* all_logp, int64_t i, int n, B counts) {
  const V logp = load_where(all_logp + i, n, counts), adv = load_where(&a.advantages[i], n, counts), one = set(1.0f);
  const B never = zero() < zero();
  TokenLoss t{zero(), zero(), zero(), zero(), zero(), zero(), never, never};
  if (a.objective == Objective::log_likelihood) {
    t.loss = -(adv * logp), t.dlogp = -adv;
  } else {
    const V raw = logp - load_where(&a.old_logp[i], n, counts), limit = set(float(a.log_ratio_clamp));
    t.d = max(min(raw, limit), -limit);
    t.ratio = exp(t.d);
    const V l1 = -(adv * t.ratio);
    const V l2 = -(adv * max(min(t.ratio, set(float(1 + a.clip_ratio_high))), set(float(1 - a.clip_ratio_low))));
    t.clipped = l1 < l2;
    t.loss = select(t.clipped, l2, l1);
    if (a.clip_ratio_c < __builtin_inf()) {
      const V lower = -(adv * set(float(a.clip_ratio_c)));
      t.clipped_c = (adv < zero()) & (lower < t.loss);
      t.loss = select(t.clipped_c, lower, t.loss);
    }
    t.dlogp = select(t.clipped | t.clipped_c | (limit < abs(raw)), zero(), l1);
    if (a.importance) {
      const V importance = load_where(&a.importance[i], n, counts);
      t.loss = t.loss * importance, t.dlogp = t.dlogp * importance;
    }
  }
  if (a.ref_logp) {
    const V d = logp - load_where(&a.ref_logp[i], n, counts);
    switch (a.estimator) {
      case KlEstimator::k1: t.kl = d, t.dkl = one; break;
      case KlEstimator::abs: t.kl = abs(d), t.dkl = select(d < zero(), -one, select(zero() < d, one, zero())); break;
      case KlEstimator::k2: t.kl = set(0.5f) * d * d, t.dkl = d; break;
      case KlEstimator::k3: {
        const V e = expm1(-d), k3 = e + d, most = set(10.0f);
        t.kl = min(k3, most), t.dkl = select(most < k3, zero(), -e);
        break;
      }
    }
  }
  return t;
}

// dlogp and dentropy (may be null) of tokens [begin, end); weights from token_weights
template <class A>
RLHF_INLINE void policy_loss_tokens(const A& a, const float* logp, const float* w, float* dlogp, float* dentropy, int64_t begin, int64_t end) {
  const V scale = set(float(a.scale)), kl_coef = set(float(a.kl_coef)), entropy_coef = set(float(a.entropy_coef));
  for (int64_t i = begin; i < end; i += LANES) {
    const int n = end - i < LANES ? int(end - i) : LANES;
    const V weight = load(w + i, n);
    const B counts = zero() < weight;
    const TokenLoss t = token_loss(a, logp, i, n, counts);
    const V factor = scale * weight;
    store(dlogp + i, select(counts, factor * (a.ref_logp ? fma(kl_coef, t.dkl, t.dlogp) : t.dlogp), zero()), n);
    if (dentropy) store(dentropy + i, select(counts, -(factor * entropy_coef), zero()), n);
  }
}

constexpr int POLICY_SUMS = 11;
// doubles of workspace
RLHF_INLINE int64_t policy_sums_scratch(int64_t tokens, View<const int32_t> cu_seqlens) { return packed_sums_scratch(tokens, cu_seqlens, POLICY_SUMS + 1); }

// The loss of all tokens, and the statistics, continued.
template <class A>
RLHF_INLINE float policy_loss_sums(Context& ctx, const A& a, const float* logp, const float* entropy, const float* w, int64_t sequences, double* memory) {
  const D scale = setd(a.scale), kl_coef = setd(a.kl_coef), entropy_coef = setd(a.entropy_coef);
  const V one = set(1.0f);
  double totals[POLICY_SUMS + 1] = {};  // the last one the loss of this call alone
  for (int k = 0; k < POLICY_SUMS; k++) totals[k] = a.stats[k];
  packed_sums(ctx, a.cu_seqlens, a.advantages.dim[0], POLICY_SUMS + 1, memory, totals, [&](int64_t begin, int64_t end, double* out) {
    D sums[POLICY_SUMS];
    for (auto& s : sums) s = setd(0);
    for (int64_t i = begin; i < end; i += LANES) {
      const int n = end - i < LANES ? int(end - i) : LANES;
      const V weight = load(w + i, n);
      const B counts = zero() < weight;
      const TokenLoss t = token_loss(a, logp, i, n, counts);
      const D wide = widen(weight), policy = wide * widen(t.loss), kl = wide * widen(t.kl);
      const D ent = entropy ? wide * widen(load_where(entropy + i, n, counts)) : setd(0);
      const bool ratio = a.objective == Objective::clipped_ratio;
      sums[0] = fma(scale, policy + kl_coef * kl - entropy_coef * ent, sums[0]);
      sums[1] = sums[1] + policy;
      sums[2] = sums[2] + kl;
      sums[3] = sums[3] + ent;
      sums[4] = sums[4] + wide * widen(select(t.clipped & counts, one, zero()));
      sums[5] = sums[5] + wide * widen(select(t.clipped_c & counts, one, zero()));
      if (ratio) {
        sums[6] = sums[6] - wide * widen(t.d);
        sums[7] = fma(wide, expm1_wide(t.d) - widen(t.d), sums[7]);
        sums[8] = sums[8] + wide * widen(t.ratio);
        sums[10] = sums[10] + widen(select(counts & !(t.ratio == one), one, zero()));
      }
      sums[9] = sums[9] + widen(select(counts, one, zero()));
    }
    for (int k = 0; k < POLICY_SUMS; k++) out[k] = sum(sums[k]);
    out[POLICY_SUMS] = out[0];
  });
  for (int k = 0; k < POLICY_SUMS; k++) a.stats[k] = totals[k];
  a.stats[11] = a.stats[11] + double(sequences);
  return float(totals[POLICY_SUMS]);
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
