// Log-probs of tokens from their logits, and the full KL of two rows of logits.
//
//   logp[m] = x_y - log sum_j exp(x_j),  x = logits[m] / T;  entropy = lse - sum_j p_j x_j;  statistics: logprob.h
//   logits f32 [M,V]; y i32 [M]; logp, lse, entropy, kl f32 [M]
//
// Plan: threads take rows; a row goes through in tiles of 512 logits, which are joined in order.
//
// AMD Zen 4, AVX-512, 2 cores, two threads, from logits 1024 x 50257: logprob 14 to 16 ms, logprob_grad 9. With clamps
// that nothing can reach 24 to 30 and 22; without them, but the next tile not fetched ahead, 16 to 25 and 14: a quarter
// of logprob's time was then the maximum's. What logprob must do: 206 MB, 6 ms, and 32 operations of 512 bits for 16
// logits (15 of exp, 6 of the exact difference, 11 of the two sums in f64), 7 ms at two a cycle. Zen 3, AVX2, 2 cores,
// two threads: logprob 16.7 ms (32 % of the limit; 22 in one loop: 31 cycles a sixteen for 43), logprob_grad 14.8 (63
// %; in two loops 2 to 9 % slower). With a stranger on each core's other thread (gemm.h) 33 and 24 ms. Zen 5, AVX-512,
// 2 cores, two threads: logprob 6.9 ms (63 to 72 %: arithmetic binds; a seventh more in one loop), logprob_grad 6 to 10
// (at the limit).
#include "kernels/cpu/logprob.h"

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
        const int64_t end_of_tile = j + VOCABULARY_TILE < V_ ? j + VOCABULARY_TILE : V_;
        for (int64_t i = j; i < end_of_tile; i += LANES) {
          const int n = int(end_of_tile - i < LANES ? end_of_tile - i : LANES);
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
