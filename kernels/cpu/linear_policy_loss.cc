// The policy's loss straight from the hidden state and the head, forward and backward in three products:
// 256 rows at a time, their logits for the whole vocabulary are computed once, reduced to logp and entropy (logprob.h),
// turned into the loss's gradient in place (policy_loss.h), then dh and dW, whose chains go on from block to block.
// Equal, bit for bit, to linear_logprob, policy_loss and linear_logprob_grad one after another. Scratch: 256 x V floats.
#include "kernels/cpu/linear_head.h"
#include "kernels/cpu/policy_loss.h"

namespace rlhf::RLHF_ISA {

void linear_policy_loss(Context& ctx, const linear_policy_loss_args& a) {
  const Head head(a);
  if (a.weight.layout != RLHF_ROW_MAJOR) return ctx.fail("weight is packed, wanted row-major");
  const int64_t vector = round_up(head.M, LANES) + LANES;
  const int64_t weights_size = round_up(a.cu_seqlens.dim[0], LANES);
  const int64_t sums = round_up(policy_sums_scratch(head.M, a.cu_seqlens), LANES);
  double* sums_memory = static_cast<double*>(ctx.scratch(
      sums * int64_t(sizeof(double)) + (BackwardMemory(head, ctx.threads, nullptr).total + 3 * vector + weights_size) * int64_t(sizeof(float)) + 64));
  if (!sums_memory) return;
  float* base = reinterpret_cast<float*>(sums_memory + sums);
  if (a.kl_coef != 0 && !a.ref_logp) return ctx.fail("kl_coef is not 0, and ref_logp is missing");
  float *weights = base, *dlogp = weights + weights_size, *dentropy = dlogp + vector, *lse = dentropy + vector;
  const BackwardMemory memory(head, ctx.threads, lse + vector);
  const int64_t sequences = sequence_weights(a, weights);
  const bool backward = a.dh || a.dweight;
  zero_rows(ctx, a.dh);

  for (int64_t m0 = 0; m0 < head.M; m0 += BACKWARD_ROWS) {
    const int64_t count = smaller(BACKWARD_ROWS, head.M - m0), rows = memory.rows;
    gather(ctx, head, m0, m0 + count, memory.gathered);
    split_block(ctx, count, head.tiles, [&](int thread, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
      for (int64_t tile = t0; tile < t1; tile++) {
        float* logits = memory.logits + tile * VOCABULARY_TILE;
        tile_logits(head, memory.gathered, tile, r0, r1, logits, memory.stride, memory.scratch + thread * memory.thread_floats);
        for (int64_t r = r0; r < r1; r++) {
          const int64_t target = head.target(m0 + r, tile);
          const float* x = logits + r * memory.stride;
          memory.stats[tile * rows + r] = tile_stats(x, head.tile_size(tile), head.inverse_temperature, target);
          if (target >= 0) memory.targets[r] = x[target] * head.inverse_temperature;
        }
      }
    });
    ctx.split(count, 1, 32, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        TileStats row{-__builtin_inf(), 0, 0};
        join(row, memory.stats + r, head.tiles, rows);
        const RowStats result = finish(row, memory.targets[r]);
        a.logp[m0 + r] = result.logp, lse[m0 + r] = result.lse, a.entropy[m0 + r] = result.entropy;
      }
    });
    if (!backward) continue;
    each_sequence(a.cu_seqlens, m0, m0 + count, [&](int64_t b, int64_t begin, int64_t end) {
      policy_loss_run<true, false>(a, a.logp.data, nullptr, weights[b], begin, end, dlogp, dentropy, nullptr);
    });
    split_block(ctx, count, head.tiles, [&](int, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
      for (int64_t tile = t0; tile < t1; tile++)
        for (int64_t r = r0; r < r1; r++) {
          const int64_t m = m0 + r;
          float* x = memory.logits + tile * VOCABULARY_TILE + r * memory.stride;
          logits_grad(x, x, head.tile_size(tile), head.target(m, tile), {a.logp[m], lse[m], a.entropy[m]}, dlogp[m], dentropy[m], head.inverse_temperature);
        }
    });
    head_backward(ctx, head, memory, m0, count, a.dh, a.dweight);
  }
  a.loss[0] = policy_loss_sums<false>(ctx, a, a.logp.data, a.entropy.data, weights, sequences, sums_memory);
}

}  // namespace rlhf::RLHF_ISA
