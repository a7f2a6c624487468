// Layer norm (Ba et al. 2016) and root-mean-square norm (Zhang and Sennrich 2019), x [N,C].
//
//   layer: xhat = (x - mean) rstd, y = xhat gain + bias;   dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy gain
//   rms:   xhat = x rstd,          y = gain xhat;          dx = rstd (g - xhat mean(g xhat))
//   dgain = sum over tokens of dy xhat, dbias of dy, continued.
//
// Law: row sums in 16 lanes. Variance from the differences to the mean. dgain and dbias: one chain
// over tokens per column.
// Plan: threads take rows. For dgain and dbias they take columns, some lines abreast, and each
// walks all tokens.
// Figures: 40 to 99 % of the limit, gradients 30 to 58 %. History: kernels/notes/norm.md.
#include "kernels/cpu/columns.h"

namespace rlhf::RLHF_ISA {
namespace {

// sum over a row of f(i, n), in 16 lanes; f gives 0 beyond n
template <class F>
RLHF_INLINE float row_sum(int64_t C, F&& f) {
  V total = zero();
  each_vector(
      0, C, [&](int64_t i, int n) __attribute__((always_inline)) { total = total + f(i, n); });
  return sum(total);
}
RLHF_INLINE V within(V x, int n) { return n == LANES ? x : select(first(n), x, zero()); }

constexpr int64_t LEAST = 16384;
int64_t rows_worth(int64_t C) { return LEAST / (C > 0 ? C : 1) + 1; }

// dgain and dbias: xhat(row, i, n) of the token
template <class F>
RLHF_INLINE void column_sums(Context& ctx, View<const float> dy, View<float> dgain, View<float> dbias, F&& xhat) {
  if (!dgain && !dbias) return;
  const int64_t N = dy.dim[0], C = dy.dim[1];
  ctx.split(C, LANES, LEAST / (N > 0 ? N : 1) + 1, [&](int64_t begin, int64_t end) {
    each_abreast(begin, end, [&](int64_t i, const int* n) {
      V gain[ABREAST], bias[ABREAST];
      abreast([&](int j) {
        gain[j] = dgain ? load(&dgain[i + j * LANES], n[j]) : zero();
        bias[j] = dbias ? load(&dbias[i + j * LANES], n[j]) : zero();
      });
      for (int64_t r = 0; r < N; r++)
        abreast([&](int j) {
          const V d = load(dy.row(r) + i + j * LANES, n[j]);
          gain[j] = fma(d, xhat(r, i + j * LANES, n[j]), gain[j]);
          bias[j] = bias[j] + d;
        });
      abreast([&](int j) {
        if (dgain) store(&dgain[i + j * LANES], gain[j], n[j]);
        if (dbias) store(&dbias[i + j * LANES], bias[j], n[j]);
      });
    });
  });
}

}  // namespace

void layer_norm(Context& ctx, const layer_norm_args& a) {
  const int64_t C = a.x.dim[1];
  ctx.split(a.x.dim[0], 1, rows_worth(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float* x = a.x.row(r);
      const float mean = row_sum(C, [&](int64_t i, int n) { return load(x + i, n); }) / float(C);
      const V m = set(mean);
      const float squares = row_sum(C, [&](int64_t i, int n) {
        const V d = within(load(x + i, n) - m, n);
        return d * d;
      });
      const float rstd = 1.0f / __builtin_sqrtf(squares / float(C) + float(a.eps));
      a.mean[r] = mean, a.rstd[r] = rstd;
      each_vector(0, C, [&](int64_t i, int n) {
        const V xhat = (load(x + i, n) - m) * set(rstd), gain = load(&a.gain[i], n);
        store(a.y.row(r) + i, a.bias ? fma(xhat, gain, load(&a.bias[i], n)) : xhat * gain, n);
      });
    }
  });
}

void layer_norm_grad(Context& ctx, const layer_norm_grad_args& a) {
  const int64_t C = a.x.dim[1];
  ctx.split(a.x.dim[0], 1, rows_worth(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float *x = a.x.row(r), *dy = a.dy.row(r);
      const V m = set(a.mean[r]), rstd = set(a.rstd[r]);
      auto g = [&](int64_t i, int n) { return load(dy + i, n) * load(&a.gain[i], n); };
      auto xhat = [&](int64_t i, int n) { return (load(x + i, n) - m) * rstd; };
      const V mean_g = set(row_sum(C, g) / float(C));
      const V mean_gx = set(row_sum(C, [&](int64_t i, int n) { return g(i, n) * xhat(i, n); }) / float(C));
      each_vector(
          0, C, [&](int64_t i, int n) { store(a.dx.row(r) + i, rstd * (g(i, n) - mean_g - xhat(i, n) * mean_gx), n); });
    }
  });
  column_sums(ctx, a.dy, a.dgain, a.dbias,
      [&](int64_t r, int64_t i, int n) { return (load(a.x.row(r) + i, n) - set(a.mean[r])) * set(a.rstd[r]); });
}

void rms_norm(Context& ctx, const rms_norm_args& a) {
  const int64_t C = a.x.dim[1];
  ctx.split(a.x.dim[0], 1, rows_worth(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float* x = a.x.row(r);
      const float squares = row_sum(C, [&](int64_t i, int n) {
        const V v = load(x + i, n);
        return v * v;
      });
      const float rstd = 1.0f / __builtin_sqrtf(squares / float(C) + float(a.eps));
      a.rstd[r] = rstd;
      each_vector(0, C,
          [&](int64_t i, int n) { store(a.y.row(r) + i, load(&a.gain[i], n) * (load(x + i, n) * set(rstd)), n); });
    }
  });
}

void rms_norm_grad(Context& ctx, const rms_norm_grad_args& a) {
  const int64_t C = a.x.dim[1];
  ctx.split(a.x.dim[0], 1, rows_worth(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float *x = a.x.row(r), *dy = a.dy.row(r);
      const V rstd = set(a.rstd[r]);
      auto g = [&](int64_t i, int n) { return load(dy + i, n) * load(&a.gain[i], n); };
      auto xhat = [&](int64_t i, int n) { return load(x + i, n) * rstd; };
      const V mean_gx = set(row_sum(C, [&](int64_t i, int n) { return g(i, n) * xhat(i, n); }) / float(C));
      each_vector(0, C, [&](int64_t i, int n) { store(a.dx.row(r) + i, rstd * (g(i, n) - xhat(i, n) * mean_gx), n); });
    }
  });
  column_sums(ctx, a.dy, a.dgain, View<float>{},
      [&](int64_t r, int64_t i, int n) { return load(a.x.row(r) + i, n) * set(a.rstd[r]); });
}

}  // namespace rlhf::RLHF_ISA
