// Log-softmax statistics of a row of logits, in tiles of 512 vocabulary entries counted from index
// 0 (law 3).
//
// x is the logit, t = 1/T. Differences of logits are scaled, never logits, so no finite logit
// overflows at any temperature. Each tile is summed by itself, in 16 f64 lanes, without the
// target's term:
//   m_t = max x,  s_t = sum exp((x - m_t) t),  u_t = sum exp((x - m_t) t) (x - m_t) t
// Tiles are joined in order, in f64:
//   m' = max(m, m_t),  a = exp((m - m') t),  b = exp((m_t - m') t),
//   u' = a (u + (m - m') t s) + b (u_t + (m_t - m') t s_t),  s' = a s + b s_t
// A tile with a NaN has s = u = NaN, and so has its row. The target's own term stays out of S, so
// that a confident token keeps its digits:
//   logp = -log1p(S) where x_y is the maximum, else d - log(S + exp(d)), d = (x_y - m) t;  lse = m t + (d - logp)
#pragma once
#include "kernels/cpu/math.h"

namespace rlhf::RLHF_ISA {

constexpr int64_t VOCABULARY_TILE = 512;

struct TileStats {
  double m, s, u;  // without the target's term in s and u; m with it
};

// The statistics of n <= 512 logits x[n] of one tile. target is the index of y in it, or negative. Not
// inlined: there are many callers.
template <bool SCALED>
[[maybe_unused]] static __attribute__((noinline)) TileStats tile_stats(
    const float* x, int64_t n, float inverse_temperature, int64_t target) {
  const V t = set(inverse_temperature), none = set(-__builtin_inff());
  V top = none, second = none;
  int64_t i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) top = max(load(x + i), top), second = max(load(x + i + LANES), second);
  for (; i < n; i += LANES) {
    const int count = n - i < LANES ? int(n - i) : LANES;
    top = max(select(first(count), load(x + i, count), none), top);
  }
  const float m = max(max(top, second));
  if (m ==
      -__builtin_inff()) {  // nothing is possible, or NaN, which a maximum passes over, is all that there is besides
    for (i = 0; i < n; i++)
      if (x[i] != x[i]) return {0, __builtin_nan(""), __builtin_nan("")};
    return {m, 0, 0};
  }
  // Each step has a loop of its own. A core's schedulers hold little more than one exponential, so one
  // long loop would wait for itself.
  alignas(64) float n_of[VOCABULARY_TILE], e[VOCABULARY_TILE], d[VOCABULARY_TILE];
  const V vm = set(m);
  each_vector(
      0, n, [&](int64_t i, int count) __attribute__((always_inline)) {
        const V y = load(x + i, count), difference = y - vm;
        const Reduction a = SCALED ? reduce_diff(y, vm, t) : reduce_diff(y, vm);
        store(n_of + i, a.n), store(e + i, a.r), store(d + i, SCALED ? difference * t : difference);
      });
  for (i = 0; i < n; i += LANES) {
    const V y = load(d + i);
    store(e + i, exp_below(y, Reduction(load(n_of + i), load(e + i))));
    store(d + i, max(y, set(EXP_LEAST)));  // where e is 0, y may be -inf
  }
  for (i = n; i % LANES; i++) e[i] = 0;
  if (target >= 0) e[target] = 0;
  D s = setd(0), u = s;
  for (i = 0; i < n; i += LANES) {
    const D w = widen(e + i);
    s = s + w, u = fma(w, widen(d + i), u);
  }
  return {m, sum(s), sum(u)};
}
RLHF_FUNCTION TileStats tile_stats(const float* x, int64_t n, float inverse_temperature, int64_t target) {
  return inverse_temperature == 1 ? tile_stats<false>(x, n, 1, target)
                                  : tile_stats<true>(x, n, inverse_temperature, target);
}

// Joins tiles[0], tiles[stride] ... to the row, in order. The exponentials need the maxima alone, so
// those of sixteen tiles are computed at once.
[[maybe_unused]] static __attribute__((noinline)) void join(
    TileStats& row, const TileStats* tiles, int64_t count, float inverse_temperature, int64_t stride = 1) {
  const double t = inverse_temperature;
  for (int64_t first_tile = 0; first_tile < count; first_tile += LANES) {
    const int n = count - first_tile < LANES ? int(count - first_tile) : LANES;
    alignas(64) double factors[LANES] = {};
    double m = row.m;
    for (int k = 0; k < n; k++) {
      const double next = tiles[(first_tile + k) * stride].m;
      if (next == -__builtin_inf()) continue;
      const double d = (m >= next ? next - m : m - next) * t;
      factors[k] = d < -1000 ? -1000 : d, m = m >= next ? m : next;  // 0 below -708
    }
    store(factors, exp_below(load(factors)));
    for (int k = 0; k < n; k++) {
      const TileStats& tile = tiles[(first_tile + k) * stride];
      if (tile.m == -__builtin_inf()) continue;
      const double factor = factors[k];
      if (row.m == -__builtin_inf()) {
        row = tile;
      } else if (row.m >= tile.m) {
        const double d = (tile.m - row.m) * t;
        row.u = row.u + factor * (tile.u + d * tile.s);
        row.s = row.s + factor * tile.s;
      } else {
        const double d = (row.m - tile.m) * t;
        row.u = factor * (row.u + d * row.s) + tile.u;
        row.s = factor * row.s + tile.s;
        row.m = tile.m;
      }
    }
  }
}

struct RowStats {
  float logp, lse, entropy;
};

// The row's results, from its joined tiles and x_y, the target's logit.
RLHF_FUNCTION RowStats finish(const TileStats& row, float target, float inverse_temperature) {
  const double d = (double(target) - row.m) * inverse_temperature;
  if (row.m == -__builtin_inf()) return {-__builtin_inff(), -__builtin_inff(), 0};  // nothing is possible
  const double own = d == 0 ? 1.0 : exp(d);
  const double tail = d == 0 ? log1p(row.s) : log(row.s + own);  // lse - m
  const double logp = d - tail;
  const double mean = (row.u + (own > 0 ? own * d : 0)) / (row.s + own);  // of x - m
  const double entropy = tail - mean;
  return {float(logp), float(row.m * inverse_temperature + tail), float(entropy <= 0 ? 0 : entropy)};
}

// Joins the tiles of a whole row. y is the target, or negative where s and u shall have every term.
RLHF_INLINE TileStats row_tiles(const float* logits, int64_t V_, int64_t y, float inverse_temperature) {
  TileStats row{-__builtin_inf(), 0, 0}, tiles[LANES];
  for (int64_t j = 0; j < V_;) {
    int n = 0;
    for (; n < LANES && j < V_; n++, j += VOCABULARY_TILE) {
      // prefetches the next tile: its maximum has no arithmetic to hide memory behind
      for (int64_t k = 0; k < VOCABULARY_TILE; k += LANES) __builtin_prefetch(logits + j + VOCABULARY_TILE + k);
      tiles[n] = tile_stats(logits + j, V_ - j < VOCABULARY_TILE ? V_ - j : VOCABULARY_TILE, inverse_temperature,
          y >= j && y < j + VOCABULARY_TILE ? y - j : -1);
    }
    join(row, tiles, n, inverse_temperature);
  }
  return row;
}
RLHF_INLINE RowStats row_stats(const float* logits, int64_t V_, int64_t y, float inverse_temperature) {
  return finish(row_tiles(logits, V_, y, inverse_temperature), logits[y], inverse_temperature);
}

// d loss / d logit of vocabulary entries [begin, begin + n) of a row, in place or not, p_j = exp(x_j - lse):
//   g_j = -(dlogp p_j + dentropy p_j (log p_j + H)) / T;  at the target dlogp (1 - p) / T = -dlogp expm1(logp) / T in
//   place of -dlogp p / T
[[maybe_unused]] static __attribute__((noinline)) void logits_grad(const float* x, float* g, int64_t n, int64_t target,
    const RowStats& row, float dlogp, float dentropy, float inverse_temperature) {
  const V t = set(inverse_temperature), lse = set(row.lse), H = set(row.entropy), a = set(dlogp), b = set(dentropy);
  const bool with_entropy = dentropy != 0;
  const auto of = [&](int64_t i, int count, bool own) __attribute__((always_inline)) {
    const V y = load(x + i, count) * t - lse,
            p = exp_below(min(set(88.0f), y));  // above 0 only where lse is another row's
    V d = a * p;
    if (own) d = select(iota() == seti(int32_t(target - i)), a * expm1(set(row.logp)), d);
    if (with_entropy) d = d + select(zero() < p, b * (p * (y + H)), zero());
    store(g + i, -(d * t), count);
  };
  const int64_t own = target < 0 ? n : target / LANES * LANES;
  for (int64_t i = 0; i < n; i += LANES) {
    for (const int64_t end = i <= own ? own : n; i + LANES <= end; i += LANES) of(i, LANES, false);
    if (i < n) of(i, n - i < LANES ? int(n - i) : LANES, true);
  }
}

}  // namespace rlhf::RLHF_ISA
