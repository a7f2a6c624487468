// Moments of the unmasked, and whitening by them.
//   moments: count, sum, sum of squares, least, greatest
//   whiten: (x - mean) * factor [+ mean], 0 where masked
//     verl and trl: variance / (n - 1), factor 1 / sqrt(variance + 1e-8)
//     openrlhf: variance / n, factor 1 / sqrt(max(variance, 1e-8))
//   x, y: f32 [N] packed by cu_seqlens i32 [B+1]; mask: i32 [N] or absent
// Plan: memory is the limit. Sums: 4,096 tokens a block in f64, then the blocks in order, as sums.h. Whitening goes
// over x three times: mean, squares about the mean, result.
#include "kernels/cuda/sums.h"

namespace rlhf::cuda {

struct StatisticParams {
  Global<const float> x;
  Global<const int32_t> mask;  // or null
  Global<float> y;
  Global<double> partial;  // [blocks][5]: count, sum, squares (about the mean, if it is known), least, most
  Global<double> total;  // [4]: count, mean, factor; what y has more than the difference from the mean
  Global<double> moments;
  int64_t N;
  int32_t shift_mean, biased, about_mean;
  Latch error;
};
constexpr int MOMENTS = 5;

#if RLHF_DEVICE_CODE

KERNEL(statistics, StatisticParams, 256) {
  const double mean = p.about_mean ? p.total[1] : 0;
  double sums[3] = {}, low = double(INFINITE), high = -double(INFINITE);
  const int64_t first = block_x() * SUM_ELEMENTS;
  for (int64_t i = first + thread(); i < first + SUM_ELEMENTS && i < p.N; i += 256) {
    if (p.mask && !p.mask[i]) continue;
    const double x = p.x[i], off = x - mean;
    sums[0] += 1, sums[1] += x, sums[2] += off * off;
    low = x < low || x != x ? x : low, high = x > high || x != x ? x : high;
  }
  const Global<double> out = p.partial + block_x() * MOMENTS;
  block_sums(sums, out);
  SharedMemory memory;
  memory.take<double>(8 * 3);  // of the sums
  const Shared<double> extremes = memory.take<double>(16);
  UNROLL for (int step = 16; step; step /= 2) {
    const double other_low = shuffle_xor(low, step), other_high = shuffle_xor(high, step);
    low = other_low < low || other_low != other_low ? other_low : low,
    high = other_high > high || other_high != other_high ? other_high : high;
  }
  if (lane() == 0) extremes[2 * warp()] = low, extremes[2 * warp() + 1] = high;
  sync_threads();
  if (thread() > 0) return;
  for (int w = 1; w < 8; w++) {
    const double other_low = extremes[2 * w], other_high = extremes[2 * w + 1];
    low = other_low < low || other_low != other_low ? other_low : low,
    high = other_high > high || other_high != other_high ? other_high : high;
  }
  out[3] = low, out[4] = high;
}

// The blocks, in order: a lane per statistic.
DEVICE double statistic(const StatisticParams& p, int which) {
  double x = which == 3 ? double(INFINITE) : which == 4 ? -double(INFINITE) : 0;
  for (int64_t block = 0; block < sum_blocks_of(p.N); block++) {
    const double one = p.partial[block * MOMENTS + which];
    if (which < 3) x += one;
    else x = (which == 3 ? one < x : one > x) || one != one ? one : x;
  }
  return x;
}
KERNEL(moments, StatisticParams, 32) {
  if (lane() < MOMENTS) p.moments[lane()] = p.error[0] != 0 ? double(NOT_A_NUMBER) : statistic(p, lane());
}
KERNEL(whiten_mean, StatisticParams, 32) {
  const double own = lane() < 2 ? statistic(p, lane()) : 0, count = shuffle(own, 0), sum = shuffle(own, 1);
  if (lane() == 0) p.total[0] = count, p.total[1] = sum / count;
}
KERNEL(whiten_factor, StatisticParams, 32) {
  if (lane() > 0) return;
  const double count = p.total[0], variance = statistic(p, 2) / (p.biased ? count : count - 1);
  const bool few = !p.biased && count == 1;
  if (few) latch(p.error, TOO_FEW);
  p.total[2] = few || p.error[0] != 0 ? double(NOT_A_NUMBER)
                                      : 1 / sqrt(p.biased ? (variance > 1e-8 ? variance : 1e-8) : variance + 1e-8);
  p.total[3] = p.shift_mean ? 0 : p.total[1];
}
KERNEL(whiten_tokens, StatisticParams, 256) {
  const int64_t i = int64_t(block_x()) * 256 + thread();
  if (i >= p.N) return;
  const double factor = p.total[2];
  const bool kept = !p.mask || p.mask[i];
  p.y[i] = factor != factor ? NOT_A_NUMBER : kept ? float((p.x[i] - p.total[1]) * factor + p.total[3]) : 0;
}

#endif

#if RLHF_HOST_CODE
namespace {
// with the workspace that the statistics need; false: there is none, or it is being measured
template <class A>
bool statistics_of(Context& ctx, const A& a, StatisticParams& p) {
  p = {global(a.x), global(a.mask), {}, {}, {}, {}, a.x.dim[0], 0, 0, 0, latch_of(ctx)};
  const int64_t doubles = sum_blocks_of(p.N) * MOMENTS + 4;
  double* memory = static_cast<double*>(ctx.scratch(doubles * int64_t(sizeof(double))));
  if (!memory) return false;
  p.total = global<double>(memory, 4), p.partial = global<double>(memory + 4, doubles - 4);
  check_offsets(ctx, a.cu_seqlens, p.N);
  return true;
}
void take_statistics(Context& ctx, const StatisticParams& p) {
  launch(ctx, "statistics", {sum_blocks_of(p.N)}, 256, block_sums_shared(3) + 16 * 8, p);
}
}  // namespace

void whiten(Context& ctx, const whiten_args& a) {
  StatisticParams p;
  if (!statistics_of(ctx, a, p)) return;
  p.y = global(a.y), p.shift_mean = a.shift_mean != 0, p.biased = a.form == Whitening::openrlhf;
  take_statistics(ctx, p);
  launch(ctx, "whiten_mean", {1}, 32, 0, p);
  p.about_mean = 1;
  take_statistics(ctx, p);
  launch(ctx, "whiten_factor", {1}, 32, 0, p);
  launch(ctx, "whiten_tokens", {(p.N + 255) / 256}, 256, 0, p);
}

void moments(Context& ctx, const moments_args& a) {
  StatisticParams p;
  if (!statistics_of(ctx, a, p)) return;
  p.moments = global(a.moments);
  take_statistics(ctx, p);
  launch(ctx, "moments", {1}, 32, 0, p);
}
#endif

}  // namespace rlhf::cuda
