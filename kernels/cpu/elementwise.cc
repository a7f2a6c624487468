// One result per element: cast, add, sub, mul, y = fma(x, factor, shift), clamp and its gradient, y += x, fill; and
// the sum of all (law 4).
//
// Plan: sixteen at a time. Threads take contiguous ranges. Memory is the limit.
// Figures: 78 % of the limit to all of it. History: kernels/notes/elementwise.md.
#include "kernels/cpu/sums.h"
#include "native/list/types.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t LEAST = 16384;  // elements that are worth a thread

template <class T, class F>
RLHF_INLINE void map(Context& ctx, int64_t size, T* y, F&& f) {
  ctx.split(size, 1024, LEAST, [&](int64_t begin, int64_t end) {
    each_vector(begin, end, [&](int64_t i, int n) { store(y + i, f(i, n), n); });
  });
}

}  // namespace

void cast(Context& ctx, const cast_args& a) {
  const auto to = [&](auto* y) {
    if (a.x.dtype == RLHF_F32) return map(ctx, a.y.size(), y, [&](int64_t i, int n) { return load(a.x.data + i, n); });
    map(ctx, a.y.size(), y, [&](int64_t i, int n) { return load(reinterpret_cast<const bf16*>(a.x.data) + i, n); });
  };
  if (a.y.dtype == RLHF_F32) to(a.y.data);
  else to(reinterpret_cast<bf16*>(a.y.data));
}
void add(Context& ctx, const add_args& a) {
  map(ctx, a.y.size(), a.y.data, [&](int64_t i, int n) { return load(a.a.data + i, n) + load(a.b.data + i, n); });
}
void sub(Context& ctx, const sub_args& a) {
  map(ctx, a.y.size(), a.y.data, [&](int64_t i, int n) { return load(a.a.data + i, n) - load(a.b.data + i, n); });
}
void mul(Context& ctx, const mul_args& a) {
  map(ctx, a.y.size(), a.y.data, [&](int64_t i, int n) { return load(a.a.data + i, n) * load(a.b.data + i, n); });
}
void scale(Context& ctx, const scale_args& a) {
  const V factor = set(float(a.factor)), shift = set(float(a.shift));
  map(ctx, a.y.size(), a.y.data, [&](int64_t i, int n) { return fma(load(a.x.data + i, n), factor, shift); });
}
void clamp(Context& ctx, const clamp_args& a) {
  const V low = set(float(a.low)), high = set(float(a.high));
  map(ctx, a.y.size(), a.y.data, [&](int64_t i, int n) {
    const V x = load(a.x.data + i, n);
    return select(isnan(x), x, min(max(x, low), high));
  });
}
void clamp_grad(Context& ctx, const clamp_grad_args& a) {
  const V low = set(float(a.low)), high = set(float(a.high)), zero = set(0);
  map(ctx, a.dx.size(), a.dx.data, [&](int64_t i, int n) {
    const V x = load(a.x.data + i, n), dy = load(a.dy.data + i, n);
    return select(low <= x, select(x <= high, dy, zero), zero);
  });
}
void accumulate(Context& ctx, const accumulate_args& a) {
  map(ctx, a.y.size(), a.y.data, [&](int64_t i, int n) { return load(a.y.data + i, n) + load(a.x.data + i, n); });
}
void fill(Context& ctx, const fill_args& a) {
  const V value = set(float(a.value));
  map(ctx, a.y.size(), a.y.data, [&](int64_t, int) { return value; });
}
void sum(Context&, const sum_args& a) {
  a.y[0] = float(sequence_total(0, 0, a.x.size(), [&](int64_t i, int n) { return widen(load(a.x.data + i, n)); }));
}

}  // namespace rlhf::RLHF_ISA
