#include "kernels/cuda/offsets.h"

namespace rlhf::cuda {

#if RLHF_DEVICE_CODE
KERNEL(check_offsets, OffsetsParams, 256) {
  const int64_t b = int64_t(block_x()) * 256 + thread();
  if (b > p.B) return;
  const bool good = (b == 0 ? p.offsets[0] == 0 : p.offsets[b] >= p.offsets[b - 1]) && (b < p.B || p.offsets[b] == p.N);
  if (!good) latch(p.error, BAD_OFFSETS);
}
#endif

#if RLHF_HOST_CODE
void check_offsets(Context& ctx, View<const int32_t> offsets, int64_t N) {
  const OffsetsParams p{global(offsets), offsets.dim[0] - 1, N, latch_of(ctx)};
  launch(ctx, "check_offsets", {(p.B + 256) / 256}, 256, 0, p);
}
#endif

}  // namespace rlhf::cuda
