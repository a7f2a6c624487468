// Log-softmax statistics of a row of logits, in tiles of 512 vocabulary entries counted from index 0 (law 3).
//
// With x = logit / T (x = logit * (1/T)), each tile is summed by itself, whoever computes it:
//   m_t = max x,  s_t = sum exp(x - m_t),  u_t = sum exp(x - m_t) (x - m_t)      (16 f64 lanes; the target's term left out)
// and tiles are joined in order, in f64:
//   m' = max(m, m_t),  a = exp(m - m'),  b = exp(m_t - m'),
//   u' = a (u + (m - m') s) + b (u_t + (m_t - m') s_t),  s' = a s + b s_t
// The target's own term stays out of S, so that a confident token keeps its digits:
//   logp = -log1p(S) where x_y is the maximum, else (x_y - m) - log(S + exp(x_y - m));  lse = x_y - logp
#pragma once
#include "kernels/cpu/math.h"

namespace rlhf::RLHF_ISA {

constexpr int64_t VOCABULARY_TILE = 512;

struct TileStats {
  double m, s, u;  // without the target's term in s and u; m with it
};

// x[n] are the logits of one tile, n <= 512; target is the index of y in it, or negative
RLHF_INLINE TileStats tile_stats(const float* x, int64_t n, float inverse_temperature, int64_t target) {
  const V t = set(inverse_temperature), none = set(-__builtin_inff());
  V top = none;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) top = max(load(x + i) * t, top);
  if (i < n) top = max(select(first(int(n - i)), load(x + i, int(n - i)) * t, none), top);
  const float m = max(top);
  if (m == -__builtin_inff()) return {m, 0, 0};
  D s = setd(0), u = setd(0);
  const V vm = set(m);
  for (i = 0; i < n; i += LANES) {
    const int count = n - i < LANES ? int(n - i) : LANES;
    V y = load(x + i, count) * t;
    B counts = first(count);
    if (target >= i && target < i + LANES) counts = counts & !(iota() == seti(int32_t(target - i)));
    const V e = select(counts, exp_diff(y, vm), zero());
    const V d = select(zero() < e, y - vm, zero());  // where e is 0, x may be -inf
    const D w = widen(e);
    s = s + w;
    u = fma(w, widen(d), u);
  }
  return {m, sum(s), sum(u)};
}

RLHF_INLINE void join(TileStats& row, const TileStats& tile) {
  if (tile.m == -__builtin_inf()) return;
  if (row.m == -__builtin_inf()) {
    row = tile;
    return;
  }
  if (row.m >= tile.m) {
    const double d = tile.m - row.m, b = exp(d);
    row.u = row.u + b * (tile.u + d * tile.s);
    row.s = row.s + b * tile.s;
  } else {
    const double d = row.m - tile.m, a = exp(d);
    row.u = a * (row.u + d * row.s) + tile.u;
    row.s = a * row.s + tile.s;
    row.m = tile.m;
  }
}

struct RowStats {
  float logp, lse, entropy;
};

// the row's end: its joined tiles and x_y, the target's logit times 1/T
RLHF_INLINE RowStats finish(const TileStats& row, float target) {
  const double d = double(target) - row.m;
  if (row.m == -__builtin_inf()) return {-__builtin_inff(), -__builtin_inff(), 0};  // nothing is possible
  const double own = d == 0 ? 1.0 : exp(d);
  const double tail = d == 0 ? log1p(row.s) : log(row.s + own);  // lse - m
  const double logp = d - tail;
  const double mean = (row.u + (own > 0 ? own * d : 0)) / (row.s + own);  // of x - m
  const double entropy = tail - mean;
  return {float(logp), float(row.m + tail), float(entropy > 0 ? entropy : 0)};
}

// A whole row at once.
RLHF_INLINE RowStats row_stats(const float* logits, int64_t V_, int64_t y, float inverse_temperature) {
  TileStats row{-__builtin_inf(), 0, 0};
  for (int64_t j = 0; j < V_; j += VOCABULARY_TILE)
    join(row, tile_stats(logits + j, V_ - j < VOCABULARY_TILE ? V_ - j : VOCABULARY_TILE, inverse_temperature, y >= j && y < j + VOCABULARY_TILE ? y - j : -1));
  return finish(row, logits[y] * inverse_temperature);
}

// d loss / d logit, in place or not, for vocabulary entries [begin, begin + n) of a row: with p_j = exp(x_j - lse),
//   g_j = -(dlogp p_j + dentropy p_j (log p_j + H)) / T;  at the target dlogp (1 - p) / T = -dlogp expm1(logp) / T in place of -dlogp p / T
RLHF_INLINE void logits_grad(const float* x, float* g, int64_t n, int64_t target, const RowStats& row, float dlogp, float dentropy, float inverse_temperature) {
  const V t = set(inverse_temperature), lse = set(row.lse), H = set(row.entropy), a = set(dlogp), b = set(dentropy);
  const bool with_entropy = dentropy != 0;
  for (int64_t i = 0; i < n; i += LANES) {
    const int count = n - i < LANES ? int(n - i) : LANES;
    const V y = load(x + i, count) * t;
    const V p = exp(y - lse);
    V d = a * p;
    if (with_entropy) d = d + select(zero() < p, b * (p * ((y - lse) + H)), zero());
    if (target >= i && target < i + LANES) {
      V own = a * expm1(set(row.logp));
      if (with_entropy) own = own + select(zero() < p, b * (p * ((y - lse) + H)), zero());
      d = select(iota() == seti(int32_t(target - i)), own, d);
    }
    store(g + i, -(d * t), count);
  }
}

}  // namespace rlhf::RLHF_ISA
