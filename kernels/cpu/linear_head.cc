// The language-model head: log-probs, or the loss of the policy, from the hidden state. Logits
// exist only as a tile.
//
//   linear_logprob: logp[m] = x_y - log sum_j exp(x_j),  x = h[rows[m]] W^T / T;  entropy = lse - sum_j p_j x_j
//   linear_policy_loss: the loss of those (policy_loss.h), with dh and dW
//   h f32 [N,C]; W f32 or bf16 [V,C]; rows, y i32 [M]; logp, lse, entropy f32 [M]; dh f32 [N,C]; dW f32 [V,C]
//
// Plan of linear_logprob: 512 rows at a time against every vocabulary tile, tiles over threads.
// Each tile of the head is packed once per 512 rows. A tile's logits become (m, s, u) at once
// (logprob.h), and tiles are joined in order. The gradient recomputes the logits of 512 rows, 3,072
// at a time, and turns them into their gradient in place. Then dh and dW continue their chains from
// block to block (linear_head.h).
//
// Plan of linear_policy_loss: three products, 256 rows at a time. All logits are computed once,
// tile by tile, and reduced to logp and entropy. The loss's gradient is taken from them a span at a
// time, with dh and dW. The result equals linear_logprob, policy_loss and linear_logprob_grad one
// after another, bit for bit. Scratch: 256 x V floats and some 15 MB.
// Figures: 66 to 88 % of the peak. History: kernels/notes/linear_head.md.
#include "kernels/cpu/linear_head.h"
#include "kernels/cpu/policy_loss.h"

namespace rlhf::RLHF_ISA {

void linear_logprob(Context& ctx, const linear_logprob_args& a) {
  constexpr int64_t BLOCK = 512;
  const Head head(a);
  if (a.weight.layout == RLHF_PANELS_TRANSPOSED) return ctx.fail("weight is packed for the gradient");
  const int64_t rows = smaller(BLOCK, head.M), each = tile_scratch(head, rows) + rows * TILE_ROW;
  const int64_t stats_floats = head.tiles * rows * int64_t(sizeof(TileStats) / sizeof(float));
  const int64_t left_size = round_up(left_floats(rows, head.C), LANES);
  const int64_t floats = round_up(rows * head.C, LANES) + left_size + round_up(stats_floats, LANES) +
                         round_up(rows, LANES) + each * ctx.threads;
  float* memory = static_cast<float*>(ctx.scratch(floats * int64_t(sizeof(float)) + 64));
  if (!memory) return;
  float *gathered = memory, *left = gathered + round_up(rows * head.C, LANES), *targets = left + left_size,
        *after = targets + round_up(rows, LANES);
  TileStats* stats = reinterpret_cast<TileStats*>(after);
  float* scratch = after + round_up(stats_floats, LANES);

  for (int64_t m0 = 0; m0 < head.M; m0 += BLOCK) {
    const int64_t count = smaller(BLOCK, head.M - m0);
    gather(ctx, head, m0, m0 + count, gathered);
    if (count > FEW) pack_left(ctx, {gathered, head.C, 1}, count, head.C, left);
    split_block(ctx, count, head.tiles, [&](int thread, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
      float* logits = scratch + thread * each;
      for (int64_t tile = t0; tile < t1; tile++) {
        tile_logits(head, gathered, left, tile, r0, r1, logits, TILE_ROW, logits + rows * TILE_ROW);
        for (int64_t r = r0; r < r1; r++) {
          const float* x = logits + r * TILE_ROW;
          const int64_t target = head.target(m0 + r, tile);
          stats[tile * rows + r] = tile_stats(x, head.tile_size(tile), head.inverse_temperature, target);
          if (target >= 0) targets[r] = x[target];
        }
      }
    });
    ctx.split(count, 1, 256, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        TileStats row{-__builtin_inf(), 0, 0};
        join(row, stats + r, head.tiles, head.inverse_temperature, rows);
        const RowStats result = finish(row, targets[r], head.inverse_temperature);
        a.logp[m0 + r] = result.logp, a.lse[m0 + r] = result.lse, a.entropy[m0 + r] = result.entropy;
      }
    });
  }
}

void linear_logprob_grad(Context& ctx, const linear_logprob_grad_args& a) {
  const Head head(a);
  if (a.weight.layout != RLHF_ROW_MAJOR) return ctx.fail("weight is packed, wanted row-major");
  constexpr int64_t ROWS = 512;
  float* base = static_cast<float*>(
      ctx.scratch(BackwardMemory(head, ROWS, ctx.threads, nullptr).total * int64_t(sizeof(float)) + 64));
  if (!base) return;
  const BackwardMemory memory(head, ROWS, ctx.threads, base);
  zero_rows(ctx, a.dh);
  for (int64_t m0 = 0; m0 < head.M; m0 += ROWS) {
    const int64_t count = smaller(ROWS, head.M - m0);
    gather(ctx, head, m0, m0 + count, memory.gathered);
    pack_left(ctx, {memory.gathered, head.C, 1}, count, head.C, memory.left);
    head_backward(ctx, head, memory, m0, count, a.dh, a.dweight,
        [&](int thread, int64_t tile, int64_t r0, int64_t r1, float* to) {
          tile_logits(head, memory.gathered, memory.left, tile, r0, r1, to, memory.stride,
              memory.scratch + thread * memory.thread_floats);
          for (int64_t r = r0; r < r1; r++) {
            const int64_t m = m0 + r;
            float* x = to + r * memory.stride;
            logits_grad(x, x, head.tile_size(tile), head.target(m, tile), {a.logp[m], a.lse[m], a.entropy[m]},
                a.dlogp[m], a.dentropy ? a.dentropy[m] : 0.0f, head.inverse_temperature);
          }
        });
  }
}

void linear_policy_loss(Context& ctx, const linear_policy_loss_args& a) {
  const Head head(a);
  if (a.weight.layout != RLHF_ROW_MAJOR) return ctx.fail("weight is packed, wanted row-major");
  constexpr int64_t ROWS = 256;
  const int64_t rows = smaller(ROWS, head.M), stride = round_up(head.V_, LANES) + LANES;  // not a power of two
  const int64_t vector = round_up(head.M, LANES) + LANES, weights_size = round_up(a.cu_seqlens.dim[0], LANES);
  const int64_t stats_size = round_up(head.tiles * rows * int64_t(sizeof(TileStats) / sizeof(float)), LANES),
                tile_size = rows * TILE_ROW;
  const int64_t sums = round_up(policy_sums_scratch(head.M, a.cu_seqlens), LANES);
  const int64_t floats = BackwardMemory(head, ROWS, ctx.threads, nullptr).total + 4 * vector + weights_size +
                         stats_size + rows * stride + tile_size * ctx.threads;
  double* sums_memory =
      static_cast<double*>(ctx.scratch(sums * int64_t(sizeof(double)) + floats * int64_t(sizeof(float)) + 64));
  if (!sums_memory) return;
  float* base = reinterpret_cast<float*>(sums_memory + sums);
  if (a.kl_coef != 0 && !a.ref_logp) return ctx.fail("kl_coef is not 0, and ref_logp is missing");
  float *weights = base, *dlogp = weights + weights_size, *dentropy = dlogp + vector, *lse = dentropy + vector,
        *targets = lse + vector;
  TileStats* stats = reinterpret_cast<TileStats*>(targets + vector);  // [tiles][rows]
  float *logits = targets + vector + stats_size,
        *tiles = logits + rows * stride;  // [rows][stride], a tile of each thread
  const BackwardMemory memory(head, ROWS, ctx.threads, tiles + tile_size * ctx.threads);
  const int64_t sequences = sequence_weights(a, weights);
  const bool backward = a.dh || a.dweight;
  zero_rows(ctx, a.dh);

  for (int64_t m0 = 0; m0 < head.M; m0 += ROWS) {
    const int64_t count = smaller(ROWS, head.M - m0);
    gather(ctx, head, m0, m0 + count, memory.gathered);
    pack_left(ctx, {memory.gathered, head.C, 1}, count, head.C, memory.left);
    split_block(ctx, count, head.tiles, [&](int thread, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
      float* own = tiles + thread * tile_size;
      for (int64_t tile = t0; tile < t1; tile++) {
        tile_logits(head, memory.gathered, memory.left, tile, r0, r1, own, TILE_ROW,
            memory.scratch + thread * memory.thread_floats);
        const int64_t n = head.tile_size(tile);
        for (int64_t r = r0; r < r1; r++) {
          const int64_t target = head.target(m0 + r, tile);
          const float* x = own + r * TILE_ROW;
          stats[tile * rows + r] = tile_stats(x, n, head.inverse_temperature, target);
          if (target >= 0) targets[r] = x[target];
          float* to = logits + r * stride + tile * VOCABULARY_TILE;
          for (int64_t i = 0; backward && i < n; i += LANES) stream(to + i, load(x + i));
        }
      }
      end_of_stream();
    });
    ctx.split(count, 1, 32, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        TileStats row{-__builtin_inf(), 0, 0};
        join(row, stats + r, head.tiles, head.inverse_temperature, rows);
        const RowStats result = finish(row, targets[r], head.inverse_temperature);
        a.logp[m0 + r] = result.logp, lse[m0 + r] = result.lse, a.entropy[m0 + r] = result.entropy;
      }
    });
    if (!backward) continue;
    each_sequence(a.cu_seqlens, m0, m0 + count, [&](int64_t b, int64_t begin, int64_t end) {
      policy_loss_run<true, false>(a, a.logp.data, nullptr, weights[b], begin, end, dlogp, dentropy, nullptr);
    });
    head_backward(
        ctx, head, memory, m0, count, a.dh, a.dweight, [&](int, int64_t tile, int64_t r0, int64_t r1, float* to) {
          for (int64_t r = r0; r < r1; r++) {
            const int64_t m = m0 + r;
            logits_grad(logits + r * stride + tile * VOCABULARY_TILE, to + r * memory.stride, head.tile_size(tile),
                head.target(m, tile), {a.logp[m], lse[m], a.entropy[m]}, dlogp[m], dentropy[m],
                head.inverse_temperature);
          }
        });
  }
  a.loss[0] = policy_loss_sums<false>(ctx, a, a.logp.data, a.entropy.data, weights, sequences, sums_memory);
}

}  // namespace rlhf::RLHF_ISA
