// What the losses over tokens share: the weight w of each token, and walks by sequence.
//
//   token_mean, seq_mean_token_sum, seq_mean_token_sum_norm: 1 / denominator
//   seq_mean_token_mean: 1 / (denominator n), n the sequence's unmasked tokens
//   0 where masked
#pragma once
#include "kernels/cpu/sums.h"

namespace rlhf::RLHF_ISA {
namespace {

// weights[B]: of each unmasked token of the sequence; returns how many sequences have one
template <class A>
RLHF_INLINE int64_t sequence_weights(const A& a, float* weights) {
  int64_t sequences = 0;
  for (int64_t b = 0; b + 1 < a.cu_seqlens.dim[0]; b++) {
    int64_t n = a.cu_seqlens[b + 1] - a.cu_seqlens[b];
    for (int64_t i = a.cu_seqlens[b]; a.mask && i < a.cu_seqlens[b + 1]; i++) n -= a.mask[i] == 0;
    sequences += n > 0;
    weights[b] = n > 0 ? float(a.aggregation == Aggregation::seq_mean_token_mean ? 1 / (a.denominator * double(n))
                                                                                 : 1 / a.denominator)
                       : 0.0f;
  }
  return sequences;
}

// f(b, begin, end): the tokens [begin, end), sequence by sequence
template <class F>
RLHF_INLINE void each_sequence(View<const int32_t> cu_seqlens, int64_t begin, int64_t end, F&& f) {
  for (int64_t b = 0; b + 1 < cu_seqlens.dim[0]; b++) {
    const int64_t from = cu_seqlens[b] > begin ? cu_seqlens[b] : begin,
                  to = cu_seqlens[b + 1] < end ? cu_seqlens[b + 1] : end;
    if (from < to) f(b, from, to);
  }
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
