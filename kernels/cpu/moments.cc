// Moments of the unmasked, and whitening by them.
//   moments: count, sum, sum of squares, least, greatest
//   whiten: (x - mean) * factor [+ mean], 0 where masked
//     verl and trl: variance / (n - 1), factor 1 / sqrt(variance + 1e-8)
//     openrlhf: variance / n, factor 1 / sqrt(max(variance, 1e-8))
//   x, y: f32 [N] packed by cu_seqlens i32 [B+1]; mask: i32 [N] or absent
//
// Law: sums over tokens by law 4. Plan: one pass for each sum; whitening's result over threads.
#include "kernels/cpu/sums.h"

namespace rlhf::RLHF_ISA {
namespace {

RLHF_INLINE D ones(B counts) { return widen(select(counts, set(1.0f), zero())); }

}  // namespace

void whiten(Context& ctx, const whiten_args& a) {
  const auto counted = [&](int64_t i, int n) { return unmasked(a.mask, i, n); };
  const double count = packed_total(0, a.cu_seqlens, [&](int64_t i, int n) { return ones(counted(i, n)); });
  const double mean = packed_total(0, a.cu_seqlens, [&](int64_t i, int n) {
    return widen(load_where(&a.x[i], n, counted(i, n)));
  }) / count;
  const double squares = packed_total(0, a.cu_seqlens, [&](int64_t i, int n) {
    const B counts = counted(i, n);
    const D d = (widen(load_where(&a.x[i], n, counts)) - setd(mean)) * ones(counts);
    return d * d;
  });
  const bool biased = a.form == Whitening::openrlhf;
  const double variance = squares / (biased ? count : count - 1);
  if (!biased && count < 2 && count > 0) return ctx.fail("whitening needs at least two unmasked tokens");
  const double factor = 1 / __builtin_sqrt(biased ? (variance > 1e-8 ? variance : 1e-8) : variance + 1e-8);
  ctx.split(a.x.dim[0], LANES, 16384, [&](int64_t begin, int64_t end) {
    each_vector(begin, end, [&](int64_t i, int n) {
      const B counts = counted(i, n);
      const D y = (widen(load_where(&a.x[i], n, counts)) - setd(mean)) * setd(factor) + setd(a.shift_mean ? 0 : mean);
      store(&a.y[i], select(counts, narrow(y), zero()), n);
    });
  });
}

void moments(Context&, const moments_args& a) {
  double low = __builtin_inf(), high = -__builtin_inf(), bad = 0;
  const auto each = [&](auto&& f) {
    return packed_total(0, a.cu_seqlens, [&](int64_t i, int n) { return f(i, n, unmasked(a.mask, i, n)); });
  };
  a.moments[0] = each([&](int64_t, int, B counts) { return ones(counts); });
  a.moments[1] = each([&](int64_t i, int n, B counts) { return widen(load_where(&a.x[i], n, counts)); });
  a.moments[2] = each([&](int64_t i, int n, B counts) {
    const D x = widen(load_where(&a.x[i], n, counts));
    return x * x;
  });
  for (int64_t i = 0; i < a.x.dim[0]; i++) {
    if (a.mask && a.mask[i] == 0) continue;
    const double x = a.x[i];
    if (x != x) bad = x;
    if (x < low) low = x;
    if (x > high) high = x;
  }
  a.moments[3] = bad != bad ? bad : low, a.moments[4] = bad != bad ? bad : high;
}

}  // namespace rlhf::RLHF_ISA
