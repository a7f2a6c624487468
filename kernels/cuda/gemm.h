// Products of matrices on the GPU: one loop over tiles for every op that has one.
//
//   C [M,N] = A B,  sums over k in f32; what becomes of C is the epilogue's: it gets the accumulators of a tile.
//
// An operand either lies along k (its rows are m or n, k is contiguous: x and W of x W^T, the left
// of g W) or across (its rows are k: the right of g W, both of g^T x). Its rows may be gathered by
// an index. Both kinds come to shared memory in pieces of 16 bytes (cp.async), 3 or 4 stages ahead
// of the arithmetic. Pieces of a row are exchanged (xor with the row), so that the eight rows of an
// ldmatrix, or eight threads with 16 bytes each, meet eight different groups of banks. Rows that do
// not begin at 16 bytes are loaded element by element.
//
//   Mma    block        k   stages  shared  threads  accumulators of a thread
//   Bf16   128 x 256    32  4       96 KiB  256      64 x 64 a warp: mma.sync m16n8k16, 128 registers
//   F32    128 x 128    16  3       48 KiB  256      8 x 8, fused multiply-adds in the order of k (never TF32)
//
// Order: an element is one sum over k, from 0 up, wherever its row and column lie: the same bits
// for any M and N around it. Expected, not yet measured: the full rate of mma.sync, 0.6 of a
// Hopper's. History: kernels/notes/linear.md.
#pragma once
#include "kernels/cuda/simt.h"

namespace rlhf::cuda {

// A matrix as a product reads it.
template <class T>
struct Operand {
  Global<const T> data;
  Global<const int32_t> index;  // row r is the row index[r] of data; null: r itself
  int64_t rows;  // beyond them zeros are read
  int64_t limit;  // of index: other rows are zeros
  int64_t extent;  // elements of a row; beyond them zeros
  int64_t stride;  // elements from row to row
  int32_t aligned;  // every row begins at 16 bytes, and extent is in whole pieces
};

template <class T>
struct ProductParams {
  Operand<T> a, b;
  int64_t M, N, K;
};

// The block that an element type is computed by.
template <class T>
struct Block {
  static constexpr bool NARROW = sizeof(T) == 2;
  static constexpr int M = 128, N = NARROW ? 256 : 128, K = NARROW ? 32 : 16, STAGES = NARROW ? 4 : 3, THREADS = 256;
  static constexpr int64_t SHARED = int64_t(STAGES) * (M + N) * K * int64_t(sizeof(T));
};
template <class Block, class T>
ANYWHERE int64_t tiles_of(const ProductParams<T>& p) {
  return (p.M + Block::M - 1) / Block::M * ((p.N + Block::N - 1) / Block::N);
}

#if RLHF_DEVICE_CODE

struct alignas(8) Pair {
  float x, y;
};
template <class T>
struct alignas(16) Piece {
  static constexpr int SIZE = 16 / int(sizeof(T));
  T x[SIZE];
};

// A tile of ROWS x COLUMNS in shared memory.
template <class T, int ROWS, int COLUMNS>
struct Tile {
  static constexpr int PIECE = Piece<T>::SIZE, PIECES = COLUMNS / PIECE, ELEMENTS = ROWS * COLUMNS;
  // the place of a piece
  DEVICE static int at(int row, int piece) {
    return (row * PIECES + (piece ^ (PIECES >= 8 ? row & 7 : (row >> 1) & 3))) * PIECE;
  }
};

// What a thread brings of a tile. ALONG: the tile moves along the rows, so that its rows are found once; else down the
// rows.
template <class T, int ROWS, int COLUMNS, int THREADS, bool ALONG>
struct Loader {
  using To = Tile<T, ROWS, COLUMNS>;
  static constexpr int COUNT = ROWS * To::PIECES / THREADS, STEP = THREADS / To::PIECES;
  static_assert(COUNT * THREADS == ROWS * To::PIECES && STEP * To::PIECES == THREADS, "every thread brings as much");
  const Operand<T>& from;
  int64_t column;  // of the thread's pieces (ALONG: at k = 0)
  int row;  // of its first piece in the tile
  int64_t offset[ALONG ? COUNT : 1];  // of its rows in data; -1: outside

  DEVICE Loader(const Operand<T>& operand, int64_t first) : from(operand), row(thread() / To::PIECES) {
    column = thread() % To::PIECES * To::PIECE + (ALONG ? 0 : first);
    if constexpr (ALONG)
      for (int i = 0; i < COUNT; i++) offset[i] = find(first + row + i * STEP);
  }

  DEVICE int64_t find(int64_t r) const {
    if (r >= from.rows) return -1;
    if (!from.index) return r * from.stride;
    const int64_t at = from.index[r];
    return at >= 0 && at < from.limit ? at * from.stride : -1;
  }

  DEVICE void load(Shared<T> to, int64_t k) const {
    const int64_t c = ALONG ? column + k : column;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int64_t begin = ALONG ? offset[ALONG ? i : 0] : find(k + row + i * STEP);
      const Shared<T> place = to + To::at(row + i * STEP, thread() % To::PIECES);
      if (from.aligned) {
        const bool valid = begin >= 0 && c < from.extent;
        copy_async16(place, from.data + (valid ? begin + c : 0), valid);
      } else {
#pragma unroll 1
        for (int e = 0; e < To::PIECE; e++)
          place[e] = begin >= 0 && c + e < from.extent ? from.data[begin + c + e] : T{};
      }
    }
  }
};

// bf16 on the tensor cores. Warps 2 x 4, each 64 x 64.
template <bool A_ALONG, bool B_ALONG>
struct Bf16 : Block<bf16> {
  using Element = bf16;
  static constexpr bool a_along = A_ALONG, b_along = B_ALONG;
  using A = Tile<bf16, A_ALONG ? M : K, A_ALONG ? K : M>;
  using B = Tile<bf16, B_ALONG ? N : K, B_ALONG ? K : N>;
  // What a thread holds: ROWS x COLUMNS, columns in runs of RUN; SHARERS neighbouring lanes hold a row's part of one of
  // PARTS warps.
  static constexpr int ROWS = 8, COLUMNS = 16, RUN = 2, SHARERS = 4, PARTS = 4;
  float c[4][8][4] = {};

  DEVICE static int part() { return warp() % 4; }
  DEVICE static int row(int i) { return warp() / 4 * 64 + i / 2 * 16 + i % 2 * 8 + lane() / 4; }
  DEVICE static int column(int j) { return warp() % 4 * 64 + j / 2 * 8 + lane() % 4 * 2 + j % 2; }
  DEVICE float& at(int i, int j) { return c[i / 2][j / 2][i % 2 * 2 + j % 2]; }

  // c += a b of one tile of k
  DEVICE void step(Shared<bf16> a, Shared<bf16> b) {
    const int low = lane() % 8, one = lane() / 8 % 2,
              two = lane() / 16;  // ldmatrix: row, and which of the four matrices
    const int m0 = warp() / 4 * 64, n0 = warp() % 4 * 64;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
      uint32_t x[4][4], y[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int m = m0 + i * 16 + one * 8;  // matrices: m, m + 8, then the same at k + 8
        if (A_ALONG) load_matrix_x4(x[i], a + A::at(m + low, k / 8 + two));
        else load_matrix_x4_transposed(x[i], a + A::at(k + two * 8 + low, m / 8));
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int n = n0 + j * 16 + two * 8;  // matrices: k, k + 8, then the same at n + 8
        if (B_ALONG) load_matrix_x4(y[j], b + B::at(n + low, k / 8 + one));
        else load_matrix_x4_transposed(y[j], b + B::at(k + one * 8 + low, n / 8));
      }
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const uint32_t first[2] = {y[j][0], y[j][1]}, second[2] = {y[j][2], y[j][3]};
          mma_bf16(c[i][2 * j], x[i], first);
          mma_bf16(c[i][2 * j + 1], x[i], second);
        }
    }
  }
};

// f32: the threads are 16 x 16, each has every 16th row and column.
template <bool A_ALONG, bool B_ALONG>
struct F32 : Block<float> {
  using Element = float;
  static constexpr bool a_along = A_ALONG, b_along = B_ALONG;
  using A = Tile<float, A_ALONG ? M : K, A_ALONG ? K : M>;
  using B = Tile<float, B_ALONG ? N : K, B_ALONG ? K : N>;
  static constexpr int ROWS = 8, COLUMNS = 8, RUN = 1, SHARERS = 16, PARTS = 1;
  float c[8][8] = {};

  DEVICE static int part() { return 0; }
  DEVICE static int row(int i) { return thread() / 16 + 16 * i; }
  DEVICE static int column(int j) { return thread() % 16 + 16 * j; }
  DEVICE float& at(int i, int j) { return c[i][j]; }

  // four elements of row or column i from k on
  template <class Tile, bool ALONG>
  DEVICE static void four(float (&x)[4], Shared<float> tile, int i, int k) {
    if constexpr (ALONG) {
      const Piece<float> piece = load_as<Piece<float>>(tile, Tile::at(i, k / 4));
      for (int e = 0; e < 4; e++) x[e] = piece.x[e];
    } else {
      for (int e = 0; e < 4; e++) x[e] = tile[Tile::at(k + e, i / 4) + i % 4];
    }
  }

  DEVICE void step(Shared<float> a, Shared<float> b) {
#pragma unroll 1
    for (int k = 0; k < K; k += 4) {
      float x[8][4], y[4];
#pragma unroll
      for (int i = 0; i < 8; i++) four<A, A_ALONG>(x[i], a, row(i), k);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        four<B, B_ALONG>(y, b, column(j), k);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
          for (int i = 0; i < 8; i++) c[i][j] = fma(x[i][e], y[e], c[i][j]);
      }
    }
  }
};

// Where a tile lies: 16 tiles along m, then the next along n, so that what blocks read at one time is shared.
struct Place {
  int64_t m, n;
  template <class Mma, class T>
  DEVICE static Place of(const ProductParams<T>& p, int64_t id = block_x()) {
    constexpr int64_t GROUP = 16;
    const int64_t tiles_m = (p.M + Mma::M - 1) / Mma::M, tiles_n = (p.N + Mma::N - 1) / Mma::N;
    const int64_t first = id / (GROUP * tiles_n) * GROUP, within = id % (GROUP * tiles_n);
    const int64_t group = tiles_m - first < GROUP ? tiles_m - first : GROUP;
    return {(first + within % group) * Mma::M, within / group * Mma::N};
  }
};

// The block's tile; afterwards nobody reads the stages any more.
template <class Mma, class T = typename Mma::Element>
DEVICE void multiply(Mma& mma, const ProductParams<T>& p, const Place& at, SharedMemory& memory) {
  using A = typename Mma::A;
  using B = typename Mma::B;
  constexpr int STAGES = Mma::STAGES;
  const Shared<T> a = memory.take<T>(STAGES * A::ELEMENTS), b = memory.take<T>(STAGES * B::ELEMENTS);
  const Loader<T, Mma::a_along ? Mma::M : Mma::K, Mma::a_along ? Mma::K : Mma::M, Mma::THREADS, Mma::a_along> load_a(
      p.a, at.m);
  const Loader<T, Mma::b_along ? Mma::N : Mma::K, Mma::b_along ? Mma::K : Mma::N, Mma::THREADS, Mma::b_along> load_b(
      p.b, at.n);
  const int steps = int((p.K + Mma::K - 1) / Mma::K);
  const auto bring = [&](int step) {
    if (step < steps) {
      load_a.load(a + step % STAGES * A::ELEMENTS, int64_t(step) * Mma::K);
      load_b.load(b + step % STAGES * B::ELEMENTS, int64_t(step) * Mma::K);
    }
    copy_async_commit();
  };
  for (int step = 0; step < STAGES - 1; step++) bring(step);
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    copy_async_wait<STAGES - 2>();
    sync_threads();  // this stage is there for all, and all are done with the one that is filled next
    bring(step + STAGES - 1);
    mma.step(a + step % STAGES * A::ELEMENTS, b + step % STAGES * B::ELEMENTS);
  }
  copy_async_wait<0>();
  sync_threads();
}

// epilogue(mma, at, p, memory) for the block's tile, with the memory that the stages had
template <class Mma, class P, class F>
DEVICE void multiply_tiles(const P& p, F&& epilogue) {
  SharedMemory memory;
  Mma mma;
  const Place at = Place::of<Mma>(p.product);
  multiply(mma, p.product, at, memory);
  epilogue(mma, at, p, SharedMemory());
}

// to[at], to[at + 1] = lo, hi, where at is even and the row begins at 8 bytes
DEVICE void put_pair(Global<float> to, int64_t at, float lo, float hi) { store_as<Pair>(to, at, Pair{lo, hi}); }
DEVICE void put_pair(Global<bf16> to, int64_t at, float lo, float hi) { store_as<uint32_t>(to, at, pack_bf16(lo, hi)); }
DEVICE void put(Global<float> to, int64_t at, float x) { to[at] = x; }
DEVICE void put(Global<bf16> to, int64_t at, float x) { to[at] = to_bf16(x); }

// f(row, column, value) for every element of the tile inside C, to be written: value is what f returns
template <class Mma, class U, class F>
DEVICE void store_tile(Mma& mma, const Place& at, int64_t M, int64_t N, Global<U> to, int64_t stride, F&& f) {
  const bool in_pairs = Mma::RUN == 2 && stride % 2 == 0 && reinterpret_cast<uintptr_t>(to.data) % (2 * sizeof(U)) == 0;
#pragma unroll
  for (int i = 0; i < Mma::ROWS; i++) {
    const int64_t m = at.m + Mma::row(i);
    if (m >= M) continue;
#pragma unroll
    for (int j = 0; j < Mma::COLUMNS; j += Mma::RUN) {
      const int64_t n = at.n + Mma::column(j);
      if (in_pairs && n + 1 < N) {
        const float lo = f(m, n, mma.at(i, j)), hi = f(m, n + 1, mma.at(i, j + Mma::RUN - 1));
        put_pair(to, m * stride + n, lo, hi);
      } else {
        for (int e = 0; e < Mma::RUN; e++)
          if (n + e < N) put(to, m * stride + n + e, f(m, n + e, mma.at(i, j + e)));
      }
    }
  }
}

#endif

}  // namespace rlhf::cuda
