// What the losses over tokens share: the weight of a sequence's unmasked tokens (kernels/cpu/token_loss.h).
#pragma once
#include "kernels/cuda/sums.h"

namespace rlhf::cuda {

constexpr int64_t LOSS_TOKENS = 4096;  // of a block

struct WeightParams {
  Global<const int32_t> mask, offsets;
  Global<float> weights;  // [B]
  int64_t B;
  double denominator;
  int32_t per_sequence;  // the mean over a sequence's tokens
  Latch error;
};

#if RLHF_HOST_CODE

void weigh(Context& ctx, const WeightParams& p);

// Checks the offsets and weighs the sequences; first of all.
template <class A>
void weigh_sequences(Context& ctx, const A& a, const Global<float>& weights, int64_t tokens) {
  check_offsets(ctx, a.cu_seqlens, tokens);
  weigh(ctx, {global(a.mask), global(a.cu_seqlens), weights, a.cu_seqlens.dim[0] - 1, a.denominator,
                 a.aggregation == Aggregation::seq_mean_token_mean, latch_of(ctx)});
}

#endif

}  // namespace rlhf::cuda
