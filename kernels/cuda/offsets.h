// Packed sequences on the GPU. Their offsets lie on the device, so a kernel checks them.
#pragma once
#include "kernels/cuda/simt.h"

namespace rlhf::cuda {

struct OffsetsParams {
  Global<const int32_t> offsets;  // [B+1]
  int64_t B, N;
  Latch error;
};

#if RLHF_DEVICE_CODE
// The sequence of token i: offsets[b] <= i < offsets[b+1].
DEVICE int64_t sequence_of(Global<const int32_t> offsets, int64_t B, int64_t i) {
  int64_t low = 0, high = B - 1;  // the last b with offsets[b] <= i
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (offsets[middle] <= i) low = middle;
    else high = middle - 1;
  }
  return low;
}
#endif

#if RLHF_HOST_CODE
// Latches BAD_OFFSETS unless offsets run monotonically from 0 to N. The kernels after it look at the latch.
void check_offsets(Context& ctx, View<const int32_t> offsets, int64_t N);
#endif

}  // namespace rlhf::cuda
