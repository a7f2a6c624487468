// The policy's loss from log-probs, with its gradient, in one pass over the tokens: policy_loss.h.
//
// Plan: four tokens a thread, four times over. 16 to 28 bytes a token and some sixty operations.
// Expected, not yet measured: the memory's speed. History: kernels/notes/policy_loss.md.
#include "kernels/cuda/policy_loss.h"

namespace rlhf::cuda {

#if RLHF_DEVICE_CODE

struct PolicyToken {
  float loss = 0, dlogp = 0, kl = 0, dkl = 0, d = 0, ratio = 0, k3 = 0;
  bool clipped = false, clipped_c = false;
};

// exp(d) - 1 - d, with its digits near 0
DEVICE float excess(float d, float ratio) {
  float s = fma(0.0001989198131397769f, d, 0.0013934541928270264f);
  s = fma(s, d, 0.0083333100242252924f);
  s = fma(s, d, 0.041666456809677876f);
  s = fma(s, d, 0.16666666682534356f);
  s = fma(s, d, 0.5f) * d * d;
  return d < 0.34f && d > -0.34f ? s : (ratio - 1) - d;
}

DEVICE PolicyToken policy_token(
    const PolicyParams& p, float logp, float old_logp, float A, float ref_logp, float importance) {
  PolicyToken t;
  if (!p.ratios) {
    t.loss = -(A * logp), t.dlogp = -A;
  } else {
    const float raw = logp - old_logp;
    t.d = raw > p.limit ? p.limit : raw < -p.limit ? -p.limit : raw;  // NaN stays NaN
    t.ratio = exp(t.d), t.k3 = excess(t.d, t.ratio);
    const float l1 = -(A * t.ratio), l2 = -(A * max(min(t.ratio, p.high), p.low));
    t.clipped = l1 < l2;
    t.loss = t.clipped ? l2 : l1;
    if (p.dual_clip) {
      const float lower = -(A * p.c);
      t.clipped_c = A < 0 && lower < t.loss;
      t.loss = t.clipped_c ? lower : t.loss;
    }
    t.dlogp = t.clipped || t.clipped_c || raw > p.limit || raw < -p.limit ? 0 : l1;
    if (p.importance) t.loss *= importance, t.dlogp *= importance;
  }
  if (p.ref_logp) {
    const float d = logp - ref_logp;
    if (p.estimator == 0) t.kl = d, t.dkl = 1;
    if (p.estimator == 1) t.kl = d < 0 ? -d : d, t.dkl = d < 0 ? -1 : d > 0 ? 1 : 0;
    if (p.estimator == 2) t.kl = 0.5f * d * d, t.dkl = d;
    if (p.estimator == 3) {
      const float e = expm1(-d), k3 = e + d;
      t.kl = k3 > 10 ? 10 : k3, t.dkl = k3 > 10 ? 0 : -e;
    }
  }
  return t;
}

KERNEL(policy_tokens, PolicyParams, 256) {
  double sums[POLICY_SUMS] = {};
  const bool bad = p.error[0] != 0;
  const int64_t first = p.begin + block_x() * LOSS_TOKENS;
  for (int64_t i = first + 4 * thread(); i < first + LOSS_TOKENS && i < p.end; i += 4 * 256) {
    float logp[4], old_logp[4], A[4], ref_logp[4] = {}, importance[4] = {}, entropy[4] = {}, dlogp[4], dentropy[4];
    int32_t mask[4] = {1, 1, 1, 1};
    load_four(p.logp, i, p.end, p.vector, logp), load_four(p.old_logp, i, p.end, p.vector, old_logp),
        load_four(p.advantages, i, p.end, p.vector, A);
    if (p.ref_logp) load_four(p.ref_logp, i, p.end, p.vector, ref_logp);
    if (p.importance) load_four(p.importance, i, p.end, p.vector, importance);
    if (p.mask) load_four(p.mask, i, p.end, p.vector, mask);
    if (p.entropy) load_four(p.entropy, i, p.end, false, entropy);
    int64_t b = bad ? 0 : sequence_of(p.offsets, p.B, i);
    UNROLL for (int k = 0; k < 4; k++) {
      dlogp[k] = dentropy[k] = bad ? NOT_A_NUMBER : 0;
      if (bad || i + k >= p.end || !mask[k]) continue;
      while (p.offsets[b + 1] <= i + k) b++;
      const float weight = p.weights[b];
      const PolicyToken t = policy_token(p, logp[k], old_logp[k], A[k], ref_logp[k], importance[k]);
      const float factor = p.scale * weight;
      dlogp[k] = factor * (p.kl_coef != 0 ? fma(p.kl_coef, t.dkl, t.dlogp) : t.dlogp),
      dentropy[k] = -(factor * p.entropy_coef);
      const double w = weight;
      sums[0] += w * t.loss, sums[1] += w * t.kl, sums[2] += entropy[k], sums[8] += 1, sums[10] += w * entropy[k];
      if (!p.ratios) continue;
      sums[3] += t.clipped, sums[4] += t.clipped_c, sums[5] -= t.d, sums[6] += t.k3, sums[7] += t.ratio,
          sums[9] += t.ratio != 1;
    }
    if (p.dlogp) store_four(p.dlogp, i, p.end, p.vector, dlogp);
    if (p.dentropy) store_four(p.dentropy, i, p.end, p.vector, dentropy);
  }
  if (p.partial) block_sums(sums, p.partial + block_x() * POLICY_SUMS);
}

KERNEL(policy_finish, PolicyFinishParams, 256) {
  double sums[POLICY_SUMS + 1] = {};
  for (int64_t block = thread(); block < p.blocks; block += 256)
    UNROLL for (int k = 0; k < POLICY_SUMS; k++) sums[k] += p.partial[block * POLICY_SUMS + k];
  for (int64_t b = thread(); b < p.B; b += 256) sums[POLICY_SUMS] += p.weights[b] > 0;
  const double sum = block_sums(sums), kl = shuffle(sum, 1), entropy = shuffle(sum, 10);  // of the first warp
  if (thread() < 10 || thread() == POLICY_SUMS) p.stats[thread() < 10 ? thread() + 1 : 11] += sum;
  if (thread() > 0) return;
  const double loss = p.error[0] != 0 ? double(NOT_A_NUMBER)
                                      : p.scale * (sum + (p.kl_coef != 0 ? p.kl_coef * kl : 0) -
                                                      (p.entropy_coef != 0 ? p.entropy_coef * entropy : 0));
  p.stats[0] += loss;
  p.loss[0] = float(loss);
}

#endif

#if RLHF_HOST_CODE
void policy_loss(Context& ctx, const policy_loss_args& a) {
  Workspace measure{nullptr};
  PolicySums(a, measure);
  char* base = static_cast<char*>(ctx.scratch(measure.used));
  if (!base) return;
  if (a.kl_coef != 0 && !a.ref_logp) return ctx.fail("kl_coef is not 0, and ref_logp is missing");
  if (a.entropy_coef != 0 && !a.entropy) return ctx.fail("entropy_coef is not 0, and entropy is missing");
  Workspace w{base};
  const PolicySums sums(a, w);
  weigh_sequences(ctx, a, sums.weights, a.logp.dim[0]);
  policy_sums(ctx, a, sums, global(a.logp), global(a.entropy), global(a.dlogp), global(a.dentropy));
}
#endif

}  // namespace rlhf::cuda
