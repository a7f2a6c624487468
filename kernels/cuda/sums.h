// Sums over a block of threads and over blocks, in f64, each in one order; and what every loss on packed tokens shares.
#pragma once
#include "kernels/cuda/offsets.h"

namespace rlhf::cuda {

#if RLHF_DEVICE_CODE

// n sums over the 256 threads of a block, sum k for thread k: lanes by halves, then warps in order.
template <int n>
DEVICE double block_sums(double (&x)[n]) {
  SharedMemory memory;
  const Shared<double> parts = memory.take<double>(8 * n);
  UNROLL for (int k = 0; k < n; k++) {
    UNROLL for (int step = 16; step; step /= 2) x[k] += shuffle_down(x[k], step);
    if (lane() == 0) parts[warp() * n + k] = x[k];
  }
  sync_threads();
  double total = 0;
  if (thread() < n)
    for (int w = 0; w < 8; w++) total += parts[w * n + thread()];
  return total;
}
template <int n>
DEVICE void block_sums(double (&x)[n], Global<double> out) {
  const double total = block_sums(x);
  if (thread() < n) out[thread()] = total;
}

// x[i], ..., x[i + 3], those from `end` on as 0
template <class T>
DEVICE void load_four(Global<const T> x, int64_t i, int64_t end, bool vector, T (&to)[4]) {
  struct alignas(16) Four {
    T x[4];
  };
  if (vector && i + 4 <= end) {
    const Four four = load_as<Four>(x, i);
    UNROLL for (int k = 0; k < 4; k++) to[k] = four.x[k];
  } else {
    UNROLL for (int k = 0; k < 4; k++) to[k] = i + k < end ? x[i + k] : T(0);
  }
}
DEVICE void store_four(Global<float> y, int64_t i, int64_t end, bool vector, const float (&from)[4]) {
  struct alignas(16) Four {
    float x[4];
  };
  if (vector && i + 4 <= end) store_as<Four>(y, i, Four{{from[0], from[1], from[2], from[3]}});
  else
    for (int k = 0; k < 4; k++)
      if (i + k < end) y[i + k] = from[k];
}

#endif

constexpr int64_t block_sums_shared(int n) { return 8 * 8 * n; }  // bytes

// A sum over elements in two launches of 256 threads: 4,096 elements a block, then the blocks.
constexpr int64_t SUM_ELEMENTS = 4096;
ANYWHERE int64_t sum_blocks_of(int64_t n) { return (n + SUM_ELEMENTS - 1) / SUM_ELEMENTS; }

#if RLHF_DEVICE_CODE
// of f(x[i]), the block's 4,096 elements, to partial[block]
template <class F>
DEVICE void sum_elements(Global<const float> x, int64_t n, bool vector, Global<double> partial, F&& f) {
  double sums[1] = {};
  const int64_t first = block_x() * SUM_ELEMENTS + 4 * thread();
  float four[4][4];
  UNROLL for (int i = 0; i < 4; i++) load_four(x, first + 1024 * i, n, vector, four[i]);
  UNROLL for (int i = 0; i < 4; i++) UNROLL for (int k = 0; k < 4; k++) sums[0] += f(four[i][k]);  // f(0) is 0
  block_sums(sums, partial + block_x());
}
// the blocks' sums, for thread 0; `partial` has a place more than there are blocks
DEVICE double sum_of_blocks(Global<double> partial, int64_t n) {
  const int64_t blocks = sum_blocks_of(n);
  double sums[1] = {};
  for (int64_t block = thread(); block < blocks; block += 256) sums[0] += partial[block];
  block_sums(sums, partial + blocks);
  return thread() == 0 ? partial[blocks] : 0;
}
#endif

}  // namespace rlhf::cuda
