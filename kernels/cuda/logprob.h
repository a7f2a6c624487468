// Log-softmax statistics on the GPU of any part of a row, with logits x and t = 1/T. The target's
// own term is left out of s and u:
//   m = max x,  s = sum exp((x - m) t),  u = sum exp((x - m) t) (x - m) t
// and the end of a row, where a confident token keeps its digits: kernels/cpu/logprob.h has the
// formulas.
#pragma once
#include "kernels/cuda/simt.h"

namespace rlhf::cuda {

#if RLHF_DEVICE_CODE

struct RowPart {
  double t;
  float m = -INFINITE;
  double s = 0, u = 0;

  DEVICE void join(float other_m, double other_s, double other_u) {
    if (other_m == -INFINITE) return;
    if (m == -INFINITE) {
      m = other_m, s = other_s, u = other_u;
    } else if (m >= other_m || other_m != other_m) {
      const double d = (double(other_m) - m) * t, b = exp(d);
      u += b * (other_u + d * other_s), s += b * other_s;
    } else {
      const double d = (double(m) - other_m) * t, a = exp(d);
      u = a * (u + d * s) + other_u, s = a * s + other_s, m = other_m;
    }
  }
};

struct RowEnd {
  float logp, lse, entropy;
};
DEVICE RowEnd row_end(const RowPart& row, float target) {
  if (row.m == -INFINITE) return {-INFINITE, -INFINITE, 0};
  const double d = (double(target) - row.m) * row.t, own = d == 0 ? 1.0 : exp(d),
               tail = d == 0 ? log1p(row.s) : log(row.s + own);
  const double entropy = tail - (row.u + (own > 0 ? own * d : 0)) / (row.s + own);
  return {float(d - tail), float(row.m * row.t + tail),
      entropy > 0          ? float(entropy)
      : entropy == entropy ? 0.0f
                           : NOT_A_NUMBER};
}

#endif

}  // namespace rlhf::cuda
