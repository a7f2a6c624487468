// Log-probs of tokens from their logits, and the full KL of two rows of logits.
//
//   logp[m] = x_y - log sum_j exp(x_j),  x = logits[m] / T;  entropy = lse - sum_j p_j x_j;  statistics: logprob.h
//   logits f32 [M,V]; y i32 [M]; logp, lse, entropy, kl f32 [M]
//
// Plan: threads take rows. A row goes through in tiles of 512 logits, which are joined in order.
// Figures: 32 to 72 % of the limit, the gradient 63 % to all of it. History:
// kernels/notes/logprob.md.
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
