// Tiles in shared memory, and products of tiles: the `Mma` policies, one per kind of input.
//
// Every policy holds a 16 x 8 tile of a result as mma.sync does: lane 4 g + t has
//   c[0], c[1] = (g, 2t), (g, 2t + 1)    c[2], c[3] = (g + 8, 2t), (g + 8, 2t + 1)
// so what happens to results (mask, softmax, store) is written once. Results and sums are f32.
//
//   dot       c[i,j] += sum over d of a[i,d] b[j,d]   both from shared memory
//   product   c[i,j] += sum over k of p[i,k] b[k,j]   p from registers, where an earlier result left it; b from shared
//
// A warp that owns 16 M rows reads each 16 x 8 of b once for M x 2048 multiply-adds: M = 2 is 8 per
// byte of shared memory.
#pragma once
#include "kernels/cuda/simt.h"

#if RLHF_DEVICE_CODE
namespace rlhf::cuda {

// Rows of COLUMNS elements in chunks of 16 bytes. Chunk c of a row stands at c ^ turn(row), so that eight rows at one
// chunk, which is what ldmatrix and the lanes of a fragment read, lie in eight different groups of banks.
template <class T, int COLUMNS>
struct Tile {
  using Element = T;
  static constexpr int CHUNK = 16 / int(sizeof(T)), CHUNKS = COLUMNS / CHUNK;
  static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "a row is 64 bytes or a multiple of 128");
  Shared<T> data;

  DEVICE static int turn(int row) { return CHUNKS >= 8 ? row & 7 : (row >> 1) & 3; }
  DEVICE static int at(int row, int column) {
    return row * COLUMNS + ((column / CHUNK) ^ turn(row)) * CHUNK + column % CHUNK;
  }

  // at(row, column + d) from at(row, column), where no bit of d is one of column
  DEVICE static int along(int at, int d) { return (at ^ d % (8 * CHUNK)) + d / (8 * CHUNK) * (8 * CHUNK); }

  // `rows` rows of `columns` elements, `stride` apart, and zeros up to ROWS x COLUMNS. Arrives at the copies' wait and
  // the barrier after it. `aligned`: every row begins at, and has, a multiple of 16 bytes.
  template <int ROWS, int THREADS>
  DEVICE void fetch(Global<const T> from, int64_t stride, int rows, int columns, bool aligned) const {
    if (aligned) {
      constexpr int STEP = THREADS / CHUNKS;  // rows at a time
      static_assert(THREADS % CHUNKS == 0 && ROWS % STEP == 0);
      const int row = thread() / CHUNKS, column = thread() % CHUNKS * CHUNK;
      auto next = from + (row * stride + column);
      UNROLL for (int i = 0; i < ROWS; i += STEP, next = next + STEP * stride)
          copy_async16(data + at(row + i, column), next, row + i < rows && column < columns);
    } else {
      UNROLL_BY(1) for (int i = thread(); i < ROWS * COLUMNS; i += THREADS) {
        const int row = i / COLUMNS, column = i % COLUMNS;
        data[at(row, column)] = row < rows && column < columns ? from[row * stride + column] : T{};
      }
    }
  }
};

// bf16 inputs on tensor cores, sums in f32: mma.sync m16n8k16.
struct Bf16 {
  using Element = bf16;

  template <int M, int N, int D>
  DEVICE static void dot(float (&c)[M][N][4], Tile<bf16, D> a, int a_row, Tile<bf16, D> b, int b_row) {
    static_assert(N % 2 == 0, "two tiles of b come with one ldmatrix");
    const int i = lane(), a_at = a.at(a_row + i % 16, i / 16 * 8),
              b_at = b.at(b_row + i / 16 * 8 + i % 8, i / 8 % 2 * 8);
    UNROLL for (int d = 0; d < D; d += 16) {
      uint32_t x[M][4];
      UNROLL for (int m = 0; m < M; m++) load_matrix_x4(x[m], a.data + (a.along(a_at, d) + 16 * m * D));
      UNROLL for (int n = 0; n < N; n += 2) {
        uint32_t y[4];
        load_matrix_x4(y, b.data + (b.along(b_at, d) + 8 * n * D));
        const uint32_t left[2] = {y[0], y[1]}, right[2] = {y[2], y[3]};
        UNROLL for (int m = 0; m < M; m++) mma_bf16(c[m][n], x[m], left), mma_bf16(c[m][n + 1], x[m], right);
      }
    }
  }

  // p is rounded to bf16.
  template <int M, int K, int N, int D>
  DEVICE static void product(float (&c)[M][N][4], const float (&p)[M][K][4], Tile<bf16, D> b, int b_column) {
    static_assert(K % 2 == 0 && N % 2 == 0, "16 steps of the sum at a time, two tiles of b with one ldmatrix");
    const int i = lane(), b_at = b.at(i % 16, b_column + i / 16 * 8);
    UNROLL for (int k = 0; k < K; k += 2) {
      uint32_t x[M][4];
      UNROLL for (int m = 0; m < M; m++) {
        x[m][0] = pack_bf16(p[m][k][0], p[m][k][1]), x[m][1] = pack_bf16(p[m][k][2], p[m][k][3]);
        x[m][2] = pack_bf16(p[m][k + 1][0], p[m][k + 1][1]), x[m][3] = pack_bf16(p[m][k + 1][2], p[m][k + 1][3]);
      }
      UNROLL for (int n = 0; n < N; n += 2) {
        uint32_t y[4];
        load_matrix_x4_transposed(y, b.data + (b.along(b_at, 8 * n) + 8 * k * D));
        const uint32_t left[2] = {y[0], y[1]}, right[2] = {y[2], y[3]};
        UNROLL for (int m = 0; m < M; m++) mma_bf16(c[m][n], x[m], left), mma_bf16(c[m][n + 1], x[m], right);
      }
    }
  }
};

// f32 inputs by f32 multiply-adds, one chain per element in index order.
struct F32 {
  using Element = float;

  template <int M, int N, int D>
  DEVICE static void dot(float (&c)[M][N][4], Tile<float, D> a, int a_row, Tile<float, D> b, int b_row) {
    const int g = lane() / 4, t = lane() % 4, a_at = a.at(a_row + g, 0),
              b_at[2] = {b.at(b_row + 2 * t, 0), b.at(b_row + 2 * t + 1, 0)};
    UNROLL_BY(2) for (int d = 0; d < D; d += 4) {
      float4 x[M][2];
      UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++) x[m][r] =
          load_as<float4>(a.data, a.along(a_at, d) + (16 * m + 8 * r) * D);
      UNROLL for (int n = 0; n < N; n++) UNROLL for (int e = 0; e < 2; e++) {
        const float4 y = load_as<float4>(b.data, b.along(b_at[e], d) + 8 * n * D);
        UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++) {
          float& sum = c[m][n][2 * r + e];
          sum = fma(x[m][r].w, y.w, fma(x[m][r].z, y.z, fma(x[m][r].y, y.y, fma(x[m][r].x, y.x, sum))));
        }
      }
    }
  }

  // Step 8 k + 2 s + e of the sum is with the lane s of each four.
  template <int M, int K, int N, int D>
  DEVICE static void product(float (&c)[M][N][4], const float (&p)[M][K][4], Tile<float, D> b, int b_column) {
    const int t = lane() % 4;
    UNROLL for (int k = 0; k < K; k++) UNROLL for (int s = 0; s < 4; s++) UNROLL for (int e = 0; e < 2; e++) {
      float x[M][2];
      UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++) x[m][r] =
          shuffle(p[m][k][2 * r + e], lane() - t + s);
      UNROLL for (int n = 0; n < N; n++) {
        const float2 y = load_as<float2>(b.data, b.along(b.at(2 * s + e, b_column + 2 * t), 8 * n) + 8 * k * D);
        UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++) {
          c[m][n][2 * r] = fma(x[m][r], y.x, c[m][n][2 * r]);
          c[m][n][2 * r + 1] = fma(x[m][r], y.y, c[m][n][2 * r + 1]);
        }
      }
    }
  }
};

template <int M, int N>
DEVICE void clear(float (&c)[M][N][4]) {
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int n = 0; n < N; n++) UNROLL for (int e = 0; e < 4; e++) c[m][n][e] =
      0;
}

// f(m, n, r, row, column): the pairs of a result that this lane holds, c[m][n][2 r] at (row, column) and c[m][n][2 r +
// 1] to the right of it.
template <int M, int N, class F>
DEVICE void each_pair(F&& f) {
  UNROLL for (int n = 0; n < N; n++) UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++)
      f(m, n, r, 16 * m + 8 * r + lane() / 4, 8 * n + lane() % 4 * 2);
}

}  // namespace rlhf::cuda
#endif
