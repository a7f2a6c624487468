// Sums over a block of threads and over blocks, in f64, each in one order; and what every loss on packed tokens shares.
#pragma once
#include "kernels/cuda/offsets.h"

namespace rlhf::cuda {

#if RLHF_DEVICE_CODE

// n sums over the 256 threads of a block, to `out` in global memory: lanes by halves, then warps in order.
template <int n>
DEVICE void block_sums(double (&x)[n], Global<double> out) {
  SharedMemory memory;
  const Shared<double> parts = memory.take<double>(8 * n);
  UNROLL for (int k = 0; k < n; k++) {
    UNROLL for (int step = 16; step; step /= 2) x[k] += shuffle_down(x[k], step);
    if (lane() == 0) parts[warp() * n + k] = x[k];
  }
  sync_threads();
  if (thread() >= n) return;
  double total = 0;
  for (int w = 0; w < 8; w++) total += parts[w * n + thread()];
  out[thread()] = total;
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

}  // namespace rlhf::cuda
