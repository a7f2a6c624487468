// Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards over each sequence:
//   delta[t] = fma(gamma, v[t+1], r[t]) - v[t],   A[t] = fma(gamma lambda, A[t+1], delta[t]),   v = A = 0 past the end
//   rewards, values, advantages, returns: f32 [N] packed by cu_seqlens i32 [B+1], or [B,T] with a mask
// A masked token is passed over. It leaves v[t+1] and A[t+1] as they are, and its outputs are 0.
//
// Law: one chain per sequence, in f32.
// Plan: eight sequences go at once, in chunks of 512 tokens from their ends. Sequences over
// threads.
//   1. Deltas, which do not depend on the token after, by vectors along the sequence.
//   2. The eight chains, token by token: two multiply-adds a cycle, four chains in each. With AVX2 eight
//      tokens are transposed, so that one multiply-add serves all eight chains.
//   3. Returns. Large results are stored past the caches.
// Figures: 44 % of the limit to all of it, 1.8 to 5.8 times a plain loop. History:
// kernels/notes/advantage.md.
#include "kernels/cpu/transpose.h"

namespace rlhf::RLHF_ISA {
namespace {

struct Row {
  const float *rewards, *values;
  const int32_t* mask;  // may be null
  float *advantages, *returns;
  int64_t length;
};

constexpr int ROWS = 8;
constexpr int64_t CHUNK = 512,
                  CHUNK_ROW = CHUNK + LANES;  // tokens of a row at once; a row of the chunk, not a power of two

// Calls f(t, i) for each sixteen tokens of a chunk that begins at `begin` of its row.
template <class F>
RLHF_INLINE void each_line(int64_t begin, int64_t size, F&& f) {
  for (int64_t t = 0, i = begin; t < size; t += LANES, i += LANES) f(t, i);
}

// Computes the deltas of a chunk, 0 where there is no token.
RLHF_INLINE void deltas(const Row& row, int64_t begin, int64_t size, float gamma, float* delta) {
  const V g = set(gamma);
  each_line(
      begin, size, [&](int64_t t, int64_t i) __attribute__((always_inline)) {
        const float *r = row.rewards + i, *v = row.values + i;
        if (i >= 0 && i + LANES < row.length) return store(delta + t, fma(g, load(v + 1), load(r)) - load(v));
        if (i + LANES <= 0) return store(delta + t, zero());
        if (i >= 0) {  // to the end, after which the value is 0
          const int n = int(i + LANES < row.length ? LANES : i < row.length ? row.length - i : 0);
          return store(delta + t, fma(g, load(v + 1, n > 0 ? n - 1 : 0), load(r, n)) - load(v, n));
        }
        for (int64_t k = 0; k < LANES; k++) {
          const bool there = i + k >= 0 && i + k < row.length, last = i + k + 1 >= row.length;
          delta[t + k] = there ? __builtin_fmaf(gamma, last ? 0.0f : v[k + 1], r[k]) - v[k] : 0.0f;
        }
      });
}

// Deltas under a mask, and the factor of the chain: gamma lambda, or 1 where a token is passed over.
RLHF_INLINE void masked_deltas(const Row& row, int64_t begin, int64_t size, float gamma, float gamma_lambda,
    float& next_value, float* delta, float* factor) {
  for (int64_t t = size - 1; t >= 0; t--) {
    const int64_t i = begin + t;
    const bool kept = i >= 0 && i < row.length && row.mask[i];
    factor[t] = kept ? gamma_lambda : 1.0f, delta[t] = 0;
    if (kept) delta[t] = __builtin_fmaf(gamma, next_value, row.rewards[i]) - row.values[i], next_value = row.values[i];
  }
}

// Up to eight rows at once, chunk by chunk from their ends. A row is cut into sixteens from its begin, or
// at cache lines of its advantages where these are streamed. Its last sixteen may reach past its end. It
// has zeros there, which leave the chain at 0.
template <bool STREAM, bool MASKED>
RLHF_INLINE void gae_rows(const Row* rows, int count, float gamma, float lambda) {
  alignas(64) float a[ROWS * CHUNK_ROW], factors[MASKED ? ROWS * CHUNK_ROW : 1];  // a: delta, then the advantages
  int64_t at[ROWS] = {}, most = 0;  // at: where the row's chunk begins
  for (int k = 0; k < count; k++) {
    const uintptr_t end = STREAM ? reinterpret_cast<uintptr_t>(rows[k].advantages + rows[k].length) / sizeof(float)
                                 : uintptr_t(rows[k].length);
    at[k] = rows[k].length + int64_t(-end % LANES);
    most = at[k] > most ? at[k] : most;
  }
  for (int k = count; k < ROWS; k++) {  // chains that no row needs
    const size_t bytes = size_t(most < CHUNK ? most + LANES : CHUNK) * sizeof(float);
    memset(a + k * CHUNK_ROW, 0, bytes);
    if (MASKED) memset(factors + k * CHUNK_ROW, 0, bytes);
  }
  const float gl = gamma * lambda;
  float next_value[ROWS] = {}, next[ROWS] = {};
#if RLHF_VECTOR_AVX2
  __m256 nexts = _mm256_setzero_ps();
#endif
  for (int64_t size; most > 0; most -= size) {
    size = most < CHUNK ? (most + LANES - 1) / LANES * LANES : CHUNK;
    for (int k = 0; k < count; k++) {
      at[k] -= size;
      if (MASKED)
        masked_deltas(rows[k], at[k], size, gamma, gl, next_value[k], a + k * CHUNK_ROW, factors + k * CHUNK_ROW);
      else deltas(rows[k], at[k], size, gamma, a + k * CHUNK_ROW);
    }
    for (int64_t tile = size - LANES; tile >= 0; tile -= LANES) {
      for (int k = 0; k < count; k++) {  // of the next chunk
        __builtin_prefetch(rows[k].rewards + at[k] + tile - CHUNK, 0, 2),
            __builtin_prefetch(rows[k].values + at[k] + tile - CHUNK, 0, 2);
      }
#if RLHF_VECTOR_AVX2
      if (!MASKED) {
#pragma GCC unroll 1
        for (int64_t t = tile + 8; t >= tile; t -= 8) {
          __m256 x[8];
#pragma GCC unroll 8
          for (int k = 0; k < 8; k++) x[k] = _mm256_load_ps(a + k * CHUNK_ROW + t);
          transpose(x);
#pragma GCC unroll 8
          for (int i = 7; i >= 0; i--) x[i] = nexts = _mm256_fmadd_ps(_mm256_set1_ps(gl), nexts, x[i]);
          transpose(x);
#pragma GCC unroll 8
          for (int k = 0; k < 8; k++) _mm256_store_ps(a + k * CHUNK_ROW + t, x[k]);
        }
        continue;
      }
#endif
      for (int64_t t = tile + LANES - 1; t >= tile; t--)
#pragma GCC unroll 8
        for (int k = 0; k < ROWS; k++) {
          next[k] = __builtin_fmaf(MASKED ? factors[k * CHUNK_ROW + t] : gl, next[k], a[k * CHUNK_ROW + t]);
          a[k * CHUNK_ROW + t] = next[k];
        }
    }
    for (int k = 0; k < count; k++) {
      const Row& row = rows[k];
      each_line(
          at[k], size, [&](int64_t t, int64_t i) __attribute__((always_inline)) {
            const float* advantages = a + k * CHUNK_ROW + t;
            if (!MASKED && i >= 0 && i + LANES <= row.length) {
              const V advantage = load(advantages), sum = advantage + load(row.values + i);
              STREAM ? stream(row.advantages + i, advantage) : store(row.advantages + i, advantage);
              STREAM ? stream(row.returns + i, sum) : store(row.returns + i, sum);
              return;
            }
            if (!MASKED && i >= 0) {
              const int n = int(i < row.length ? row.length - i : 0);
              const V advantage = load(advantages);
              store(row.advantages + i, advantage, n), store(row.returns + i, advantage + load(row.values + i, n), n);
              return;
            }
            if (i + LANES <= 0) return;
            for (int64_t lane = 0; lane < LANES; lane++) {
              if (i + lane < 0 || i + lane >= row.length) continue;
              const bool kept = !MASKED || row.mask[i + lane];
              row.advantages[i + lane] = kept ? advantages[lane] : 0.0f;
              row.returns[i + lane] = kept ? advantages[lane] + row.values[i + lane] : 0.0f;
            }
          });
    }
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
        rows[k] = row(b + k),
        aligned =
            aligned &&
            (reinterpret_cast<uintptr_t>(rows[k].returns) - reinterpret_cast<uintptr_t>(rows[k].advantages)) % 64 == 0;
      if (rows[0].mask) gae_rows<false, true>(rows, count, float(gamma), float(lambda));
      else if (aligned) gae_rows<true, false>(rows, count, float(gamma), float(lambda));
      else gae_rows<false, false>(rows, count, float(gamma), float(lambda));
    }
    end_of_stream();
  });
}

}  // namespace

void gae(Context& ctx, const gae_args& a) {
  gae_all(ctx, a.cu_seqlens.dim[0] - 1, a.rewards.dim[0], a.gamma, a.lambda, [&](int64_t b) {
    const int64_t i = a.cu_seqlens[b];
    return Row{&a.rewards[i], &a.values[i], a.mask ? &a.mask[i] : nullptr, &a.advantages[i], &a.returns[i],
        a.cu_seqlens[b + 1] - i};
  });
}

void gae_padded(Context& ctx, const gae_padded_args& a) {
  gae_all(ctx, a.mask.dim[0], a.mask.size(), a.gamma, a.lambda, [&](int64_t b) {
    return Row{a.rewards.row(b), a.values.row(b), a.mask.row(b), a.advantages.row(b), a.returns.row(b), a.mask.dim[1]};
  });
}

}  // namespace rlhf::RLHF_ISA
