// Activations and their gradients, element by element.
//
//   gelu_tanh(x) = x/2 (1 + tanh(u)) = x sigmoid(2u),  u = sqrt(2/pi) (x + 0.044715 x^3)
//   gelu_erf(x) = x/2 (1 + erf(x / sqrt 2))
//   swiglu(gate, up) = gate sigmoid(gate) up
//
// The sigmoid keeps the digits of gelu's tail, where 1 + tanh(u) would lose them.
// Plan: sixteen at a time. Threads take contiguous ranges. Memory is the limit, except for erf.
// Figures: 44 % of the limit to all of it (erf: 11 to 29 %). History: kernels/notes/activation.md.
#include "kernels/cpu/math.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t LEAST = 8192;

template <class F>
RLHF_INLINE void map(Context& ctx, int64_t size, F&& f) {
  ctx.split(size, 1024, LEAST, [&](int64_t begin, int64_t end) { each_vector(begin, end, f); });
}

// f(i, n, g(i, n)), each in a loop of its own over a few numbers: a core's schedulers hold little more than one long
// chain of operations
template <class G, class F>
RLHF_INLINE void map(Context& ctx, int64_t size, G&& g, F&& f) {
  constexpr int64_t CHUNK = 16 * LANES;
  ctx.split(size, 1024, LEAST, [&](int64_t begin, int64_t end) {
    alignas(64) float between[CHUNK];
    for (; begin < end; begin += CHUNK) {
      const int64_t until = begin + CHUNK < end ? begin + CHUNK : end;
      each_vector(
          begin,
          until, [&](int64_t i, int n) __attribute__((always_inline)) { store(between + (i - begin), g(i, n)); });
      each_vector(
          begin, until, [&](int64_t i, int n) __attribute__((always_inline)) { f(i, n, load(between + (i - begin))); });
    }
  });
}

constexpr float ROOT_2_PI = 0.797884561f, CUBIC = 0.044715f, ROOT_HALF = 0.707106781f, DENSITY = 0.398942280f;

// 2u, of x limited to where the sigmoid is not yet 0 or 1
RLHF_INLINE V limited(V x) { return select(isnan(x), x, max(min(x, set(16.0f)), set(-16.0f))); }
RLHF_INLINE auto twice_arguments(View<const float> x) {
  return [=](int64_t i, int n) __attribute__((always_inline)) {
    const V z = limited(load(&x[i], n));
    return set(2 * ROOT_2_PI) * fma(set(CUBIC) * z, z * z, z);
  };
}

}  // namespace

void gelu(Context& ctx, const gelu_args& a) {
  const V half = set(0.5f), one = set(1.0f);
  if (a.form == GeluForm::tanh)
    map(
        ctx, a.y.size(), twice_arguments(a.x), [&](int64_t i, int n, V u) __attribute__((always_inline)) {
          store(&a.y[i], load(&a.x[i], n) * sigmoid(u), n);
        });
  else
    map(
        ctx, a.y.size(), [&](int64_t i, int n) __attribute__((always_inline)) {
          const V x = load(&a.x[i], n);
          store(&a.y[i], half * x * (one + erf(x * set(ROOT_HALF))), n);
        });
}

void gelu_grad(Context& ctx, const gelu_grad_args& a) {
  const V half = set(0.5f), one = set(1.0f);
  if (a.form == GeluForm::tanh)
    map(
        ctx, a.dx.size(), twice_arguments(a.x), [&](int64_t i, int n, V u) __attribute__((always_inline)) {
          V t;  // 1 - s with all its digits
          const V z = limited(load(&a.x[i], n)), s = sigmoid(u, &t),
                  du = set(2 * ROOT_2_PI) * fma(set(3 * CUBIC) * z, z, one);
          store(&a.dx[i], load(&a.dy[i], n) * fma(z * s * t, du, s), n);
        });
  else
    map(
        ctx, a.dx.size(), [&](int64_t i, int n) __attribute__((always_inline)) {
          const V x = load(&a.x[i], n), density = set(DENSITY) * exp(set(-0.5f) * x * x);
          store(&a.dx[i], load(&a.dy[i], n) * fma(x, density, half * (one + erf(x * set(ROOT_HALF)))), n);
        });
}

void swiglu(Context& ctx, const swiglu_args& a) {
  map(
      ctx, a.y.size(), [&](int64_t i, int n) __attribute__((always_inline)) {
        const V gate = load(&a.gate[i], n);
        store(&a.y[i], gate * sigmoid(gate) * load(&a.up[i], n), n);
      });
}

void swiglu_grad(Context& ctx, const swiglu_grad_args& a) {
  const V one = set(1.0f);
  map(
      ctx, a.dgate.size(), [&](int64_t i, int n) __attribute__((always_inline)) {
        const V gate = load(&a.gate[i], n), dy = load(&a.dy[i], n), s = sigmoid(gate);
        store(&a.dup[i], dy * gate * s, n);
        store(&a.dgate[i], dy * load(&a.up[i], n) * s * fma(gate, one - s, one), n);
      });
}

}  // namespace rlhf::RLHF_ISA
