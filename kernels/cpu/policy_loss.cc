// The policy's loss from log-probs, with its gradient: formulas in policy_loss.h.
// Plan: tokens over threads for the gradients, blocks over threads for the sums, which are added in order.
#include "kernels/cpu/policy_loss.h"

namespace rlhf::RLHF_ISA {

void policy_loss(Context& ctx, const policy_loss_args& a) {
  const int64_t M = a.logp.dim[0];
  const int64_t sums = policy_sums_scratch(M, a.cu_seqlens);
  double* memory = static_cast<double*>(ctx.scratch(sums * int64_t(sizeof(double)) + (M + LANES) * int64_t(sizeof(float)) + 64));
  if (!memory) return;
  float* w = reinterpret_cast<float*>(memory + sums);
  if (a.kl_coef != 0 && !a.ref_logp) return ctx.fail("kl_coef is not 0, and ref_logp is missing");
  if (a.entropy_coef != 0 && !a.entropy) return ctx.fail("entropy_coef is not 0, and entropy is missing");
  const int64_t sequences = token_weights(a, w);
  ctx.split(M, LANES, 8192,
      [&](int64_t begin, int64_t end) { policy_loss_tokens(a, a.logp.data, w, a.dlogp.data, a.dentropy ? a.dentropy.data : nullptr, begin, end); });
  a.loss[0] = policy_loss_sums(ctx, a, a.logp.data, a.entropy ? a.entropy.data : nullptr, w, sequences, memory);
}

}  // namespace rlhf::RLHF_ISA
