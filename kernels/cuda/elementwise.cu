// Elementwise ops, and the sums that gradients of losses need. Plan: an element a thread; sums: 4,096 a block in f64, blocks in order.
#include "kernels/cuda/sums.h"

namespace rlhf::cuda {

struct MapParams {
  Global<const float> a, b;
  Global<float> y;
  int64_t n;
  float first, second;
};
struct SumParams {
  Global<const float> x;
  Global<double> partial;
  Global<float> y;
  int64_t n;
};
constexpr int64_t SUM_ELEMENTS = 4096;

#if RLHF_DEVICE_CODE

template <class F>
DEVICE void map(const MapParams& p, F&& f) {
  const int64_t i = int64_t(block_x()) * 256 + thread();
  if (i < p.n) p.y[i] = f(i);
}
#define MAP(name, expression) \
  KERNEL(name, MapParams, 256) { map(p, [&](int64_t i) { return expression; }); }
MAP(map_add, p.a[i] + p.b[i])
MAP(map_sub, p.a[i] - p.b[i])
MAP(map_mul, p.a[i] * p.b[i])
MAP(map_scale, fma(p.a[i], p.first, p.second))
MAP(map_clamp, max(min(p.a[i], p.second), p.first))
MAP(map_accumulate, p.y[i] + p.a[i])
MAP(map_fill, (void(i), p.first))

KERNEL(sum_blocks, SumParams, 256) {
  double sums[1] = {};
  const int64_t first = block_x() * SUM_ELEMENTS;
  for (int64_t i = first + thread(); i < first + SUM_ELEMENTS && i < p.n; i += 256) sums[0] += p.x[i];
  block_sums(sums, p.partial + block_x());
}
KERNEL(sum_finish, SumParams, 32) {
  if (thread() > 0) return;
  double total = 0;
  for (int64_t block = 0; block < (p.n + SUM_ELEMENTS - 1) / SUM_ELEMENTS; block++) total += p.partial[block];
  p.y[0] = float(total);
}

#endif

#if RLHF_HOST_CODE
namespace {
void mapped(Context& ctx, const char* kernel, View<const float> a, View<const float> b, View<float> y, double first = 0, double second = 0) {
  const MapParams p{global(a), global(b), global<float>(y.data, y.size()), y.size(), float(first), float(second)};
  launch(ctx, kernel, {(p.n + 255) / 256}, 256, 0, p);
}
const View<const float> nothing{nullptr, {0, 0, 0, 0}, 0, 0, 0};
}  // namespace
void add(Context& ctx, const add_args& a) { mapped(ctx, "map_add", a.a, a.b, a.y); }
void sub(Context& ctx, const sub_args& a) { mapped(ctx, "map_sub", a.a, a.b, a.y); }
void mul(Context& ctx, const mul_args& a) { mapped(ctx, "map_mul", a.a, a.b, a.y); }
void scale(Context& ctx, const scale_args& a) { mapped(ctx, "map_scale", a.x, nothing, a.y, a.factor, a.shift); }
void clamp(Context& ctx, const clamp_args& a) { mapped(ctx, "map_clamp", a.x, nothing, a.y, a.low, a.high); }
void accumulate(Context& ctx, const accumulate_args& a) { mapped(ctx, "map_accumulate", a.x, nothing, a.y); }
void fill(Context& ctx, const fill_args& a) { mapped(ctx, "map_fill", nothing, nothing, a.y, a.value); }
void sum(Context& ctx, const sum_args& a) {
  const int64_t blocks = (a.x.size() + SUM_ELEMENTS - 1) / SUM_ELEMENTS;
  double* memory = static_cast<double*>(ctx.scratch(blocks * 8 + 8));
  if (!memory) return;
  const SumParams p{global<const float>(a.x.data, a.x.size()), global<double>(memory, blocks), global(a.y), a.x.size()};
  launch(ctx, "sum_blocks", {blocks}, 256, block_sums_shared(1), p);
  launch(ctx, "sum_finish", {1}, 32, 0, p);
}
#endif

}  // namespace rlhf::cuda
