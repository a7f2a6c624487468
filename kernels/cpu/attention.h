// What prefill, decode and the backward of attention share: the register tile, one key tile of the
// online softmax, and the packing of keys and values.
//
// Tiles are 64 keys, counted from position 0 of a sequence (law 3). Keys are packed as panels
// [D][64]: the lanes of q k^T run over keys. Values are packed as rows: the lanes of p v run over
// D. Rows are padded to `width(D)`, a multiple of 16.
#pragma once
#include "kernels/cpu/math.h"
#include "kernels/cpu/transpose.h"
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int TILE = 64;
constexpr int GROUP = 6;  // query rows of one register tile, on every ISA
#if RLHF_VECTOR_AVX512
constexpr int64_t FORWARD_ROWS = 16 * GROUP;  // query rows of a block
#else
constexpr int64_t FORWARD_ROWS = 8 * GROUP;
#endif

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

// A matrix operand: element (row, step of the chain) is data[row * stride + step], or data[row + step * stride] where
// it is turned.
struct Left {
  const float* data;
  int64_t stride;
};
struct Right {  // step of the chain, lanes contiguous
  const float* data;
  int64_t steps;
};
struct Result {
  float* data;
  int64_t rows;
};
// A chain starts from 0, from what the result holds, or from that times scale[row].
enum class Start { zero, resume, scaled };

// c[R][16 C]: one chain of fused multiply-adds per element, n steps (law 1). Plain numbers as arguments: a struct would
// be copied through the stack in pieces that the core cannot forward, a bubble per call.
template <int R, int C, bool TURNED>
__attribute__((noinline)) void register_tile(int64_t n, const float* a, int64_t a_stride, const float* b,
    int64_t b_steps, float* c, int64_t c_rows, Start start, const float* scale) {
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
      for (int j = 0; j < C; j++) sum[i][j] = load(c + i * c_rows + LANES * j) * factor;
    }
  }
  const auto advance = [&]() __attribute__((always_inline)) {
    multiply_add(
        sum, [&](int i) __attribute__((always_inline)) { return a[TURNED ? i : i * a_stride]; }, b);
    a += TURNED ? a_stride : 1, b += b_steps;
  };
  int64_t k = 0;
  if (TURN > 1)
#pragma GCC unroll 1
    for (; k + TURN <= n; k += TURN)
#pragma GCC unroll 8
      for (int t = 0; t < TURN; t++) advance();
#pragma GCC unroll 1
  for (; k < n; k++) advance();
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) store(c + i * c_rows + LANES * j, sum[i][j]);
}

// R rows, `columns` vectors wide.
template <int R, bool TURNED = false>
RLHF_INLINE void product(
    int64_t columns, int64_t n, Left a, Right b, Result c, Start start, const float* scale = nullptr) {
  constexpr int C = abreast(R);
  const auto tile = [&]<int width>() {
    register_tile<R, width, TURNED>(n, a.data, a.stride, b.data, b.steps, c.data, c.rows, start, scale);
  };
  for (; columns >= C; columns -= C, b.data += LANES * C, c.data += LANES * C) tile.template operator()<C>();
  if constexpr (C > 3)
    if (columns == 3) tile.template operator()<3>();
  if constexpr (C > 2)
    if (columns == 2) tile.template operator()<2>();
  if constexpr (C > 1)
    if (columns == 1) tile.template operator()<1>();
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

// exp(x) for x <= 88 or NaN, bit for bit: a score less its maximum cannot be larger.
RLHF_INLINE V exp_score(V x) { return select(x < set(-87.3365402f), zero(), exp_within(x)); }

// What query rows carry from tile to tile: o [rows][width(D)] not yet divided, the maximum m and the denominator l.
struct Rows {
  const float* q;  // [rows][D]
  float *o, *m, *l;
  float *s, *fall;  // scratch: [rows][64], [rows]
};

RLHF_INLINE B first_of(int64_t seen, int j) { return first(int(most(0, least(LANES, seen - LANES * j)))); }

// f<C>() for C = columns, 1 to 4
template <class F>
RLHF_INLINE void with_columns(int64_t columns, F&& f) {
  switch (columns) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    default: return f.template operator()<4>();
  }
}

// One tile of the online softmax for the rows from `from` to `rows`; row i sees the tile's first seen[i] keys (1 to 64,
// ascending in i). An unseen key has the score -inf, so p = 0; the vectors of keys that no row of a group sees are left
// out. Each step runs over all rows before the next, to hide the latency of the row maxima and of exp.
[[maybe_unused]] __attribute__((noinline)) void attend(int64_t D, float scale, const Rows x, int64_t from, int64_t rows,
    const float* keys, const float* values, const int64_t* seen) {
  const int64_t W = width(D);
  // f<C>(first row, row after the last) for each group, whose rows see at most C vectors of keys
  const auto groups = [&](auto&& f) {
    for (int64_t i = from; i < rows; i += GROUP) {
      const int64_t end = least(i + GROUP, rows);
      with_columns((seen[end - 1] + LANES - 1) / LANES, [&]<int C>() { f.template operator()<C>(i, end); });
    }
  };
  for (int64_t i = from; i < rows; i += GROUP)
    with_rows(least(GROUP, rows - i), [&]<int R>() {
      product<R>((seen[i + R - 1] + LANES - 1) / LANES, D, {x.q + i * D, D}, {keys, TILE}, {x.s + i * TILE, TILE},
          Start::zero);
    });
  const V factor = set(scale), unseen = set(-__builtin_inff());
  groups([&]<int C>(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float* s = x.s + i * TILE;
      V y[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) y[j] = j < C ? load(s + LANES * j) * factor : unseen;
      if (seen[i] < TILE)
        for (int j = 0; j < C; j++) y[j] = select(first_of(seen[i], j), y[j], unseen);
#pragma GCC unroll 4
      for (int j = 0; j < C; j++) store(s + LANES * j, y[j]);
      const float top = max(max(max(y[0], y[1]), max(y[2], y[3])));
      const float m = x.m[i] > top ? x.m[i] : top;
      x.fall[i] = x.m[i] - m;
      x.m[i] = m;
    }
  });
  for (int64_t i = from; i < rows; i += LANES) {  // a = exp(m - m')
    const int n = int(least(LANES, rows - i));
    store(x.fall + i, exp(load(x.fall + i, n)), n);
  }
  groups([&]<int C>(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float* s = x.s + i * TILE;
      const V m = set(x.m[i]);
      V total = zero();  // of what is 0 or more: beginning with 0 changes no bit
#pragma GCC unroll 4
      for (int j = 0; j < C; j++) {
        const V y = exp_score(load(s + LANES * j) - m);
        store(s + LANES * j, y);
        total = total + y;
      }
      x.l[i] = x.l[i] * x.fall[i] + sum(total);
    }
  });
  for (int64_t i = from; i < rows; i += GROUP)
    with_rows(least(GROUP, rows - i), [&]<int R>() {
      product<R>(
          W / LANES, seen[i + R - 1], {x.s + i * TILE, TILE}, {values, W}, {x.o + i * W, W}, Start::scaled, x.fall + i);
    });
}

// o / l, or a gradient as it is; the sum with +0 makes an underflown -0 the 0 that it is in every other order of the
// masked keys.
RLHF_INLINE void finish(const float* o, float l, int64_t D, float* out) {
  const V denominator = set(l);
  each_vector(0, D, [&](int64_t d, int n) { store(out + d, load(o + d) / denominator + zero(), n); });
}
RLHF_INLINE void finish(const float* sum, int64_t D, float* out) {
  each_vector(0, D, [&](int64_t d, int n) { store(out + d, load(sum + d) + zero(), n); });
}

// Copies n rows of D to rows of width(D), padded with zeros.
RLHF_INLINE void pack_rows(const float* from, int64_t stride, int64_t n, int64_t D, float* to) {
  for (int64_t i = 0; i < n; i++)
    each_vector(0, D, [&](int64_t d, int lanes) { store(to + i * width(D) + d, load(from + i * stride + d, lanes)); });
}

// Asks for n floats that are wanted a little later: the same rows of the next head, whose place no prefetcher guesses.
RLHF_INLINE void fetch(const float* from, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(from + i, 0, 2);
}

// n keys into the panel [D][64] from its column `at`.
__attribute__((noinline, unused)) void pack_keys(
    const float* from, int64_t stride, int64_t n, int64_t D, float* panel, int64_t at) {
  transpose(from, stride, n, D, panel + at, TILE);
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
    if (thread < parts)
      f(thread, int64_t(double(total) / double(parts) * thread),
          thread + 1 == parts ? total : int64_t(double(total) / double(parts) * (thread + 1)));
  });
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
