// Rotary position embedding (Su et al. 2021), x [N,H,D]. The pair (d, d + R), d < R, turns by
// position * inverse_frequency[d]. Dimensions from 2R on stay. inverse turns back: the gradient.
//
//   y[d] = x[d] cos - x[d+R] sin,  y[d+R] = x[d+R] cos + x[d] sin
//
// Plan: threads take tokens. sin and cos are computed once per token and shared by its heads.
// Figures: 78 to 97 % of the limit. History: kernels/notes/rope.md.
#include "kernels/cpu/math.h"

namespace rlhf::RLHF_ISA {

void rope(Context& ctx, const rope_args& a) {
  const int64_t N = a.x.dim[0], H = a.x.dim[1], D_ = a.x.dim[2], R = a.inverse_frequency.dim[0];
  if (2 * R > D_) return ctx.fail("inverse_frequency is longer than half the head size");
  const int64_t padded = (R + LANES - 1) / LANES * LANES;
  float* memory = static_cast<float*>(ctx.scratch(int64_t(ctx.threads) * 2 * padded * int64_t(sizeof(float)) + 64));
  if (!memory) return;
  ctx.each([&](int thread) {
    float *cosine = memory + thread * 2 * padded, *sine = cosine + padded;
    for (int64_t t = N * thread / ctx.threads; t < N * (thread + 1) / ctx.threads; t++) {
      const V position = set(float(a.positions[t]));
      for (int64_t d = 0; d < R; d += LANES) {
        V s, c;
        sincos(position * load(&a.inverse_frequency[d], R - d < LANES ? int(R - d) : LANES), s, c);
        store(cosine + d, c), store(sine + d, a.inverse ? -s : s);
      }
      for (int64_t h = 0; h < H; h++) {
        const float* x = a.x.row(t) + h * D_;
        float* y = a.y.row(t) + h * D_;
        each_vector(0, R, [&](int64_t d, int n) {
          const V p = load(x + d, n), q = load(x + R + d, n), s = load(sine + d), c = load(cosine + d);
          store(y + d, fma(p, c, -(q * s)), n), store(y + R + d, fma(q, c, p * s), n);
        });
        for (int64_t d = 2 * R; d < D_; d++) y[d] = x[d];
      }
    }
  });
}

}  // namespace rlhf::RLHF_ISA
