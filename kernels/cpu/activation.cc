// gelu_tanh(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3);  gelu_erf(x) = x/2 (1 + erf(x / sqrt 2))
// swiglu(gate, up) = gate sigmoid(gate) up
// Plan: sixteen at a time, threads take contiguous ranges; memory is the limit.
#include "kernels/cpu/math.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t LEAST = 8192;

template <class F>
RLHF_INLINE void map(Context& ctx, int64_t size, F&& f) {
  ctx.split(size, 1024, LEAST, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) f(i, end - i < LANES ? int(end - i) : LANES);
  });
}

constexpr float ROOT_2_PI = 0.797884561f, CUBIC = 0.044715f, ROOT_HALF = 0.707106781f, DENSITY = 0.398942280f;

RLHF_INLINE V tanh_argument(V x) { return set(ROOT_2_PI) * fma(set(CUBIC) * x, x * x, x); }

}  // namespace

void gelu(Context& ctx, const gelu_args& a) {
  const V half = set(0.5f), one = set(1.0f);
  map(ctx, a.y.size(), [&](int64_t i, int n) {
    const V x = load(&a.x[i], n);
    const V inner = a.form == GeluForm::tanh ? tanh(tanh_argument(x)) : erf(x * set(ROOT_HALF));
    store(&a.y[i], half * x * (one + inner), n);
  });
}

void gelu_grad(Context& ctx, const gelu_grad_args& a) {
  const V half = set(0.5f), one = set(1.0f);
  map(ctx, a.dx.size(), [&](int64_t i, int n) {
    const V x = load(&a.x[i], n);
    V slope;
    if (a.form == GeluForm::tanh) {
      const V t = tanh(tanh_argument(x));
      const V du = set(ROOT_2_PI) * fma(set(3 * CUBIC) * x, x, one);
      slope = fma(half * x * fma(-t, t, one), du, half * (one + t));
    } else {
      const V density = set(DENSITY) * exp(set(-0.5f) * x * x);
      slope = fma(x, density, half * (one + erf(x * set(ROOT_HALF))));
    }
    store(&a.dx[i], load(&a.dy[i], n) * slope, n);
  });
}

void swiglu(Context& ctx, const swiglu_args& a) {
  map(ctx, a.y.size(), [&](int64_t i, int n) {
    const V gate = load(&a.gate[i], n);
    store(&a.y[i], gate * sigmoid(gate) * load(&a.up[i], n), n);
  });
}

void swiglu_grad(Context& ctx, const swiglu_grad_args& a) {
  const V one = set(1.0f);
  map(ctx, a.dgate.size(), [&](int64_t i, int n) {
    const V gate = load(&a.gate[i], n), dy = load(&a.dy[i], n), s = sigmoid(gate);
    store(&a.dup[i], dy * gate * s, n);
    store(&a.dgate[i], dy * load(&a.up[i], n) * s * fma(gate, one - s, one), n);
  });
}

}  // namespace rlhf::RLHF_ISA
