// The weights of the sequences: a warp each, which counts its unmasked tokens.
#include "kernels/cuda/token_loss.h"

namespace rlhf::cuda {

#if RLHF_DEVICE_CODE

KERNEL(sequence_weights, WeightParams, 128) {
  const int64_t b = int64_t(block_x()) * 4 + warp();
  if (b >= p.B) return;
  int64_t n = 0;
  if (p.error[0] == 0) {
    const int64_t begin = p.offsets[b], end = p.offsets[b + 1];
    if (!p.mask) n = end - begin;
    else {
      int64_t own = 0;
      for (int64_t i = begin + lane(); i < end; i += 32) own += p.mask[i] != 0;
      for (int step = 16; step; step /= 2) own += shuffle_xor(own, step);
      n = own;
    }
  }
  if (lane() == 0)
    p.weights[b] = n == 0 ? 0.0f : float(p.per_sequence ? 1 / (p.denominator * double(n)) : 1 / p.denominator);
}

#endif

#if RLHF_HOST_CODE
void weigh(Context& ctx, const WeightParams& p) { launch(ctx, "sequence_weights", {(p.B + 3) / 4}, 128, 0, p); }
#endif

}  // namespace rlhf::cuda
