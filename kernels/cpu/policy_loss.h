// The policy's loss per token, shared by policy_loss and linear_policy_loss. A is any argument
// struct with POLICY_LOSS.
//
//   d = logp - old_logp (clamped to +- log_ratio_clamp),  r = exp(d)
//   clipped_ratio (Schulman et al. 2017):  l = max(-A r, -A clip(r, 1 - low, 1 + high))
//     dual clip (Ye et al. 2020):  where A < 0, l = min(l, -A c);  then l times importance
//   log_likelihood: l = -A logp
//   kl(logp, ref), d' = logp - ref_logp (Schulman 2020; the limit is verl's):
//     k1 d', |d'|, k2 d'^2 / 2, k3 = expm1(-d') + d' at most 10
//   loss = scale sum over tokens of w (l + kl_coef kl - entropy_coef entropy),  w: token_loss.h
// A term whose coefficient is 0 enters neither loss nor gradient, even if it is infinite. Its
// statistic is still given.
//
// Gradients at ties: where clipping changes nothing (r inside the interval, ends included; |d| at
// the clamp) the gradient is the unclipped one. It is 0 where the clipped branch is strictly
// larger, and where c holds.
// Law: per token there is nothing to order. Statistics by law 4. A sequence's tokens have one
// weight, so a block's sums are taken without it and multiplied at the end.
#pragma once
#include "kernels/cpu/math.h"
#include "kernels/cpu/token_loss.h"

namespace rlhf::RLHF_ISA {
namespace {

// What becomes a ratio: the three steps of a token's loss are taken one sixteen apart (each_sixteen_ahead).
struct LogRatio {
  V d;
  B beyond;  // the clamp of d
  Reduction of_exp;
};
struct Ratio {
  V d, ratio, k3;  // k3: ratio - 1 - d, with its digits
  B beyond;
};
struct TokenLoss {
  V loss, dlogp;  // of the policy term
  V kl, dkl;
  B clipped, clipped_c;
};

// The options as the loop wants them: in registers, whatever the stores may touch.
struct PolicyTerms {
  const float *old_logp, *advantages, *ref_logp, *importance;
  V low, high, c, limit;
  bool ratios, dual_clip, within;  // within: no ratio can leave the range
  KlEstimator estimator;

  template <class A>
  RLHF_INLINE explicit PolicyTerms(const A& a)
      : old_logp(a.old_logp.data),
        advantages(a.advantages.data),
        ref_logp(a.ref_logp.data),
        importance(a.importance.data),
        low(set(float(1 - a.clip_ratio_low))),
        high(set(float(1 + a.clip_ratio_high))),
        c(set(float(a.clip_ratio_c))),
        limit(set(float(a.log_ratio_clamp))),
        ratios(a.objective == Objective::clipped_ratio),
        dual_clip(a.clip_ratio_c < __builtin_inf()),
        within(a.log_ratio_clamp <= 87),
        estimator(a.estimator) {}

  // PPO's loss and nothing else: its loop has no branches
  RLHF_INLINE bool plain() const { return ratios && within && !dual_clip && !importance && !ref_logp; }
  RLHF_INLINE void be_plain() { ratios = within = true, dual_clip = false, importance = ref_logp = nullptr; }

  // of sixteen tokens; lanes that do not count are 0 throughout
  RLHF_FUNCTION LogRatio log_ratio_at(const float* logp, const Sixteen& x) const {
    if (!ratios) return {zero(), zero() < zero(), Reduction(zero())};
    const V raw = x.of(logp) - x.of(old_logp), d = max(-limit, min(limit, raw));  // in this order NaN stays NaN
    return {d, limit < abs(raw), Reduction(d)};
  }
  RLHF_FUNCTION Ratio ratio_of(const LogRatio& a) const {
    Ratio r{a.d, zero(), zero(), a.beyond};
    if (ratios) r.ratio = within ? exp_within(a.d, a.of_exp, &r.k3) : exp(a.d, &r.k3);
    return r;
  }
  RLHF_FUNCTION TokenLoss at(const float* all_logp, const Sixteen& x, const Ratio& r) const {
    const V adv = x.of(advantages), one = set(1.0f);
    const B never = zero() < zero();
    TokenLoss t{zero(), zero(), zero(), zero(), never, never};
    if (!ratios) {
      t.loss = -(adv * x.of(all_logp)), t.dlogp = -adv;
    } else {
      const V minus = -adv, l1 = minus * r.ratio, l2 = minus * max(min(r.ratio, high), low);
      t.clipped = l1 < l2;
      t.loss = select(t.clipped, l2, l1);
      if (dual_clip) {
        const V lower = minus * c;
        t.clipped_c = (adv < zero()) & (lower < t.loss);
        t.loss = select(t.clipped_c, lower, t.loss);
      }
      t.dlogp = select(t.clipped | t.clipped_c | r.beyond, zero(), l1);
      if (importance) {
        const V factor = x.of(importance);
        t.loss = t.loss * factor, t.dlogp = t.dlogp * factor;
      }
    }
    if (ref_logp) {
      const V d = x.of(all_logp) - x.of(ref_logp);
      switch (estimator) {
        case KlEstimator::k1: t.kl = d, t.dkl = one; break;
        case KlEstimator::abs: t.kl = abs(d), t.dkl = select(d < zero(), -one, select(zero() < d, one, zero())); break;
        case KlEstimator::k2: t.kl = set(0.5f) * d * d, t.dkl = d; break;
        case KlEstimator::k3: {
          const V e = expm1(-d), k3 = e + d, most = set(10.0f);
          t.kl = min(most, k3), t.dkl = select(most < k3, zero(), -e);  // in this order NaN stays NaN
          break;
        }
      }
    }
    return t;
  }
};

constexpr int POLICY_SUMS = 12;  // the statistics but for the sequences, and the loss of this call alone
// doubles of workspace
RLHF_INLINE int64_t policy_sums_scratch(int64_t tokens, View<const int32_t> cu_seqlens) {
  return packed_sums_scratch(tokens, cu_seqlens, POLICY_SUMS);
}

// Tokens [begin, end) of one sequence: gradients to dlogp and dentropy (may be null), sums to out[POLICY_SUMS].
template <bool GRADIENTS, bool SUMS, class A>
__attribute__((noinline)) void policy_loss_run(const A& a, const float* logp, const float* entropy, float weight,
    int64_t begin, int64_t end, float* dlogp, float* dentropy, double* out) {
  const V factor = set(float(a.scale)) * set(weight), kl_coef = set(float(a.kl_coef)),
          entropy_coef = set(float(a.entropy_coef)), one = set(1.0f);
  const bool with_kl = a.ref_logp && a.kl_coef != 0;
  D policy = setd(0), kl = policy, ent = policy, d = policy, k3 = policy;
  int64_t tokens = 0, clipped = 0, clipped_c = 0, moved = 0;
  const auto loop = [&]<bool PLAIN>() __attribute__((always_inline)) {
    PolicyTerms terms(a);
    if (PLAIN) terms.be_plain();
    const auto log_ratio = [&](const Sixteen& x) __attribute__((always_inline)) { return terms.log_ratio_at(logp, x); };
    const auto ratio = [&](const LogRatio& a) __attribute__((always_inline)) { return terms.ratio_of(a); };
    const auto each = [&](const Sixteen& x, const Ratio& r) __attribute__((always_inline)) {
      const TokenLoss t = terms.at(logp, x, r);
      if (GRADIENTS) {
        x.put(dlogp, factor * (!PLAIN && with_kl ? fma(kl_coef, t.dkl, t.dlogp) : t.dlogp));
        if (!PLAIN && dentropy) x.put(dentropy, -(factor * entropy_coef));
      }
      if (!SUMS) return;
      tokens += x.count();
      policy = plus(policy, t.loss);
      if (terms.ref_logp) kl = plus(kl, t.kl);
      if (!PLAIN && entropy) ent = plus(ent, x.of(entropy));
      if (!terms.ratios) return;
      clipped += x.count(t.clipped), moved += x.count(!(r.ratio == one));
      if (terms.dual_clip) clipped_c += x.count(t.clipped_c);
      d = plus(d, r.d), k3 = plus(k3, r.k3);
    };
    if (PLAIN) each_sixteen_ahead(a.mask, begin, end, log_ratio, ratio, each);
    else
      each_sixteen(
          a.mask, begin, end, [&](const Sixteen& x) __attribute__((always_inline)) { each(x, ratio(log_ratio(x))); });
  };
  if (GRADIENTS && SUMS && PolicyTerms(a).plain() && !entropy && !dentropy) loop.template operator()<true>();
  else loop.template operator()<false>();
  if (!SUMS) return;
  const double w = weight, P = sum(policy), K = sum(kl), E = sum(ent);
  const double loss =
      a.scale * w * (P + (a.kl_coef != 0 ? a.kl_coef * K : 0) - (a.entropy_coef != 0 ? a.entropy_coef * E : 0));
  const double log_ratios = sum(d), excess = sum(k3),
               ratios = PolicyTerms(a).ratios ? double(tokens) + log_ratios + excess : 0;  // r = 1 + d + k3
  const double sums[POLICY_SUMS] = {loss, w * P, w * K, E, double(clipped), double(clipped_c), -log_ratios, excess,
      ratios, double(tokens), double(moved), loss};
  for (int k = 0; k < POLICY_SUMS; k++) out[k] = sums[k];
}

// The loss of all tokens, and the statistics, continued; with dlogp the gradients too.
template <bool GRADIENTS, class A>
RLHF_INLINE float policy_loss_sums(Context& ctx, const A& a, const float* logp, const float* entropy,
    const float* weights, int64_t sequences, double* memory, float* dlogp = nullptr, float* dentropy = nullptr) {
  double totals[POLICY_SUMS] = {};
  for (int k = 0; k + 1 < POLICY_SUMS; k++) totals[k] = a.stats[k];
  packed_sums(ctx, a.cu_seqlens, a.advantages.dim[0], POLICY_SUMS, memory, totals,
      [&](int64_t b, int64_t begin, int64_t end, double* out) {
        policy_loss_run<GRADIENTS, true>(a, logp, entropy, weights[b], begin, end, dlogp, dentropy, out);
      });
  for (int k = 0; k + 1 < POLICY_SUMS; k++) a.stats[k] = totals[k];
  a.stats[11] = a.stats[11] + double(sequences);
  return float(totals[POLICY_SUMS - 1]);
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
