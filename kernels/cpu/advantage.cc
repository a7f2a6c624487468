// Advantages, token rewards, whitening, moments, sums per sequence.
//
//   gae (Schulman et al. 2016, eq. 16):  delta[t] = fma(gamma, v[t+1], r[t]) - v[t],  A[t] = fma(gamma lambda, A[t+1], delta[t])
//     backwards from 0 and 0; a masked token is passed over: it leaves v[t+1] and A[t+1] as they are, and its outputs are 0
//   whiten: (x - mean) * factor [+ mean]; verl and trl: variance / (n - 1), 1 / sqrt(var + 1e-8); openrlhf: variance / n,
//     1 / sqrt(max(var, 1e-8))
//
// Law: gae is one chain per sequence, in f32; sums over tokens by law 4.
// Plan of gae: a chunk of 256 tokens of eight sequences at once, from their ends: what does not depend on the token after it
// by vectors along the sequence, then the eight chains token by token (two multiply-adds a cycle, each of four), then the
// returns; large results past the caches; sequences over threads.
//
// AMD Zen 4, AVX-512, 2 cores, two threads: 1024 x 4096 in 3.2 ms, 64 x 1024 in 0.094, where sixteen sequences per vector
// through 16 x 16 transposes took 3.8 and 0.13; 43 % of the limit for the large one, which waits for memory in `deltas`.
#include "kernels/cpu/math.h"
#include "kernels/cpu/sums.h"

namespace rlhf::RLHF_ISA {
namespace {

struct Row {
  const float *rewards, *values;
  const int32_t* mask;  // may be null
  float *advantages, *returns;
  int64_t length;
};

constexpr int ROWS = 8;
constexpr int64_t AHEAD = 16 * LANES;  // tokens between those that are prefetched and those that are computed

// delta of the sixteen tokens from i on; where there is no token, 0
RLHF_INLINE void deltas(const Row& row, int64_t i, float gamma, float* delta) {
  const float *r = row.rewards + i, *v = row.values + i;
  if (i >= 0 && i + LANES < row.length) return store(delta, fma(set(gamma), load(v + 1), load(r)) - load(v));
  for (int64_t k = 0; k < LANES; k++) {
    const bool there = i + k >= 0 && i + k < row.length, last = i + k + 1 >= row.length;
    delta[k] = there ? __builtin_fmaf(gamma, last ? 0.0f : v[k + 1], r[k]) - v[k] : 0.0f;
  }
}

// The same under a mask, with the factor of the chain: gamma lambda, or 1 where a token is passed over
RLHF_INLINE void masked_deltas(const Row& row, int64_t i, float gamma, float gamma_lambda, float& next_value, float* delta, float* factor) {
  for (int64_t k = LANES - 1; k >= 0; k--) {
    const bool kept = i + k >= 0 && i + k < row.length && row.mask[i + k];
    factor[k] = kept ? gamma_lambda : 1.0f, delta[k] = 0;
    if (kept) delta[k] = __builtin_fmaf(gamma, next_value, row.rewards[i + k]) - row.values[i + k], next_value = row.values[i + k];
  }
}

template <bool STREAM, bool MASKED>
RLHF_INLINE void results(const Row& row, int64_t i, const float* advantages) {
  if (!MASKED && i >= 0 && i + LANES <= row.length) {
    const V advantage = load(advantages), sum = advantage + load(row.values + i);
    STREAM ? stream(row.advantages + i, advantage) : store(row.advantages + i, advantage);
    STREAM ? stream(row.returns + i, sum) : store(row.returns + i, sum);
    return;
  }
  for (int64_t k = 0; k < LANES; k++) {
    if (i + k < 0 || i + k >= row.length) continue;
    const bool kept = !MASKED || row.mask[i + k];
    row.advantages[i + k] = kept ? advantages[k] : 0.0f;
    row.returns[i + k] = kept ? advantages[k] + row.values[i + k] : 0.0f;
  }
}

// Up to eight rows at once, sixteen tokens of each at a time from their ends. A row's sixteens end at cache lines of its
// advantages, so its last one may reach past its end; what it has there is 0, which leaves the chain at 0.
using Two = float __attribute__((vector_size(8)));  // one store

template <bool STREAM, bool MASKED>
__attribute__((noinline)) void gae_rows(const Row* rows, int count, float gamma, float lambda) {
  alignas(64) float tiles[4][ROWS][LANES] = {}, factors[MASKED ? 2 : 1][ROWS][LANES] = {};  // delta, then the advantages
  int64_t at[ROWS] = {}, most = 0;  // at: where the row's sixteen of the chain begins
  for (int k = 0; k < count; k++) {
    at[k] = rows[k].length + int64_t(-(reinterpret_cast<uintptr_t>(rows[k].advantages + rows[k].length) / sizeof(float)) % LANES);
    most = at[k] > most ? at[k] : most;
  }
  const float gl = gamma * lambda;
  float next_value[ROWS] = {}, next[ROWS] = {};
  // A sixteen's deltas are computed beside the chain of the one after it, its results beside that of the second before it:
  // the chain's stores have left for the cache by then, and can be loaded as a vector.
  const int64_t sixteens = (most + LANES - 1) / LANES;
  float(*before)[LANES] = tiles[0], (*chain)[LANES] = tiles[1], (*done)[LANES] = tiles[2], (*after)[LANES] = tiles[3];
  float(*factor_before)[LANES] = factors[0], (*factor)[LANES] = factors[MASKED ? 1 : 0];
  for (int64_t step = -1; step <= sixteens + 1; step++) {
    for (int pair = 0; pair < ROWS; pair++) {
      const int64_t t = LANES - 1 - 2 * pair;
#pragma GCC unroll 8
      for (int k = 0; k < ROWS; k++) {
        const float later = __builtin_fmaf(MASKED ? factor[k][t] : gl, next[k], chain[k][t]);
        next[k] = __builtin_fmaf(MASKED ? factor[k][t - 1] : gl, later, chain[k][t - 1]);
        const Two both = {next[k], later};
        std::memcpy(&chain[k][t - 1], &both, sizeof both);
      }
      if (pair >= count) continue;
      const Row& row = rows[pair];
      const int64_t i = at[pair];
      at[pair] = i - LANES;
      __builtin_prefetch(row.rewards + i - AHEAD, 0, 2), __builtin_prefetch(row.values + i - AHEAD, 0, 2);
      if (MASKED) masked_deltas(row, i - LANES, gamma, gl, next_value[pair], before[pair], factor_before[pair]);
      else if (step + 1 < sixteens) deltas(row, i - LANES, gamma, before[pair]);
      if (step > 1) results<STREAM, MASKED>(row, i + 2 * LANES, after[pair]);
    }
    float(*const free)[LANES] = after, (*const used)[LANES] = factor;
    after = done, done = chain, chain = before, before = free, factor = factor_before, factor_before = used;
  }
}

template <class F>
RLHF_INLINE void gae_all(Context& ctx, int64_t sequences, int64_t tokens, double gamma, double lambda, F&& row) {
  const int64_t least = tokens > 0 ? 1 + 4096 * sequences / tokens : 1;  // sequences of about 4,096 tokens
  constexpr int64_t MANY = 1 << 20;  // tokens whose results no cache would keep for the next reader
  ctx.split(sequences, ROWS, least, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b += ROWS) {
      Row rows[ROWS];
      const int count = end - b < ROWS ? int(end - b) : ROWS;
      bool aligned = tokens >= MANY;
      for (int k = 0; k < count; k++)
        rows[k] = row(b + k), aligned = aligned && (reinterpret_cast<uintptr_t>(rows[k].returns) - reinterpret_cast<uintptr_t>(rows[k].advantages)) % 64 == 0;
      if (rows[0].mask) gae_rows<false, true>(rows, count, float(gamma), float(lambda));
      else if (aligned) gae_rows<true, false>(rows, count, float(gamma), float(lambda));
      else gae_rows<false, false>(rows, count, float(gamma), float(lambda));
    }
    end_of_stream();
  });
}

RLHF_INLINE D ones(B counts) { return widen(select(counts, set(1.0f), zero())); }

}  // namespace

void gae(Context& ctx, const gae_args& a) {
  gae_all(ctx, a.cu_seqlens.dim[0] - 1, a.rewards.dim[0], a.gamma, a.lambda, [&](int64_t b) {
    const int64_t i = a.cu_seqlens[b];
    return Row{&a.rewards[i], &a.values[i], a.mask ? &a.mask[i] : nullptr, &a.advantages[i], &a.returns[i], a.cu_seqlens[b + 1] - i};
  });
}

void gae_padded(Context& ctx, const gae_padded_args& a) {
  gae_all(ctx, a.mask.dim[0], a.mask.size(), a.gamma, a.lambda, [&](int64_t b) {
    return Row{a.rewards.row(b), a.values.row(b), a.mask.row(b), a.advantages.row(b), a.returns.row(b), a.mask.dim[1]};
  });
}

void token_rewards(Context& ctx, const token_rewards_args& a) {
  const V coef = set(float(-a.kl_coef)), half = set(0.5f);
  ctx.split(a.logp.dim[0], LANES, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) {
      const int n = end - i < LANES ? int(end - i) : LANES;
      const V d = load(&a.logp[i], n) - load(&a.ref_logp[i], n);
      V kl = d;
      if (a.estimator == KlEstimator::abs) kl = abs(d);
      if (a.estimator == KlEstimator::k2) kl = half * (d * d);
      if (a.estimator == KlEstimator::k3) {
        const V k3 = expm1(-d) + d;
        kl = select(isnan(k3), k3, min(k3, set(10.0f)));
      }
      store(&a.kl[i], kl, n), store(&a.rewards[i], coef * kl, n);
    }
  });
  for (int64_t b = 0; b < a.scores.dim[0]; b++)
    if (a.cu_seqlens[b] < a.cu_seqlens[b + 1]) a.rewards[a.cu_seqlens[b + 1] - 1] = a.rewards[a.cu_seqlens[b + 1] - 1] + a.scores[b];
}

void whiten(Context& ctx, const whiten_args& a) {
  const auto counted = [&](int64_t i, int n) { return unmasked(a.mask, i, n); };
  const double count = packed_total(0, a.cu_seqlens, [&](int64_t i, int n) { return ones(counted(i, n)); });
  const double mean = packed_total(0, a.cu_seqlens, [&](int64_t i, int n) { return widen(load_where(&a.x[i], n, counted(i, n))); }) / count;
  const double squares = packed_total(0, a.cu_seqlens, [&](int64_t i, int n) {
    const B counts = counted(i, n);
    const D d = (widen(load_where(&a.x[i], n, counts)) - setd(mean)) * ones(counts);
    return d * d;
  });
  const bool biased = a.form == Whitening::openrlhf;
  const double variance = squares / (biased ? count : count - 1);
  if (!biased && count < 2 && count > 0) return ctx.fail("whitening needs at least two unmasked tokens");
  const double factor = 1 / __builtin_sqrt(biased ? (variance > 1e-8 ? variance : 1e-8) : variance + 1e-8);
  ctx.split(a.x.dim[0], LANES, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) {
      const int n = end - i < LANES ? int(end - i) : LANES;
      const B counts = counted(i, n);
      const D y = (widen(load_where(&a.x[i], n, counts)) - setd(mean)) * setd(factor) + setd(a.shift_mean ? 0 : mean);
      store(&a.y[i], select(counts, narrow(y), zero()), n);
    }
  });
}

void moments(Context&, const moments_args& a) {
  double low = __builtin_inf(), high = -__builtin_inf(), bad = 0;
  const auto each = [&](auto&& f) { return packed_total(0, a.cu_seqlens, [&](int64_t i, int n) { return f(i, n, unmasked(a.mask, i, n)); }); };
  a.moments[0] = each([&](int64_t, int, B counts) { return ones(counts); });
  a.moments[1] = each([&](int64_t i, int n, B counts) { return widen(load_where(&a.x[i], n, counts)); });
  a.moments[2] = each([&](int64_t i, int n, B counts) {
    const D x = widen(load_where(&a.x[i], n, counts));
    return x * x;
  });
  for (int64_t i = 0; i < a.x.dim[0]; i++) {
    if (a.mask && a.mask[i] == 0) continue;
    const double x = a.x[i];
    if (x != x) bad = x;
    if (x < low) low = x;
    if (x > high) high = x;
  }
  a.moments[3] = bad != bad ? bad : low, a.moments[4] = bad != bad ? bad : high;
}

void sequence_sum(Context& ctx, const sequence_sum_args& a) {
  ctx.split(a.y.dim[0], 1, 1 + 16384 * a.y.dim[0] / (a.x.dim[0] + 1), [&](int64_t first_sequence, int64_t last) {
    for (int64_t b = first_sequence; b < last; b++) {
      const int64_t begin = a.cu_seqlens[b], end = a.cu_seqlens[b + 1];
      const double total = sequence_total(0, begin, end, [&](int64_t i, int n) { return widen(load(&a.x[i], n)); });
      a.y[b] = float(a.mean && end > begin ? total / double(end - begin) : total);
    }
  });
}

void sequence_sum_grad(Context&, const sequence_sum_grad_args& a) {
  for (int64_t b = 0; b < a.dy.dim[0]; b++) {
    const int64_t begin = a.cu_seqlens[b], end = a.cu_seqlens[b + 1];
    const V d = set(a.mean ? float(double(a.dy[b]) / double(end - begin)) : a.dy[b]);
    for (int64_t i = begin; i < end; i += LANES) store(&a.dx[i], d, end - i < LANES ? int(end - i) : LANES);
  }
}

}  // namespace rlhf::RLHF_ISA
