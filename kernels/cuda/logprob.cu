// Log-probs of tokens given the logits, and their gradient. Statistics, of scaled differences:
// logprob.h.
//   logp[m] = x_y - log sum_j exp(x_j),  x = logits[m] / T;  lse, entropy too
//   dlogits_j = -(dlogp p_j + dentropy p_j (log p_j + H)) / T,  at the target -dlogp expm1(logp) / T in place of
//   -dlogp p / T
//
// Plan: a block of 256 threads a row. A thread takes 8 logits at a time, 2,048 apart: their
// maximum, then their sums in f32, joined to its own in f64. Then the lanes by halves, the warps in
// order. The order depends on V alone. The gradient has a block per 2,048 logits.
// Expected, not yet measured: the memory's speed. History: kernels/notes/logprob.md.
#include "kernels/cuda/logprob.h"

namespace rlhf::cuda {

template <class T>
struct LogprobParams {
  Global<const T> logits;
  Global<const int32_t> y;
  Global<float> logp, lse, entropy;
  int64_t V, stride;
  float inverse_temperature;
  int32_t vector;  // every row begins at 16 bytes
  Latch error;
};
template <class T>
struct LogprobGradParams {
  Global<const T> logits;
  Global<const int32_t> y;
  Global<const float> logp, lse, entropy, dlogp, dentropy;
  Global<T> dlogits;
  int64_t M, V, stride;
  float inverse_temperature;
  int32_t vector;
  Latch error;
};
constexpr int64_t STRIP = 2048;

#if RLHF_DEVICE_CODE

template <class T>
DEVICE void load_eight(Global<const T> x, int64_t i, int64_t end, bool vector, float (&to)[8]) {
  constexpr int SIZE = 16 / int(sizeof(T));
  struct alignas(16) Piece {
    T x[SIZE];
  };
  if (vector && i + 8 <= end) {
    UNROLL for (int at = 0; at < 8; at += SIZE) {
      const Piece piece = load_as<Piece>(x, i + at);
      UNROLL for (int k = 0; k < SIZE; k++) to[at + k] = to_float(piece.x[k]);
    }
  } else {
    UNROLL for (int k = 0; k < 8; k++) to[k] = i + k < end ? to_float(x[i + k]) : -INFINITE;
  }
}

template <class T>
DEVICE void logprob(const LogprobParams<T>& p) {
  const int64_t m = block_x(), y = p.y[m];
  const Global<const T> row = p.logits + m * p.stride;
  SharedMemory memory;
  const Shared<float> tops = memory.take<float>(8);
  const Shared<double> sums = memory.take<double>(16);
  RowPart own{p.inverse_temperature};
  for (int64_t j = 8 * thread(); j < p.V; j += STRIP) {
    float x[8], top = -INFINITE, s = 0, u = 0;
    load_eight(row, j, p.V, p.vector, x);
    UNROLL for (int k = 0; k < 8; k++) {
      x[k] = j + k < p.V ? x[k] : -INFINITE;
      top = x[k] > top || x[k] != x[k] ? x[k] : top;
    }
    if (top == -INFINITE) continue;
    UNROLL for (int k = 0; k < 8; k++) {
      const float d = (x[k] - top) * p.inverse_temperature, e = j + k == y ? 0 : exp(d);
      s += e;
      if (e > 0) u = fma(e, d, u);
    }
    own.join(top, s, u);
  }
  for (int step = 16; step; step /= 2) {
    const float m_right = shuffle_down(own.m, step);
    const double s_right = shuffle_down(own.s, step), u_right = shuffle_down(own.u, step);
    if (lane() < step) own.join(m_right, s_right, u_right);
  }
  if (lane() == 0) tops[warp()] = own.m, sums[2 * warp()] = own.s, sums[2 * warp() + 1] = own.u;
  sync_threads();
  if (thread() > 0) return;
  for (int w = 1; w < 8; w++) own.join(tops[w], sums[2 * w], sums[2 * w + 1]);
  const bool bad = y < 0 || y >= p.V;
  if (bad) latch(p.error, BAD_ID);
  const RowEnd end = row_end(own, bad ? 0 : to_float(row[y]));
  p.logp[m] = bad ? NOT_A_NUMBER : end.logp, p.lse[m] = bad ? NOT_A_NUMBER : end.lse,
  p.entropy[m] = bad ? NOT_A_NUMBER : end.entropy;
}
KERNEL(logprob_f32, LogprobParams<float>, 256) { logprob(p); }
KERNEL(logprob_bf16, LogprobParams<bf16>, 256) { logprob(p); }

template <class T>
DEVICE void logprob_grad(const LogprobGradParams<T>& p) {
  const int64_t strips = (p.V + STRIP - 1) / STRIP, m = block_x() / strips,
                first = block_x() % strips * STRIP + 8 * thread();
  if (first >= p.V) return;
  const int64_t y = p.y[m];
  const bool bad = y < 0 || y >= p.V;
  if (bad && first == 0) latch(p.error, BAD_ID);
  const float t = p.inverse_temperature, lse = bad ? NOT_A_NUMBER : p.lse[m], H = p.entropy[m], a = p.dlogp[m],
              b = p.dentropy ? p.dentropy[m] : 0;
  float x[8];
  load_eight(p.logits + m * p.stride, first, p.V, p.vector, x);
  constexpr int SIZE = 16 / int(sizeof(T));
  struct alignas(16) Piece {
    T x[SIZE];
  };
  UNROLL for (int k = 0; k < 8; k++) {
    const float d = x[k] * t - lse, e = exp(d);
    float g = first + k == y ? a * expm1(p.logp[m]) : a * e;
    if (b != 0 && e > 0) g += b * (e * (d + H));
    x[k] = -(g * t);
  }
  const Global<T> out = p.dlogits + (m * p.V + first);
  if (p.vector && p.V % 8 == 0) {
    UNROLL for (int at = 0; at < 8; at += SIZE) {
      Piece piece;
      UNROLL for (int k = 0; k < SIZE; k++) piece.x[k] = from_float<T>(x[at + k]);
      store_as<Piece>(out, at, piece);
    }
  } else
    for (int k = 0; k < 8; k++)
      if (first + k < p.V) out[k] = from_float<T>(x[k]);
}
KERNEL(logprob_grad_f32, LogprobGradParams<float>, 256) { logprob_grad(p); }
KERNEL(logprob_grad_bf16, LogprobGradParams<bf16>, 256) { logprob_grad(p); }

#endif

#if RLHF_HOST_CODE
namespace {
bool whole_pieces(View<const float> x, int64_t size) {
  return at_16_bytes(x.data) && (x.dim[0] < 2 || x.stride * size % 16 == 0);
}
template <class T>
void logprob_of(Context& ctx, const logprob_args& a, const char* kernel) {
  const LogprobParams<T> p{global_as<const T>(a.logits), global(a.y), global(a.logp), global(a.lse), global(a.entropy),
      a.logits.dim[1], a.logits.dim[0] > 1 ? a.logits.stride : 0, float(1 / a.temperature),
      whole_pieces(a.logits, sizeof(T)), latch_of(ctx)};
  launch(ctx, kernel, {a.logits.dim[0]}, 256, 32 + 128, p);
}
template <class T>
void logprob_grad_of(Context& ctx, const logprob_grad_args& a, const char* kernel) {
  const int64_t M = a.logits.dim[0], V = a.logits.dim[1];
  const LogprobGradParams<T> p{global_as<const T>(a.logits), global(a.y), global(a.logp), global(a.lse),
      global(a.entropy), global(a.dlogp), global(a.dentropy), global_as<T>(a.dlogits), M, V,
      M > 1 ? a.logits.stride : 0, float(1 / a.temperature),
      whole_pieces(a.logits, sizeof(T)) && at_16_bytes(a.dlogits.data), latch_of(ctx)};
  launch(ctx, kernel, {M * ((V + STRIP - 1) / STRIP)}, 256, 0, p);
}
}  // namespace

void logprob(Context& ctx, const logprob_args& a) {
  a.logits.dtype == RLHF_BF16 ? logprob_of<bf16>(ctx, a, "logprob_bf16") : logprob_of<float>(ctx, a, "logprob_f32");
}
void logprob_grad(Context& ctx, const logprob_grad_args& a) {
  a.logits.dtype == RLHF_BF16 ? logprob_grad_of<bf16>(ctx, a, "logprob_grad_bf16")
                              : logprob_grad_of<float>(ctx, a, "logprob_grad_f32");
}
#endif

}  // namespace rlhf::cuda
