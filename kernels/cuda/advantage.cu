// Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards over each sequence:
//   delta[t] = r[t] + gamma v[t+1] - v[t],   A[t] = delta[t] + gamma lambda A[t+1],   v = A = 0 past the end
//   rewards, values, advantages, returns: f32 [N] packed by cu_seqlens i32 [B+1], or [B,T] with a mask
// A masked token is passed over. It leaves v[t+1] and A[t+1] as they are, and its outputs are 0.
//
// Plan: a warp per sequence, 128 tokens at a time counted from its end. A token is the affine map A
// -> delta + gamma lambda A. A scan composes 32 of them in five shuffles, so the chain over the
// sequence has a link per 32 tokens. The order depends on the place in the sequence alone.
// Expected, not yet measured: the memory's speed, 16 bytes a token. History:
// kernels/notes/advantage.md.
#include "kernels/cuda/offsets.h"

namespace rlhf::cuda {

struct GaeParams {
  Global<const float> rewards, values;
  Global<const int32_t> mask;  // or null
  Global<const int32_t> offsets;  // packed; null: rows of T tokens
  Global<float> advantages, returns;
  int64_t B, T, reward_stride, value_stride, out_stride;
  float gamma, lambda;
  Latch error;
};
constexpr int GAE_WARPS = 4, GAE_TILES = 4;

#if RLHF_DEVICE_CODE

// 32 tokens of which this lane has one. next_value, next: v and A after them, and after the call before them.
DEVICE void gae_tile(float reward, float value, bool kept, float gamma, float gamma_lambda, float& next_value,
    float& next, float& advantage) {
  const uint32_t all = ballot(kept), later = lane() == 31 ? 0 : all >> (lane() + 1);
  int from = lane();
  if (later) {
    from++;
    for (uint32_t bits = later; !(bits & 1); bits >>= 1) from++;
  }
  const float there = shuffle(value, from);
  const float after = later ? there : next_value;
  float a = kept ? gamma_lambda : 1, b = kept ? fma(gamma, after, reward) - value : 0;
  for (int n = 1; n < 32; n *= 2) {
    const float a_right = shuffle_down(a, n), b_right = shuffle_down(b, n);
    if (lane() + n < 32) b = fma(a, b_right, b), a = a * a_right;
  }
  advantage = fma(a, next, b);
  next = shuffle(advantage, 0);
  int first = 0;
  for (uint32_t bits = all; bits && !(bits & 1); bits >>= 1) first++;
  const float first_value = shuffle(value, first);
  if (all) next_value = first_value;
}

KERNEL(gae, GaeParams, 32 * GAE_WARPS) {
  const int64_t b = int64_t(block_x()) * GAE_WARPS + warp();
  if (b >= p.B) return;
  const bool bad = p.offsets && p.error[0] != 0;
  const int64_t begin = bad         ? b * p.T / p.B
                        : p.offsets ? p.offsets[b]
                                    : 0,
                end = bad         ? (b + 1) * p.T / p.B
                      : p.offsets ? p.offsets[b + 1]
                                  : p.T;
  const Global<const float> rewards = p.rewards + b * p.reward_stride, values = p.values + b * p.value_stride;
  const int64_t out = b * p.out_stride;
  if (bad) {  // T: all tokens; every warp spoils its share
    for (int64_t t = begin + lane(); t < end; t += 32) p.advantages[t] = NOT_A_NUMBER, p.returns[t] = NOT_A_NUMBER;
    return;
  }
  float next_value = 0, next = 0;
  for (int64_t top = end; top > begin; top -= 32 * GAE_TILES) {
    float r[GAE_TILES], v[GAE_TILES];
    bool kept[GAE_TILES];
    UNROLL for (int i = 0; i < GAE_TILES; i++) {
      const int64_t t = top - 32 * (i + 1) + lane();
      kept[i] = t >= begin && (!p.mask || p.mask[out + t] != 0);
      r[i] = kept[i] ? rewards[t] : 0, v[i] = kept[i] ? values[t] : 0;
    }
    UNROLL for (int i = 0; i < GAE_TILES; i++) {
      const int64_t t = top - 32 * (i + 1) + lane();
      float advantage;
      gae_tile(r[i], v[i], kept[i], p.gamma, p.gamma * p.lambda, next_value, next, advantage);
      if (t >= begin)
        p.advantages[out + t] = kept[i] ? advantage : 0, p.returns[out + t] = kept[i] ? advantage + v[i] : 0;
    }
  }
}

#endif

#if RLHF_HOST_CODE
void gae(Context& ctx, const gae_args& a) {
  const int64_t B = a.cu_seqlens.dim[0] - 1, N = a.rewards.dim[0];
  check_offsets(ctx, a.cu_seqlens, N);
  const GaeParams p{global(a.rewards), global(a.values), global(a.mask), global(a.cu_seqlens), global(a.advantages),
      global(a.returns), B, N, 0, 0, 0, float(a.gamma), float(a.lambda), latch_of(ctx)};
  launch(ctx, "gae", {(B + GAE_WARPS - 1) / GAE_WARPS}, 32 * GAE_WARPS, 0, p);
}

void gae_padded(Context& ctx, const gae_padded_args& a) {
  const int64_t B = a.mask.dim[0], T = a.mask.dim[1];
  const GaeParams p{global(a.rewards), global(a.values), global(a.mask), Global<const int32_t>(), global(a.advantages),
      global(a.returns), B, T, B > 1 ? a.rewards.stride : 0, B > 1 ? a.values.stride : 0, T, float(a.gamma),
      float(a.lambda), latch_of(ctx)};
  launch(ctx, "gae", {(B + GAE_WARPS - 1) / GAE_WARPS}, 32 * GAE_WARPS, 0, p);
}
#endif

}  // namespace rlhf::cuda
