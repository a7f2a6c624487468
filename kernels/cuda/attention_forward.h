// The forward pass: its parameters, and what becomes of a warp's scores and sums whatever product they come from.
#pragma once
#include "kernels/cuda/attention.h"

namespace rlhf::cuda {

template <class T>
struct AttentionParams {
  Global<const T> q, k, v;
  Global<const int32_t> offsets, prefix;
  Global<T> o;
  Global<float> lse;
  TileList queries;
  int64_t N, q_stride, k_stride, v_stride;
  int32_t H, heads, D;  // heads: H/G
  float scale;
  bool aligned;
};

#if RLHF_DEVICE_CODE

// A warp's scores: the scale, where it is not the exponential's, and -infinity beyond the n keys of the tile and beyond
// key `last` + row.
template <int M, int N>
DEVICE void mask(float (&s)[M][N][4], float scale, int last, int n) {
  if (scale <= 0) {
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int n = 0; n < N; n++) UNROLL for (int e = 0; e < 4; e++)
        s[m][n][e] *= scale;
  }
  if (last < 8 * N - 1 || n < 8 * N)
    each_pair<M, N>([&](int m, int j, int r, int row, int column) {
      UNROLL for (int e = 0; e < 2; e++) if (column + e > last + row || column + e >= n) s[m][j][2 * r + e] = -INFINITE;
    });
}

// Scores to probabilities, relative to the highest exponent so far; what was summed before falls by as much as that
// rose, which falls(m, r, factor) is told of the sums of values. A row that has not seen a key has the exponent
// -infinity.
template <class Mma, int M, int N, class F>
DEVICE void softmax(float (&s)[M][N][4], float (&top)[M][2], float (&sum)[M][2], float factor, F&& falls) {
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++) {
    float peak = s[m][0][2 * r];
    UNROLL for (int n = 0; n < N; n++) peak = max(peak, max(s[m][n][2 * r], s[m][n][2 * r + 1]));
    peak = max(peak, shuffle_xor(peak, 1));
    peak = max(peak, shuffle_xor(peak, 2));
    const float above = max(top[m][r], peak * factor);
    const float base = above == -INFINITE ? 0 : above;
    const float fall = Exponential<Mma>::raise(top[m][r] - base);
    top[m][r] = above;
    sum[m][r] *= fall;
    falls(m, r, fall);
    UNROLL for (int n = 0; n < N; n++) UNROLL for (int e = 0; e < 2; e++) {
      float& x = s[m][n][2 * r + e];
      x = Exponential<Mma>::raise(fma(x, factor, -base));
      sum[m][r] += x;
    }
  }
}

template <int M, int W>
DEVICE void lower(float (&o)[M][W][4], int m, int r, float fall) {
  UNROLL for (int w = 0; w < W; w++) o[m][w][2 * r] *= fall, o[m][w][2 * r + 1] *= fall;
}

// o and lse of a warp's queries, the first of which is `own` of those before `end`.
template <class Mma, int M, int W>
DEVICE void end_rows(const AttentionParams<typename Mma::Element>& p, const Work& work, int head, int own, int end,
    float (&o)[M][W][4], float (&top)[M][2], float (&sum)[M][2]) {
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++) {
    sum[m][r] += shuffle_xor(sum[m][r], 1);
    sum[m][r] += shuffle_xor(sum[m][r], 2);
    const int row = own + 16 * m + 8 * r + lane() / 4;
    if (lane() % 4 == 0 && row < end)
      p.lse[(int64_t(p.offsets[work.sequence]) + row) * p.H + work.head] = Exponential<Mma>::lse(top[m][r], sum[m][r]);
    sum[m][r] = 1 / sum[m][r];
  }
  const int64_t stride = int64_t(p.H) * p.D;
  store(o, p.o + ((p.offsets[work.sequence] + int64_t(own)) * stride + head), stride, end - own, p.D, p.aligned,
      [&](int m, int r) { return sum[m][r]; });
}

#endif

}  // namespace rlhf::cuda
