// Log-probs of tokens, from logits or straight from the hidden state and the head (logits exist only as a tile).
//
//   logp[m] = x_y - log sum_j exp(x_j),  x = h[rows[m]] W^T / T;  entropy = lse - sum_j p_j x_j;  statistics: logprob.h
//
// Plan of linear_logprob: 512 rows at a time against every vocabulary tile, tiles split over threads, so that each tile
// of the head is packed once per 512 rows; a tile's logits become (m, s, u) at once; joined in order at the end. Plan
// of the backward pass: 512 rows at a time; their logits are recomputed 3,072 at a time, turned into their gradient in
// place, then dh and dW, whose chains go on from block to block (linear_head.h).
//
// AMD Zen 4, AVX-512, 2 cores, two threads, from logits 1024 x 50257: logprob 14 to 16 ms, logprob_grad 9. With clamps
// that nothing can reach 24 to 30 and 22; without them, but the next tile not fetched ahead, 16 to 25 and 14: a quarter
// of logprob's time was then the maximum's. What logprob must do: 206 MB, 6 ms, and 32 operations of 512 bits for 16
// logits (15 of exp, 6 of the exact difference, 11 of the two sums in f64), 7 ms at two a cycle. Zen 3, AVX2, 2 cores,
// two threads: logprob 16.7 ms (32 % of the limit; 22 in one loop: 31 cycles a sixteen for 43), logprob_grad 14.8 (63
// %; in two loops 2 to 9 % slower), linear_logprob 85 to 87 % of the peak, 1.5 times torch compiled, 1.7 eager, 2.1
// TRL's chunks: twice torch eager would be more than the peak. With a stranger on each core's other thread (gemm.h) 33
// ms, 24 ms and 69 %. Zen 5, AVX-512, 2 cores, two threads: logprob 6.9 ms (63 to 72 %: arithmetic binds; a seventh
// more in one loop), logprob_grad 6 to 10 (at the limit), linear_logprob 87 % of the peak, 3.0 times torch, 3.9 to 5.5
// times TRL. Intel Xeon (Sapphire Rapids or later, L2 of 2 MB), AVX-512, 2 cores, two threads: linear_logprob 71
// %, 1.36 times torch, its gradient 73 %, 1.22 times; its products bind (gemm.h).
#include "kernels/cpu/linear_head.h"

namespace rlhf::RLHF_ISA {

void logprob(Context& ctx, const logprob_args& a) {
  const int64_t V_ = a.logits.dim[1];
  const float t = float(1 / a.temperature);
  ctx.split(a.logits.dim[0], 1, 16384 / (V_ + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
      const RowStats row = row_stats(a.logits.row(m), V_, a.y[m], t);
      a.logp[m] = row.logp, a.lse[m] = row.lse, a.entropy[m] = row.entropy;
    }
  });
}

void logprob_grad(Context& ctx, const logprob_grad_args& a) {
  const int64_t V_ = a.logits.dim[1];
  const float t = float(1 / a.temperature);
  ctx.split(a.logits.dim[0], 1, 16384 / (V_ + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++)
      logits_grad(a.logits.row(m), a.dlogits.row(m), V_, a.y[m], {a.logp[m], a.lse[m], a.entropy[m]}, a.dlogp[m],
          a.dentropy ? a.dentropy[m] : 0.0f, t);
  });
}

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

// KL(p || q) = sum_j p_j (expm1(d_j) - d_j), d = log q - log p: a sum of terms that are never negative
void full_kl(Context& ctx, const full_kl_args& a) {
  const int64_t V_ = a.logits.dim[1];
  const float inverse = float(1 / a.temperature);
  ctx.split(a.logits.dim[0], 1, 8192 / (V_ + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
      const float *x = a.logits.row(m), *y = a.ref_logits.row(m);
      const V t = set(inverse);
      const TileStats row_p = row_tiles(x, V_, -1, inverse), row_q = row_tiles(y, V_, -1, inverse);
      const V m_p = set(float(row_p.m)), m_q = set(float(row_q.m)), tail_p = set(float(log(row_p.s))),
              tail_q = set(float(log(row_q.s)));
      double kl = 0;
      for (int64_t j = 0; j < V_; j += VOCABULARY_TILE) {
        D total = setd(0);
        const int64_t end_of_tile = smaller(V_, j + VOCABULARY_TILE);
        for (int64_t i = j; i < end_of_tile; i += LANES) {
          const int n = int(smaller(LANES, end_of_tile - i));
          const V log_p = (load(x + i, n) - m_p) * t - tail_p, log_q = (load(y + i, n) - m_q) * t - tail_q,
                  p = exp(log_p);
          const B counts = first(n) & !(p == zero());  // NaN counts
          const V d = select(counts, log_q - log_p, zero());
          total = fma(widen(select(counts, p, zero())), expm1_wide(d) - widen(d), total);
        }
        kl = kl + sum(total);
      }
      a.kl[m] = float(kl);
    }
  });
}

}  // namespace rlhf::RLHF_ISA
