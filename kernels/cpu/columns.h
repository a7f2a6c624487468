// Sums over tokens, one chain per column. A few lines of a row go abreast, so that a walk over all
// rows touches more than one line of every page.
#pragma once
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int ABREAST = 4;

// f(j) for each of the vectors abreast
template <class F>
RLHF_INLINE void abreast(F&& f) {
#pragma GCC unroll 4
  for (int j = 0; j < ABREAST; j++) f(j);
}

// f(first column, columns of each vector that are there), over [begin, end)
template <class F>
RLHF_INLINE void each_abreast(int64_t begin, int64_t end, F&& f) {
  for (int64_t i = begin; i < end; i += ABREAST * LANES) {
    int n[ABREAST];
    abreast([&](int j) {
      const int64_t left = end - i - j * LANES;
      n[j] = left < 0 ? 0 : left < LANES ? int(left) : LANES;
    });
    f(i, n);
  }
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
