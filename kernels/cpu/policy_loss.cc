// The policy's loss from log-probs, with its gradient: formulas in policy_loss.h.
// Plan: one pass; blocks of 4,096 tokens over threads, each its gradients and its sums, which are added in order.
// AMD Zen 4, AVX-512, 2 cores, two threads, 1 M tokens: 0.35 to 0.38 ms, half of the limit, in three steps that each
// work at another sixteen; 0.39 in two, 0.50 in one chain (56 cycles a sixteen on one thread: a sixteen is about a
// hundred cycles long, and two are all that schedulers hold). In the benchmarks, after a pause and with peers beside,
// 0.37 to 0.62. What binds in the end are the four vector ports: 106 operations of 256 bits a sixteen, 27 cycles, 42 of
// them to widen and add three f64 sums. Zen 3, AVX2, 2 cores, two threads: 0.65 ms, 29 % of the limit, that of the last
// cache when its others leave it room; 1.1 to 1.3 ms, 38 to 84 %, when they do not. 58 cycles a sixteen, in memory or
// in a cache: 16 registers hold neither the three steps nor the sums, 12 of them, whose numbers widen one register of
// four a cycle. Lost: the sums held in a cache and widened from there, two a cycle (8 to 12 %); one chain in place of
// three steps (5 %); the three steps in loops of eight sixteens (15 %, and 2.4 times as long where GCC copies vectors
// by halves). PPO's formula written out once more in three such loops, two sixteens at a time, takes 49 cycles: a sixth
// for 35 lines, not kept. Zen 5, AVX-512, 2 cores, two threads: 0.26 ms, 58 to 100 % of the limit, which moves with who
// else uses the last level of caches that the arrays fit in. Intel Xeon (Sapphire Rapids or later, L2 of 2 MB),
// AVX-512, 2 cores, two threads: 0.41 ms, 72 %, 6 times torch compiled.
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
