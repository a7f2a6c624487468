// The backward pass: its parameters, whatever products it is made of.
#pragma once
#include "kernels/cuda/attention.h"

namespace rlhf::cuda {

template <class T>
struct AttentionGradParams {
  Global<const T> d_o, q, k, v, o;
  Global<const float> lse;
  Global<const int32_t> offsets, prefix;
  Global<T> dq, dk, dv;
  Global<float> rows;  // [H][row_stride][2]: lse as an exponent, delta; a sequence begins at row_of(); room for a tile
                       // after the last
  TileList queries, keys;
  int64_t N, row_stride, d_o_stride, q_stride, k_stride, v_stride;
  int32_t H, G, heads, D;  // heads: H/G
  float scale;
  bool aligned;
};

#if RLHF_DEVICE_CODE

// Even, so that pairs of rows lie at multiples of 16 bytes.
DEVICE int64_t row_of(Sequences sequences, int32_t b) { return (int64_t(sequences.offsets[b]) + b + 1) / 2 * 2; }

#endif

}  // namespace rlhf::cuda
