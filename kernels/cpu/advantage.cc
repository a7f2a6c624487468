// Advantages, token rewards, whitening, moments, sums per sequence.
//
//   gae (Schulman et al. 2016, eq. 16):  delta[t] = fma(gamma, v[t+1], r[t]) - v[t],  A[t] = fma(gamma lambda, A[t+1], delta[t])
//     backwards from 0 and 0; a masked token is passed over: it leaves v[t+1] and A[t+1] as they are, and its outputs are 0
//   whiten: (x - mean) * factor [+ mean]; verl and trl: variance / (n - 1), 1 / sqrt(var + 1e-8); openrlhf: variance / n,
//     1 / sqrt(max(var, 1e-8))
//
// Law: gae is one chain per sequence, in f32; sums over tokens by law 4.
// Plan of gae: sixteen sequences per vector, aligned at their ends, through 16 x 16 transposes; sequences over threads.
#include "kernels/cpu/math.h"
#include "kernels/cpu/sums.h"
#include "kernels/cpu/transpose.h"

namespace rlhf::RLHF_ISA {
namespace {

struct Row {
  const float *rewards, *values;
  const int32_t* mask;  // may be null
  float *advantages, *returns;
  int64_t length;
};

// a[k] = x[k] for the 16 elements that end at x + end, those before the row 0
RLHF_INLINE void tile_row(const float* x, int64_t end, float* to) {
  if (end >= LANES) return store(to, load(x + end - LANES));
  for (int k = 0; k < LANES; k++) to[k] = k + end >= LANES ? x[k + end - LANES] : 0.0f;
}

// up to sixteen rows at once
RLHF_INLINE void gae_rows(const Row* rows, int count, float gamma, float lambda) {
  alignas(64) float in[2][LANES * LANES], r[LANES * LANES], v[LANES * LANES], A[LANES * LANES], R[LANES * LANES];
  int64_t longest = 0;
  for (int k = 0; k < count; k++) longest = rows[k].length > longest ? rows[k].length : longest;
  const V g = set(gamma), gl = set(gamma * lambda);
  V next_value = zero(), next = zero();
  for (int64_t done = 0; done < longest; done += LANES) {
    alignas(64) int32_t counts[LANES] = {};  // bit t: token t of the tile is the policy's
    bool masked = false;
    for (int k = 0; k < LANES; k++) {
      const int64_t end = k < count ? rows[k].length - done : 0;
      if (end <= 0) {
        store(in[0] + k * LANES, zero()), store(in[1] + k * LANES, zero());
        continue;
      }
      tile_row(rows[k].rewards, end, in[0] + k * LANES), tile_row(rows[k].values, end, in[1] + k * LANES);
      counts[k] = 0xffff;
      if (!rows[k].mask) continue;
      for (int t = 0; t < LANES; t++)
        if (t + end >= LANES && rows[k].mask[t + end - LANES] == 0) counts[k] &= ~(1 << t), masked = true;
    }
    transpose(in[0], LANES, r, LANES), transpose(in[1], LANES, v, LANES);
    for (int t = LANES - 1; t >= 0; t--) {
      const V value = load(v + t * LANES), advantage = fma(gl, next, fma(g, next_value, load(r + t * LANES)) - value);
      if (!masked) {
        next = advantage, next_value = value;
        store(A + t * LANES, next), store(R + t * LANES, next + value);
        continue;
      }
      const B kept = !((load(counts) & seti(1 << t)) == seti(0));
      next = select(kept, advantage, next), next_value = select(kept, value, next_value);
      store(A + t * LANES, select(kept, advantage, zero())), store(R + t * LANES, select(kept, advantage + value, zero()));
    }
    transpose(A, LANES, in[0], LANES), transpose(R, LANES, in[1], LANES);
    for (int k = 0; k < count; k++) {
      const int64_t end = rows[k].length - done;
      if (end >= LANES) {
        store(rows[k].advantages + end - LANES, load(in[0] + k * LANES)), store(rows[k].returns + end - LANES, load(in[1] + k * LANES));
      } else {
        for (int t = LANES - 1; t + end >= LANES; t--)
          rows[k].advantages[t + end - LANES] = in[0][k * LANES + t], rows[k].returns[t + end - LANES] = in[1][k * LANES + t];
      }
    }
  }
}

template <class F>
RLHF_INLINE void gae_all(Context& ctx, int64_t sequences, int64_t tokens, double gamma, double lambda, F&& row) {
  const int64_t least = tokens > 0 ? 1 + 4096 * sequences / tokens : 1;  // sequences of about 4,096 tokens
  ctx.split(sequences, LANES, least, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b += LANES) {
      Row rows[LANES];
      const int count = end - b < LANES ? int(end - b) : LANES;
      for (int k = 0; k < count; k++) rows[k] = row(b + k);
      gae_rows(rows, count, float(gamma), float(lambda));
    }
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
