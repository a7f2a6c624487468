// c[m,n] (+)= a[m,k] b[k,n]: each element is one chain of fused multiply-adds over k in order,
// continued from what it holds.
//
// Plan (Van Zee and van de Geijn 2015): a register tile of MR rows and NR columns. Its sums are
// loaded from c first, so that blocks of k continue the chain. a is packed as [m/MR][k][MR], b as
// panels [n/32][k][32], padded with zeros. A panel of b is packed just before its tiles, which ask
// for the numbers of the next one meanwhile.
//
// Blocks: KC steps of a panel in L1, MC x KC of a in L2, NC columns of b in L3. Panels are 32 wide
// on every ISA, so a packed weight means the same everywhere. b, or its panels, may be bf16 and is
// widened as it is loaded (law 9).
// Figures: 73 to 94 % of the peak. History: kernels/notes/linear.md.
#pragma once
#include "kernels/cpu/transpose.h"
#include "kernels/cpu/vector.h"
#include "native/list/types.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t PANEL = 32;
#if RLHF_VECTOR_AVX512
constexpr int MR = 14, NV = 2;
constexpr int64_t KC = 384, MC = 19 * MR, NC = 1024;
#else
constexpr int MR = 6, NV = 1;
constexpr int64_t KC = 384, MC = 24 * MR, NC = 1024;
#endif
constexpr int64_t NR = NV * LANES;

// Cores have few buffers for lines that are not in L1: Intel's have 16. A tile's own reads from L2
// need them too. So requests for later tiles are spread over all steps of a tile, where `spreads`.
// Zen 5 gains by it too. Zen 4 was not measured this way: its requests go out from the first step.
#if RLHF_VECTOR_AVX512
RLHF_INLINE bool spreads() { return !__builtin_cpu_is("amdfam19h"); }
RLHF_INLINE bool asks_panels() { return spreads(); }  // prefetches packed panels before their tiles
// Zen 5 packs slowly, compared with its multiply-adds.
RLHF_INLINE bool packs_slowly() { return spreads() && __builtin_cpu_is("amd"); }
#elif RLHF_VECTOR_AVX2
RLHF_INLINE bool spreads() { return false; }
RLHF_INLINE bool asks_panels() { return true; }
RLHF_INLINE bool packs_slowly() { return false; }
#else
RLHF_INLINE bool spreads() { return false; }
RLHF_INLINE bool asks_panels() { return false; }
RLHF_INLINE bool packs_slowly() { return false; }
#endif

RLHF_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr RLHF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Bytes that later tiles read. They are prefetched a few at a time, behind arithmetic: ASKED bytes at
// each of `rows` places `step` apart, then the bytes after them, `left` times.
constexpr int64_t LINE = 64;
// How many steps ahead a panel of bf16, a line a step, is prefetched for a tile that reads memory.
constexpr int64_t STREAMED = 32;
constexpr int64_t ASKED = NR * int64_t(sizeof(float));
struct Ahead {
  const char* data = nullptr;
  int64_t step = 0, rows = 0, left = 0, row = 0;

  RLHF_INLINE int64_t total() const { return rows * left; }
  // Takes up to `count` places. Returns how many there are; the first is at `from`.
  RLHF_INLINE int64_t take(int64_t count, const char*& from) {
    if (left == 0) return 0;
    from = data + row * step;
    count = smaller(count, rows - row), row += count;
    if (row == rows) row = 0, left--, data += ASKED;
    return count;
  }
};

// How many steps lie between two prefetches of a tile.
RLHF_INLINE int64_t steps_apart(int64_t k, int64_t requests) {
  if (!spreads() || k < requests) return 1;
  return smaller(k / requests, 16);
}

// How a tile reads a. packed: [k][MR]. laid: in place, a_row from row to row. few: in place too, in a
// product of few rows, which reads b from memory.
enum class Reading { packed, laid, few };

// One register tile: R rows, N vectors of columns. `columns` of the columns exist. T: float or bf16.
// It prefetches the lines of c below, which the next tile continues or writes, then `asked` more at
// `ahead`. With few rows it prefetches `asked` lines at `ahead` in every turn of TURN steps, and moves
// on by ahead_step bytes each time. FREE: the sum starts from zero and is added to c, against law 1.
template <int R, class T, int N = NV, Reading A = Reading::packed, bool FREE = false>
__attribute__((noinline)) void micro(int64_t k, const float* a, const T* b, float* c, int64_t c_row, int columns,
    bool continued, const float* bias, const char* ahead = nullptr, int64_t ahead_step = 0, int64_t asked = 0,
    int64_t a_row = 0) {
  V sum[R][N];
  const bool whole = columns == N * LANES;
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) sum[i][j] = zero();
  if (continued && !FREE) {
#pragma GCC unroll 16
    for (int i = 0; i < R; i++)
#pragma GCC unroll 2
      for (int j = 0; j < N; j++) {
        const float* from = c + i * c_row + j * LANES;
        const int n = columns - j * LANES;
        sum[i][j] = whole ? load(from) : n > 0 ? load(from, n < LANES ? n : LANES) : zero();
      }
  }
  const float* half = a + R / 2 * a_row;  // addressing reaches rows at a_row times 1, 2, 4 and 8
  const auto advance = [&]() __attribute__((always_inline)) {
    const auto left = [&](int i) __attribute__((always_inline)) {
      return A == Reading::packed ? a[i] : i < R / 2 ? a[i * a_row] : half[(i - R / 2) * a_row];
    };
    multiply_add(sum, left, b);
    a += A == Reading::packed ? MR : 1, half++, b += PANEL;
  };
  int64_t step = 0;
  if (A != Reading::few) {
    const int64_t apart = steps_apart(k, R + asked);
    const auto advance_each = [&](int64_t count, auto&& ask) __attribute__((always_inline)) {
      for (; count > 0; count--, step += apart) {
        ask();
#pragma GCC unroll 1
        for (int64_t i = 0; i < apart; i++) advance();
      }
    };
    const float* next = c + R * c_row;
    advance_each(
        smaller(R, k / apart), [&]() __attribute__((always_inline)) {
#pragma GCC unroll 2
          for (int j = 0; j < N; j++) __builtin_prefetch(next + j * LANES, 1);
          next += c_row;
        });
    advance_each(
        smaller(asked, (k - step) / apart), [&]() __attribute__((always_inline)) {
#pragma GCC unroll 2
          for (int j = 0; j < N; j++) __builtin_prefetch(ahead + j * LANES * int64_t(sizeof(float)));
          ahead += ahead_step;
        });
    if (TURN > 1)
#pragma GCC unroll 1
      for (; step + TURN <= k; step += TURN)
#pragma GCC unroll 8
        for (int t = 0; t < TURN; t++) advance();
  }
  // a whole panel from memory: the prefetchers of the hardware run too little ahead
  if (A == Reading::few && N == 2 && !asked && spreads())
#pragma GCC unroll 1
    for (; step < k; step++) {
#pragma GCC unroll 2
      for (int64_t line = 0; line < PANEL * int64_t(sizeof(T)); line += LINE)
        __builtin_prefetch(reinterpret_cast<const char*>(b + 4 * STREAMED * PANEL) + line, 0, 2);
      advance();
    }
  if (A == Reading::few)
#pragma GCC unroll 1
    for (; step + TURN <= k; step += TURN, ahead += ahead_step) {
      if (TURN == 1) {
        if (asked) __builtin_prefetch(ahead, 0, 2);  // into L2
      } else {
#pragma GCC unroll 1
        for (int64_t i = 0; i < asked; i++) __builtin_prefetch(ahead + i * LINE, 0, 2);
        if (N == 2 && sizeof(T) == 2)
#pragma GCC unroll 8
          for (int t = 0; t < TURN; t++) __builtin_prefetch(b + (STREAMED + t) * PANEL);
      }
#pragma GCC unroll 8
      for (int t = 0; t < TURN; t++) advance();
    }
  for (; step < k; step++) advance();
#pragma GCC unroll 2
  for (int j = 0; j < N; j++) {
    const int n = columns - j * LANES < LANES ? columns - j * LANES : LANES;
    if (n <= 0) break;
    if (bias) {
      const V shift = load(bias + j * LANES, n);
#pragma GCC unroll 16
      for (int i = 0; i < R; i++) sum[i][j] = sum[i][j] + shift;
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) {
      float* to = c + i * c_row + j * LANES;
      if (FREE && continued) sum[i][j] = sum[i][j] + (whole ? load(to) : load(to, n));
      if (whole) store(to, sum[i][j]);
      else store(to, sum[i][j], n);
    }
  }
}

template <class T, Reading A, bool FREE>
RLHF_INLINE void micro_rows(int rows, int64_t k, const float* a, const T* b, float* c, int64_t c_row, int columns,
    bool continued, const float* bias, const char* ahead, int64_t ahead_step, int64_t asked, int64_t a_row) {
  switch (rows) {
    // clang-format off
#define ROWS_CASE(n) case n: return micro<n <= MR ? n : MR, T, NV, A, FREE>(k, a, b, c, c_row, columns, continued, bias, ahead, ahead_step, asked, a_row);
    ROWS_CASE(1) ROWS_CASE(2) ROWS_CASE(3) ROWS_CASE(4) ROWS_CASE(5) ROWS_CASE(6) ROWS_CASE(7) ROWS_CASE(8)
    ROWS_CASE(9) ROWS_CASE(10) ROWS_CASE(11) ROWS_CASE(12) ROWS_CASE(13)
#undef ROWS_CASE
        // clang-format on
        default : return micro<MR, T, NV, A, FREE>(
                      k, a, b, c, c_row, columns, continued, bias, ahead, ahead_step, asked, a_row);
  }
}

// An operand: element (i, j) is data[i * row + j * column].
template <class T>
struct MatrixOf {
  const T* data;
  int64_t row, column;
  RLHF_INLINE const T* at(int64_t i) const { return data + i * row; }
};
using Matrix = MatrixOf<float>;

// Calls f with a pointer to the weight's numbers, in their own type.
template <class F>
RLHF_INLINE void with_numbers(const View<const float>& weight, F&& f) {
  if (weight.dtype == RLHF_BF16) f(reinterpret_cast<const bf16*>(weight.data));
  else f(weight.data);
}

// transpose_rows: MR rows of STEPS steps each, to[s][r] = in[r][s]. copy_rows: MR rows of one step,
// which are neighbours. A step stores COPIED lanes: those past MR are overwritten by the next step.
#if RLHF_VECTOR_AVX2
constexpr int STEPS = 4;
RLHF_INLINE void transpose_rows(const float* in, int64_t row, float* to) {
  const auto pair = [&](int r) {
    const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(in + r * row));
    return r + 4 < MR ? _mm256_insertf128_ps(low, _mm_loadu_ps(in + (r + 4) * row), 1)
                      : _mm256_insertf128_ps(low, _mm_setzero_ps(), 1);
  };
  const __m256 x0 = pair(0), x1 = pair(1), x2 = pair(2), x3 = pair(3);
  const __m256 a = _mm256_unpacklo_ps(x0, x1), b = _mm256_unpackhi_ps(x0, x1), c = _mm256_unpacklo_ps(x2, x3),
               d = _mm256_unpackhi_ps(x2, x3);
  _mm256_storeu_ps(to, _mm256_shuffle_ps(a, c, 0x44)), _mm256_storeu_ps(to + MR, _mm256_shuffle_ps(a, c, 0xee));
  _mm256_storeu_ps(to + 2 * MR, _mm256_shuffle_ps(b, d, 0x44)),
      _mm256_storeu_ps(to + 3 * MR, _mm256_shuffle_ps(b, d, 0xee));
}
constexpr int ROWS_READ = MR, COPIED = LANES / 2;
#elif RLHF_VECTOR_AVX512
constexpr int STEPS = LANES, ROWS_READ = LANES, COPIED = LANES;
RLHF_INLINE void transpose_rows(const float* in, int64_t row, float* to) { transpose(in, row, to, MR); }
#else
constexpr int STEPS = 1, ROWS_READ = MR, COPIED = LANES;
RLHF_INLINE void transpose_rows(const float* in, int64_t row, float* to) {
  for (int r = 0; r < MR; r++) to[r] = in[r * row];
}
#endif
RLHF_INLINE void copy_rows(const float* in, float* to) {
#if RLHF_VECTOR_AVX2
  _mm256_storeu_ps(to, half(in));
#else
  store(to, load(in));
#endif
}

// The distance between panels of a where several threads pack them.
RLHF_INLINE int64_t packed_step(int64_t k) { return MR * k + LANES; }

constexpr int64_t STEPS_AHEAD = 6;

// Packs rows [begin, begin + m) of a's `rows_there`, steps [from, from + k), as [m/MR][k][MR]. Panels
// are `step` apart, and LANES floats after the last are free. It prefetches the rows that come next:
// no prefetcher of the hardware follows so many short ones.
RLHF_INLINE void pack_a(
    const Matrix& a, int64_t begin, int64_t m, int64_t rows_there, int64_t from, int64_t k, float* to, int64_t step) {
  int64_t done = 0;  // rows packed already
  if (a.row == 1 && a.column != 1) {  // the rows of a step are neighbours: one walk fills all panels
    done = smaller(m, rows_there - begin - LANES) / MR * MR;
    if (done < 0) done = 0;
    for (int64_t s = 0; s < k; s++) {
      const float* in = a.data + begin + (from + s) * a.column;
      float* out = to + s * MR;
      const float* ahead = in + smaller(STEPS_AHEAD, k - 1 - s) * a.column;
      if ((k - s) * MR >= COPIED)
        for (int64_t i = 0; i < done; i += MR, out += step) {
          __builtin_prefetch(ahead + i);
          copy_rows(in + i, out);
        }
      else  // within the panel
        for (int64_t i = 0; i < done; i += MR, out += step) store(out, load(in + i), int((k - s) * MR));
    }
    to += done / MR * step;
  }
  for (int64_t i = done; i < m; i += MR, to += step) {
    const int rows = int(smaller(MR, m - i));
    const float* in = a.data + (begin + i) * a.row + from * a.column;
    int64_t s = 0;
    if (a.column == 1) {
      if (rows == MR && begin + i + ROWS_READ <= rows_there)
        for (; s + STEPS <= k; s += STEPS) {
          if (s % LANES == 0)
            for (int r = MR; r < 2 * MR; r++) __builtin_prefetch(in + r * a.row + s);
          transpose_rows(in + s, a.row, to + s * MR);
        }
    }
    for (; s < k; s++) {
      for (int r = 0; r < rows; r++) to[s * MR + r] = in[r * a.row + s * a.column];
      for (int r = rows; r < MR; r++) to[s * MR + r] = 0;
    }
  }
}

// Packs b's steps [from, from + k), columns [begin, begin + n), as [n/32][k][32], padded with zeros.
template <class T>
RLHF_INLINE void pack_b(const MatrixOf<T>& b, int64_t from, int64_t k, int64_t begin, int64_t n, float* to) {
  int64_t done = 0;
  if (b.column == 1) {  // the columns of a step are neighbours: one walk fills all whole panels
    done = n / PANEL * PANEL;
    for (int64_t s = 0; s < k; s++) {
      const T* in = b.at(from + s) + begin;
      for (int64_t j = 0; j < done; j += PANEL)
        store(to + j * k + s * PANEL, load(in + j)), store(to + j * k + s * PANEL + LANES, load(in + j + LANES));
    }
    to += done * k;
  }
  for (int64_t j = done; j < n; j += PANEL, to += PANEL * k) {
    const int64_t columns = smaller(PANEL, n - j);
    if (b.column == 1) {
      for (int64_t s = 0; s < k; s++) {
        const T* in = b.at(from + s) + begin + j;
        float* out = to + s * PANEL;
        for (int64_t c = 0; c < PANEL; c++) out[c] = c < columns ? float(in[c]) : 0.0f;
      }
    } else {  // columns of b are rows in memory
      const T* in = b.data + (begin + j) * b.column + from * b.row;
      transpose(in, b.column, columns, k, to, PANEL);
      for (int64_t s = 0; columns < PANEL && s < k; s++)
        for (int64_t c = columns; c < PANEL; c++) to[s * PANEL + c] = 0;
    }
  }
}

template <class T>
struct Product {
  int64_t m, n, k;
  Matrix a;
  MatrixOf<T> b;
  const T* panels = nullptr;  // b, packed already: [n/32][k][32]
  float* c;
  int64_t c_row;
  bool continued = false;
  const float* bias = nullptr;
  const float* a_panels = nullptr;  // a, packed already: [m/MR][packed_step(k)]
};

// How many steps a block of k has. Each block continues c, so there are more steps where c is large for
// an L2 of 1 or 2 MB.
RLHF_INLINE int64_t block_steps(int64_t rows, int64_t columns, int64_t k) {
  return smaller(k, spreads() && rows > MC && rows * columns > 1 << 18 ? 2 * KC : KC);
}

// Whether rows of a are read in place, because packing would cost more. Rows a multiple of 4 KB apart
// share a few sets of L1, so a wide c packs them still.
template <class T>
RLHF_INLINE bool is_read_laid(const Product<T>& p, int64_t columns) {
  return packs_slowly() && !p.a_panels && p.a.column == 1 && (columns <= 12 * PANEL || p.a.row % 1024 != 0);
}

RLHF_INLINE int64_t packed_a_floats(int64_t rows, int64_t k) {
  return round_up(round_up(smaller(rows, MC), MR) * k + LANES, LANES);
}

// How many floats of scratch product() needs.
RLHF_INLINE int64_t product_scratch(int64_t m, int64_t n, int64_t k, bool packed) {
  const int64_t kc = block_steps(m, n, k);
  return packed_a_floats(m, kc) + (packed ? 0 : round_up(smaller(n, m <= MC ? PANEL : NC), PANEL) * kc + LANES);
}

// A product of few rows, as in decoding, where memory is the limit. Every panel is read once, from
// its first step to its last. A row-major b is packed panel by panel. More rows than one tile takes
// are cut as evenly as they go. They read FEW_BYTES of a panel at a time, which then lie in L1, and
// ask for the next ones into L2 meanwhile. History: kernels/notes/linear.md.
constexpr int64_t FEW = 16;
#if RLHF_VECTOR_AVX2
constexpr int64_t FEW_BYTES = 16384;
constexpr int FEW_WIDE = 3;  // a tile of up to so many rows is a whole panel wide
template <class T>
constexpr int FEW_R = sizeof(T) == 4 ? FEW_WIDE : MR;  // bf16 takes more rows, since each tile widens it anew
#else
constexpr int64_t FEW_BYTES = 8192;
constexpr int FEW_WIDE = NV == 2 ? 8 : 2;
template <class T>
constexpr int FEW_R = MR < 8 ? MR : 8;
#endif

template <class T>
RLHF_INLINE void product_few(
    const Product<T>& p, int64_t first, int64_t last, int64_t top, int64_t bottom, float* packed_b) {
  const int64_t rows = bottom - top, tiles = (rows + FEW_R<T> - 1) / FEW_R<T>;
  const bool one = rows <= FEW_WIDE;  // one tile has all rows
  const int64_t steps = !p.panels ? KC : one ? p.k : FEW_BYTES / (PANEL * int64_t(sizeof(T)));
  const bool pieces = p.k > steps;
  // Sums between pieces. In c, rows a power of two apart would share a few sets of the cache.
  alignas(64) float sums[FEW * PANEL];
  for (int64_t j = first; j < last; j += PANEL) {
    const int64_t columns = smaller(PANEL, last - j);
    float* const there = p.c + top * p.c_row + j;
    float* const c = pieces ? sums : there;
    const int64_t c_row = pieces ? PANEL : p.c_row;
    const auto copy = [&](const float* from, int64_t from_row, float* to, int64_t to_row) {
      for (int64_t i = 0; i < rows; i++)
        each_vector(
            0, columns, [&](int64_t l, int n) { store(to + i * to_row + l, load(from + i * from_row + l, n), n); });
    };
    if (pieces && p.continued) copy(there, p.c_row, sums, PANEL);
    for (int64_t k0 = 0; k0 < p.k; k0 += steps) {
      const int64_t k = smaller(steps, p.k - k0);
      const bool continued = p.continued || k0 > 0;
      const float* bias = p.bias && k0 + k == p.k ? p.bias : nullptr;
      const auto meet = [&]<class P>(const P* panel, int64_t bytes) {
        int64_t i = 0;
        const auto tile = [&]<int R>() {
          constexpr int N = R <= FEW_WIDE ? 2 : 1;
          const int64_t each = bytes * R * N / 2 / rows;  // of a step's bytes, to be asked for by each micro
          const int64_t turn = each * TURN / 32 * 32, asked = (turn + LINE - 1) / LINE;
          const char* ahead = reinterpret_cast<const char*>(panel + k * PANEL) + bytes * i / rows * k;
          for (int64_t l = 0; l < columns; l += N * LANES, ahead += each * k)
            micro<R, P, N, Reading::few>(k, p.a.data + (top + i) * p.a.row + k0, panel + l, c + i * c_row + l, c_row,
                int(smaller(N * LANES, columns - l)), continued, bias ? bias + j + l : nullptr, ahead, turn, asked,
                p.a.row);
          i += R;
        };
        for (int64_t t = 0; t < tiles; t++) switch (rows * (t + 1) / tiles - rows * t / tiles) {
            case 1: tile.template operator()<1>(); break;
            case 2: tile.template operator()<2>(); break;
            case 3: tile.template operator()<3>(); break;
            case 4: tile.template operator()<smaller(FEW_R<T>, 4)>(); break;
            case 5: tile.template operator()<smaller(FEW_R<T>, 5)>(); break;
            case 6: tile.template operator()<smaller(FEW_R<T>, 6)>(); break;
            case 7: tile.template operator()<smaller(FEW_R<T>, 7)>(); break;
            default: tile.template operator()<FEW_R<T>>();
          }
      };
      if (p.panels) {
        meet(p.panels + j * p.k + k0 * PANEL, one ? 0 : PANEL * int64_t(sizeof(T)));
      } else {
        pack_b(p.b, k0, k, j, columns, packed_b);
        meet(packed_b, 0);
      }
    }
    if (pieces) copy(sums, PANEL, there, p.c_row);
  }
}

// The bytes that pack_b is going to read.
template <class T>
RLHF_INLINE Ahead ahead_b(const MatrixOf<T>& b, int64_t from, int64_t k, int64_t begin, int64_t n) {
  constexpr int64_t size = sizeof(T);
  const bool rows = b.column == 1;
  return {reinterpret_cast<const char*>(b.at(from) + begin * b.column), (rows ? b.row : b.column) * size, rows ? k : n,
      ((rows ? n : k) * size + ASKED - 1) / ASKED};
}

// The whole product on the calling thread, columns [first, last) of it; first is a multiple of 32.
template <class T = float, bool FREE = false>
__attribute__((noinline)) void product_columns(
    const Product<T>& p, int64_t first, int64_t last, int64_t top, int64_t bottom, float* scratch) {
  if (p.k == 0) {
    for (int64_t i = top; i < bottom && !p.continued; i++)
      for (int64_t j = first; j < last; j++) p.c[i * p.c_row + j] = p.bias ? p.bias[j] : 0.0f;
    return;
  }
  const int64_t steps = block_steps(bottom - top, last - first, p.k);
  float* packed_a = scratch;
  float* packed_b = scratch + packed_a_floats(p.m, block_steps(p.m, p.n, p.k));
  const bool laid = is_read_laid(p, last - first);
  // Panels are used again, for other rows. Else they share one place, which stays in a cache.
  const bool again = bottom - top > MC;
  if (bottom - top <= FEW && p.a.column == 1) return product_few(p, first, last, top, bottom, packed_b);
  for (int64_t j0 = first; j0 < last; j0 += NC) {
    const int64_t n = smaller(NC, last - j0);
    for (int64_t k0 = 0; k0 < p.k; k0 += steps) {
      const int64_t k = smaller(steps, p.k - k0);
      const bool continued = p.continued || k0 > 0;
      const float* bias = k0 + k == p.k ? p.bias : nullptr;
      for (int64_t i0 = top; i0 < bottom; i0 += MC) {
        const int64_t m = smaller(MC, bottom - i0), tiles = (m + MR - 1) / MR;
        const float* a = packed_a;
        int64_t a_panel = MR * k;
        if (laid) a_panel = MR * p.a.row, a = p.a.at(i0) + k0;
        else if (p.a_panels) a_panel = packed_step(p.k), a = p.a_panels + i0 / MR * a_panel + k0 * MR;
        else pack_a(p.a, i0, m, p.m, k0, k, packed_a, a_panel);
        const bool packs = i0 == top && !p.panels;
        Ahead next;
        int64_t asked = 0;
        for (int64_t j = 0; j < n; j += PANEL) {
          float* panel = packed_b + (again ? j * k : 0);
          const int64_t columns = smaller(PANEL, n - j);
          if (asks_panels() && !packs && j + PANEL < n) {
            const int64_t bytes = PANEL * k * int64_t(p.panels ? sizeof(T) : sizeof(float));
            const char* there = p.panels ? reinterpret_cast<const char*>(p.panels + (j0 + j + PANEL) * p.k + k0 * PANEL)
                                         : reinterpret_cast<const char*>(panel + PANEL * k);
            next = {there, ASKED, bytes / ASKED, 1};
            asked = next.total() / (tiles * ((columns + NR - 1) / NR)) + 1;
          }
          if (packs) {
            pack_b(p.b, k0, k, j0 + j, columns, panel);
            if (j + PANEL < n) next = ahead_b(p.b, k0, k, j0 + j + PANEL, smaller(PANEL, n - j - PANEL));
            else if (k0 + k < p.k) next = ahead_b(p.b, k0 + k, smaller(steps, p.k - k0 - k), j0, smaller(PANEL, n));
            asked = next.total() / (tiles * ((columns + NR - 1) / NR)) + 1;
          }
          const auto multiply = [&]<Reading A, class P>(const P* b) {
            for (int64_t l = 0; l < columns; l += NR)
              for (int64_t i = 0; i < tiles; i++) {
                const char* from = nullptr;
                const int64_t count = next.take(asked, from);
                micro_rows<P, A, FREE>(int(smaller(MR, m - i * MR)), k, a + i * a_panel, b + l,
                    p.c + (i0 + i * MR) * p.c_row + j0 + j + l, p.c_row, int(smaller(NR, columns - l)), continued,
                    bias ? bias + j0 + j + l : nullptr, from, next.step, count, p.a.row);
              }
          };
          const auto meet = [&](const auto* b) {
            laid ? multiply.template operator()<Reading::laid>(b) : multiply.template operator()<Reading::packed>(b);
          };
          if (p.panels) meet(p.panels + (j0 + j) * p.k + k0 * PANEL);
          else meet(panel);
        }
      }
    }
  }
}

// The product on all threads of the context. Each takes a contiguous part of the rows or the columns of
// c, whichever are more.
RLHF_INLINE int64_t parallel_scratch(int threads, int64_t m, int64_t n, int64_t k, bool packed) {
  return threads * round_up(product_scratch(m, n, k, packed), LANES);
}
template <class T = float, bool FREE = false>
RLHF_INLINE void product(Context& ctx, const Product<T>& p, float* scratch) {
  if (p.m == 0 || p.n == 0) return;
  const int64_t each = round_up(product_scratch(p.m, p.n, p.k, p.panels != nullptr), LANES);
  const int64_t work = p.m * p.n * (p.k + 1);
  const bool by_rows = p.m > 2 * p.n || (p.m > p.n / 4 && p.m >= 8 * MR * ctx.threads && p.panels);
  const int64_t grain = by_rows ? MR : PANEL, size = by_rows ? p.m : p.n, grains = (size + grain - 1) / grain;
  int64_t parts = smaller(ctx.threads, smaller(grains, work / 65536 + 1));
  if (parts == 1) return product_columns<T, FREE>(p, 0, p.n, 0, p.m, scratch);
  ctx.each([&](int thread) {
    if (thread >= parts) return;
    const int64_t begin = grains * thread / parts * grain, end = smaller(size, grains * (thread + 1) / parts * grain);
    if (by_rows) product_columns<T, FREE>(p, 0, p.n, begin, end, scratch + thread * each);
    else product_columns<T, FREE>(p, begin, end, 0, p.m, scratch + thread * each);
  });
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
