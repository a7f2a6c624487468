// One result per element: add, sub, mul, y = fma(x, factor, shift), clamp and its gradient, y += x,
// fill; and the sum of all.
//
// Plan: 16 bytes a thread and array, two at a time. Memory is the limit. Sums: sums.h.
// History: kernels/notes/elementwise.md.
#include "kernels/cuda/sums.h"

namespace rlhf::cuda {

struct MapParams {
  Global<const float> a, b;  // null: not read
  Global<float> y;
  int64_t n;
  float first, second;
  int32_t vector;  // every array begins at 16 bytes
};
struct SumParams {
  Global<const float> x;
  Global<double> partial;  // [blocks + 1]
  Global<float> y;
  int64_t n;
  int32_t vector;
};
constexpr int64_t MAP_ELEMENTS = 2048;  // of a block of 256 threads

#if RLHF_DEVICE_CODE

template <class F>
DEVICE void map(const MapParams& p, F&& f) {
  const int64_t first = block_x() * MAP_ELEMENTS + 4 * thread();
  float a[2][4] = {}, b[2][4] = {};
  UNROLL for (int i = 0; i < 2; i++) {
    if (p.a) load_four(p.a, first + 1024 * i, p.n, p.vector, a[i]);
    if (p.b) load_four(p.b, first + 1024 * i, p.n, p.vector, b[i]);
  }
  UNROLL for (int i = 0; i < 2; i++) {
    UNROLL for (int k = 0; k < 4; k++) a[i][k] = f(a[i][k], b[i][k]);
    store_four(p.y, first + 1024 * i, p.n, p.vector, a[i]);
  }
}
#define MAP(name, expression)                                                                        \
  KERNEL(name, MapParams, 256) {                                                                     \
    map(p, [&]([[maybe_unused]] float a, [[maybe_unused]] float b) -> float { return expression; }); \
  }
MAP(map_add, a + b)
MAP(map_sub, a - b)
MAP(map_mul, a* b)
MAP(map_scale, fma(a, p.first, p.second))
MAP(map_clamp, a != a ? a : min(max(a, p.first), p.second))
MAP(map_clamp_grad, p.first <= b && b <= p.second ? a : 0)
MAP(map_fill, p.first)

KERNEL(sum_blocks, SumParams, 256) {
  sum_elements(p.x, p.n, p.vector, p.partial, [](float x) -> double { return x; });
}
KERNEL(sum_finish, SumParams, 256) {
  const double sum = sum_of_blocks(p.partial, p.n);
  if (thread() == 0) p.y[0] = float(sum);
}

#endif

#if RLHF_HOST_CODE
namespace {
void mapped(Context& ctx, const char* kernel, View<const float> a, View<const float> b, View<float> y, double first = 0,
    double second = 0) {
  const int64_t n = y.size();
  const MapParams p{global<const float>(a.data, n), global<const float>(b.data, n), global<float>(y.data, n), n,
      float(first), float(second), at_16_bytes(a.data) && at_16_bytes(b.data) && at_16_bytes(y.data)};
  launch(ctx, kernel, {(n + MAP_ELEMENTS - 1) / MAP_ELEMENTS}, 256, 0, p);
}
const View<const float> nothing{nullptr, {0, 0, 0, 0}, 0, 0, 0};
}  // namespace
void add(Context& ctx, const add_args& a) { mapped(ctx, "map_add", a.a, a.b, a.y); }
void sub(Context& ctx, const sub_args& a) { mapped(ctx, "map_sub", a.a, a.b, a.y); }
void mul(Context& ctx, const mul_args& a) { mapped(ctx, "map_mul", a.a, a.b, a.y); }
void scale(Context& ctx, const scale_args& a) { mapped(ctx, "map_scale", a.x, nothing, a.y, a.factor, a.shift); }
void clamp(Context& ctx, const clamp_args& a) { mapped(ctx, "map_clamp", a.x, nothing, a.y, a.low, a.high); }
void clamp_grad(Context& ctx, const clamp_grad_args& a) {
  mapped(ctx, "map_clamp_grad", a.dy, a.x, a.dx, a.low, a.high);
}
void accumulate(Context& ctx, const accumulate_args& a) { mapped(ctx, "map_add", {a.y.data, {}, 0, 0, 0}, a.x, a.y); }
void fill(Context& ctx, const fill_args& a) { mapped(ctx, "map_fill", nothing, nothing, a.y, a.value); }
void sum(Context& ctx, const sum_args& a) {
  const int64_t n = a.x.size(), blocks = sum_blocks_of(n);
  double* memory = static_cast<double*>(ctx.scratch((blocks + 1) * int64_t(sizeof(double))));
  if (!memory) return;
  const SumParams p{
      global<const float>(a.x.data, n), global<double>(memory, blocks + 1), global(a.y), n, at_16_bytes(a.x.data)};
  launch(ctx, "sum_blocks", {blocks}, 256, block_sums_shared(1), p);
  launch(ctx, "sum_finish", {1}, 256, block_sums_shared(1), p);
}
#endif

}  // namespace rlhf::cuda
