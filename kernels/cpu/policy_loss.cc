// The policy's loss from log-probs, with its gradient: formulas in policy_loss.h.
//
// Plan: one pass. Blocks of 4,096 tokens over threads; each makes its gradients and its sums, which
// are added in order. A block goes in three steps that each work at another sixteen, so that
// several are under way at once.
// Figures: 29 % of the limit to all of it. History: kernels/notes/policy_loss.md.
#include "kernels/cpu/policy_loss.h"

namespace rlhf::RLHF_ISA {

void policy_loss(Context& ctx, const policy_loss_args& a) {
  const int64_t M = a.logp.dim[0];
  const int64_t sums = policy_sums_scratch(M, a.cu_seqlens);
  double* memory =
      static_cast<double*>(ctx.scratch(sums * int64_t(sizeof(double)) + a.cu_seqlens.dim[0] * int64_t(sizeof(float))));
  if (!memory) return;
  float* weights = reinterpret_cast<float*>(memory + sums);
  if (a.kl_coef != 0 && !a.ref_logp) return ctx.fail("kl_coef is not 0, and ref_logp is missing");
  if (a.entropy_coef != 0 && !a.entropy) return ctx.fail("entropy_coef is not 0, and entropy is missing");
  const int64_t sequences = sequence_weights(a, weights);
  a.loss[0] = policy_loss_sums<true>(
      ctx, a, a.logp.data, a.entropy.data, weights, sequences, memory, a.dlogp.data, a.dentropy.data);
}

}  // namespace rlhf::RLHF_ISA
