// What prefill, decode and the backward of attention share: the register tile, one key tile of the online softmax,
// and the packing of keys and values.
//
// Tiles are 64 keys, counted from position 0 of a sequence (law 3). Packed: keys as panels [D][64], so that the lanes of
// q k^T run over keys; values as rows, so that the lanes of p v run over D. Rows are padded to `width(D)`, a multiple of 16.
#pragma once
#include "kernels/cpu/math.h"
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int TILE = 64;
constexpr int GROUP = 6;  // query rows of one register tile, on every ISA

// Vectors side by side in a register tile of R rows: as many as leave registers for the operands.
constexpr int abreast(int rows) {
#if RLHF_VECTOR_AVX512
  const int accumulators = 24;
#elif RLHF_VECTOR_AVX2 || RLHF_VECTOR_NEON
  const int accumulators = 6;
#else
  const int accumulators = 1;
#endif
  int n = accumulators / rows;
  return n < 1 ? 1 : n > 4 ? 4 : n;
}

RLHF_INLINE int64_t width(int64_t D) { return (D + LANES - 1) / LANES * LANES; }
RLHF_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
RLHF_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// A matrix operand: element (row, step of the chain) is data[row * rows + step * steps].
struct Left {
  const float* data;
  int64_t rows, steps;
};
struct Right {  // step of the chain, lanes contiguous
  const float* data;
  int64_t steps;
};
struct Result {
  float* data;
  int64_t rows;
};
enum class Start { zero, resume, scaled };  // a chain starts from 0, from what is there, from what is there times scale[row]

// c[R][16 C]: one chain of fused multiply-adds per element, n steps (law 1).
template <int R, int C>
__attribute__((noinline)) void register_tile(int64_t n, Left a, Right b, Result c, Start start, const float* scale) {
  V sum[R][C];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) sum[i][j] = zero();
  if (start != Start::zero) {
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const V factor = set(start == Start::scaled ? scale[i] : 1.0f);
#pragma GCC unroll 8
      for (int j = 0; j < C; j++) sum[i][j] = load(c.data + i * c.rows + LANES * j) * factor;
    }
  }
  const float* left = a.data;
  const float* right = b.data;
  for (int64_t k = 0; k < n; k++, left += a.steps, right += b.steps) {
    V x[C];
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) x[j] = load(right + LANES * j);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const V y = set(left[i * a.rows]);
#pragma GCC unroll 8
      for (int j = 0; j < C; j++) sum[i][j] = fma(y, x[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) store(c.data + i * c.rows + LANES * j, sum[i][j]);
}

// R rows, `columns` vectors wide.
template <int R>
RLHF_INLINE void product(int64_t columns, int64_t n, Left a, Right b, Result c, Start start, const float* scale = nullptr) {
  constexpr int C = abreast(R);
  for (; columns >= C; columns -= C, b.data += LANES * C, c.data += LANES * C) register_tile<R, C>(n, a, b, c, start, scale);
  if constexpr (C > 3)
    if (columns == 3) register_tile<R, 3>(n, a, b, c, start, scale);
  if constexpr (C > 2)
    if (columns == 2) register_tile<R, 2>(n, a, b, c, start, scale);
  if constexpr (C > 1)
    if (columns == 1) register_tile<R, 1>(n, a, b, c, start, scale);
}

// f<R>() for R = rows, 1 to GROUP
template <class F>
RLHF_INLINE void with_rows(int64_t rows, F&& f) {
  switch (rows) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 5: return f.template operator()<5>();
    default: return f.template operator()<6>();
  }
}

// What query rows carry from tile to tile: o [rows][width(D)] not yet divided, the maximum m and the denominator l.
struct Rows {
  const float* q;  // [rows][D]
  float *o, *m, *l;
};

RLHF_INLINE V lowest() { return set(-__builtin_inff()); }

// Scores of one row against a tile, scaled; -inf where the row does not see the key.
RLHF_INLINE void scores(const float* s, float scale, int64_t seen, V (&x)[4]) {
  const V factor = set(scale);
  if (seen == TILE) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) x[j] = load(s + LANES * j) * factor;
  } else {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
      x[j] = select(first(int(most(0, least(LANES, seen - LANES * j)))), load(s + LANES * j) * factor, lowest());
  }
}

// One tile of the online softmax for R rows; row i sees the tile's first seen[i] keys (1 to 64, ascending in i).
// s [R][64] is scratch; v has `columns` vectors to a row.
template <int R>
__attribute__((noinline)) void attend(int64_t D, float scale, Rows rows, const float* keys, Right values, int64_t columns,
                                      const int64_t* seen, float* s) {
  const int64_t n = seen[R - 1];
  product<R>((n + LANES - 1) / LANES, D, {rows.q, D, 1}, {keys, TILE}, {s, TILE}, Start::zero);
  alignas(64) float fall[LANES] = {};  // m - m', then exp of it
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) {
    V x[4];
    scores(s + TILE * i, scale, seen[i], x);
    const float top = max(max(max(x[0], x[1]), max(x[2], x[3])));
    const float m = rows.m[i] > top ? rows.m[i] : top;
    fall[i] = rows.m[i] - m;
    rows.m[i] = m;
  }
  store(fall, exp(load(fall)));
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) {
    V x[4];
    scores(s + TILE * i, scale, seen[i], x);
    const V m = set(rows.m[i]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) x[j] = exp(x[j] - m);
    if (seen[i] < TILE)
      for (int j = 0; j < 4; j++) x[j] = select(first(int(most(0, least(LANES, seen[i] - LANES * j)))), x[j], zero());
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) store(s + TILE * i + LANES * j, x[j]);
    rows.l[i] = rows.l[i] * fall[i] + sum(((x[0] + x[1]) + x[2]) + x[3]);
  }
  product<R>(columns, n, {s, TILE, 1}, values, {rows.o, LANES * columns}, Start::scaled, fall);
}

// o / l; the sum with +0 makes an underflown -0 the 0 that it is in every other order of the masked keys.
RLHF_INLINE void finish(const float* o, float l, int64_t D, float* out) {
  const V denominator = set(l);
  for (int64_t d = 0; d < D; d += LANES) store(out + d, load(o + d) / denominator + zero(), int(least(LANES, D - d)));
}

// Copies n rows of D to rows of width(D), padded with zeros.
RLHF_INLINE void pack_rows(const float* from, int64_t stride, int64_t n, int64_t D, float* to) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < D; d += LANES) store(to + i * width(D) + d, load(from + i * stride + d, int(least(LANES, D - d))));
}

// n keys into the panel [D][64] from its column `at`.
RLHF_INLINE void pack_keys(const float* from, int64_t stride, int64_t n, int64_t D, float* panel, int64_t at) {
  for (int64_t d = 0; d < D; d++)
    for (int64_t j = 0; j < n; j++) panel[d * TILE + at + j] = from[j * stride + d];
}

// Places in one piece of memory, each aligned to a cache line; with no memory it only counts.
struct Places {
  char* memory;
  int64_t bytes = 0;
  template <class T>
  RLHF_INLINE T* take(int64_t n) {
    char* at = memory ? memory + bytes : nullptr;
    bytes += (n * int64_t(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
};

// Work of known cost in a row: each thread takes the items that begin within its share of the total.
template <class F>
RLHF_INLINE void share(Context& ctx, int64_t total, F&& f) {
  constexpr int64_t worth_waking = 1 << 15;  // multiply-adds per thread
  const int64_t parts = most(1, least(ctx.threads, total / worth_waking));
  if (parts == 1) return f(0, int64_t(0), total);
  ctx.each([&](int thread) {
    if (thread < parts) f(thread, int64_t(double(total) / double(parts) * thread), thread + 1 == parts ? total : int64_t(double(total) / double(parts) * (thread + 1)));
  });
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
