#include "kernels/cuda/offsets.h"

#if RLHF_DEVICE_CODE
namespace rlhf::cuda {

KERNEL(check_offsets, OffsetsParams, 256) {
  const int64_t b = int64_t(block_x()) * 256 + thread();
  if (b > p.B) return;
  const bool good = (b == 0 ? p.offsets[0] == 0 : p.offsets[b] >= p.offsets[b - 1]) && (b < p.B || p.offsets[b] == p.N);
  if (!good) latch(p.error, BAD_OFFSETS);
}

}  // namespace rlhf::cuda
#endif
