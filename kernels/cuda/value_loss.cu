// The value loss of PPO, weighted as the policy's loss, with its gradient:
//   0.5 max((v - R)^2, (clip(v, old - range, old + range) - R)^2) per token
//   gradient w (v - R), 0 where the clipped square is strictly larger
//
// Plan: as policy_loss.cu. History: kernels/notes/value_loss.md.
#include "kernels/cuda/token_loss.h"

namespace rlhf::cuda {

constexpr int VALUE_SUMS = 7;  // loss, clipped, value, squared error, return, squared return (weighted), tokens

struct ValueParams {
  Global<const float> values, old_values, returns;
  Global<const int32_t> mask, offsets;
  Global<const float> weights;
  Global<float> dvalues;
  Global<double> partial;
  int64_t M, B;
  float range, scale;
  int32_t vector;
  Latch error;
};
struct ValueFinishParams {
  Global<const double> partial;
  Global<double> stats;
  Global<float> loss;
  int64_t blocks;
  double scale;
  Latch error;
};

#if RLHF_DEVICE_CODE

KERNEL(value_tokens, ValueParams, 256, 4) {
  double sums[VALUE_SUMS] = {};
  const bool bad = p.error[0] != 0;
  const int64_t first = block_x() * LOSS_TOKENS;
  for (int64_t i = first + 4 * thread(); i < first + LOSS_TOKENS && i < p.M; i += 4 * 256) {
    float values[4], old_values[4] = {}, returns[4], dvalues[4];
    int32_t mask[4] = {1, 1, 1, 1};
    load_four(p.values, i, p.M, p.vector, values), load_four(p.returns, i, p.M, p.vector, returns);
    if (p.old_values) load_four(p.old_values, i, p.M, p.vector, old_values);
    if (p.mask) load_four(p.mask, i, p.M, p.vector, mask);
    int64_t b = bad ? 0 : sequence_of(p.offsets, p.B, i);
    UNROLL for (int k = 0; k < 4; k++) {
      dvalues[k] = bad ? NOT_A_NUMBER : 0;
      if (bad || i + k >= p.M || !mask[k]) continue;
      while (p.offsets[b + 1] <= i + k) b++;
      const float v = values[k], R = returns[k], error = v - R, squared = error * error;
      float loss = squared;
      bool clipped = false;
      if (p.old_values) {
        const float low = old_values[k] - p.range, high = old_values[k] + p.range,
                    kept = (v > high     ? high
                               : v < low ? low
                                         : v) -
                           R;
        clipped = squared < kept * kept;
        loss = clipped ? kept * kept : squared;
      }
      const double w = p.weights[b], off = double(v) - R;
      dvalues[k] = clipped ? 0 : p.scale * p.weights[b] * error;
      sums[0] += w * (0.5f * loss), sums[1] += clipped, sums[2] += v, sums[3] += double(off) * off, sums[4] += R,
          sums[5] += double(R) * R, sums[6] += 1;
    }
    store_four(p.dvalues, i, p.M, p.vector, dvalues);
  }
  block_sums(sums, p.partial + block_x() * VALUE_SUMS);
}

KERNEL(value_finish, ValueFinishParams, 32) {
  double sum = 0;
  if (lane() < VALUE_SUMS)
    for (int64_t block = 0; block < p.blocks; block++) sum += p.partial[block * VALUE_SUMS + lane()];
  if (lane() == 0) sum = p.error[0] != 0 ? double(NOT_A_NUMBER) : p.scale * sum, p.loss[0] = float(sum);
  if (lane() < VALUE_SUMS) p.stats[lane()] += sum;
}

#endif

#if RLHF_HOST_CODE
void value_loss(Context& ctx, const value_loss_args& a) {
  const int64_t M = a.values.dim[0], B = a.cu_seqlens.dim[0] - 1, blocks = (M + LOSS_TOKENS - 1) / LOSS_TOKENS;
  const auto plan = [&](char* base, Global<float>& weights, Global<double>& partial) {
    Workspace w{base};
    weights = w.take<float>(B + 1), partial = w.take<double>(blocks * VALUE_SUMS);
    return w.used;
  };
  Global<float> weights;
  Global<double> partial;
  char* base = static_cast<char*>(ctx.scratch(plan(nullptr, weights, partial)));
  if (!base) return;
  plan(base, weights, partial);
  if (a.clip_range < __builtin_inf() && !a.old_values)
    return ctx.fail("clip_range is given, and old_values is missing");
  weigh_sequences(ctx, a, weights, M);
  const bool vector = at_16_bytes(a.values.data) && at_16_bytes(a.old_values.data) && at_16_bytes(a.returns.data) &&
                      at_16_bytes(a.mask.data) && at_16_bytes(a.dvalues.data);
  const ValueParams p{global(a.values), global(a.old_values), global(a.returns), global(a.mask), global(a.cu_seqlens),
      weights, global(a.dvalues), partial, M, B, float(a.clip_range), float(a.scale), vector, latch_of(ctx)};
  launch(ctx, "value_tokens", {blocks}, 256, block_sums_shared(VALUE_SUMS), p);
  const ValueFinishParams f{partial, global(a.stats), global(a.loss), blocks, a.scale, latch_of(ctx)};
  launch(ctx, "value_finish", {1}, 32, 0, f);
}
#endif

}  // namespace rlhf::cuda
