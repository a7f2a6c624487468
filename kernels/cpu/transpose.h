// to[j][i] = from[i][j] for blocks of 16 x 16, through registers.
#pragma once
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {

#if RLHF_VECTOR_AVX512 || RLHF_VECTOR_AVX2
// Four blocks of 8 x 8; rows i and i + 4 meet in one register as they are loaded. Rows of `to` are written from the
// top, each with its upper lanes first, so that they may be less than 16 apart: what runs over is written again. (Four
// rounds of vpermt2ps over whole registers take twice the time on Zen 4: 256 shuffles of 512 bits to 64 of 256.)
RLHF_INLINE void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int block = 0; block < 4; block++) {
    const int top = block & 1 ? 0 : 8, left = block & 2 ? 8 : 0;
    const float* in = from + top * from_row + left;
    float* out = to + left * to_row + top;
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++, in += 4, out += 4 * to_row) {
      __m256 x[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
        x[i] = _mm256_insertf128_ps(
            _mm256_castps128_ps256(_mm_loadu_ps(in + i * from_row)), _mm_loadu_ps(in + (i + 4) * from_row), 1);
      const __m256 a = _mm256_unpacklo_ps(x[0], x[1]), b = _mm256_unpackhi_ps(x[0], x[1]);
      const __m256 c = _mm256_unpacklo_ps(x[2], x[3]), d = _mm256_unpackhi_ps(x[2], x[3]);
      _mm256_storeu_ps(out, _mm256_shuffle_ps(a, c, 0x44));
      _mm256_storeu_ps(out + to_row, _mm256_shuffle_ps(a, c, 0xee));
      _mm256_storeu_ps(out + 2 * to_row, _mm256_shuffle_ps(b, d, 0x44));
      _mm256_storeu_ps(out + 3 * to_row, _mm256_shuffle_ps(b, d, 0xee));
    }
  }
}

#if RLHF_VECTOR_AVX2
RLHF_INLINE void transpose(__m256 (&x)[8]) {
  __m256 y[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2)
    y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]), y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44), x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
    x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44), x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m256 low = x[i], high = x[i + 4];
    x[i] = _mm256_permute2f128_ps(low, high, 0x20), x[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
  }
}
#endif

#elif RLHF_VECTOR_NEON
RLHF_INLINE void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 16; j += 4) {
      const float* in = from + i * from_row + j;
      float* out = to + j * to_row + i;
      const float32x4x2_t x = vtrnq_f32(vld1q_f32(in), vld1q_f32(in + from_row));
      const float32x4x2_t y = vtrnq_f32(vld1q_f32(in + 2 * from_row), vld1q_f32(in + 3 * from_row));
      vst1q_f32(out, vcombine_f32(vget_low_f32(x.val[0]), vget_low_f32(y.val[0])));
      vst1q_f32(out + to_row, vcombine_f32(vget_low_f32(x.val[1]), vget_low_f32(y.val[1])));
      vst1q_f32(out + 2 * to_row, vcombine_f32(vget_high_f32(x.val[0]), vget_high_f32(y.val[0])));
      vst1q_f32(out + 3 * to_row, vcombine_f32(vget_high_f32(x.val[1]), vget_high_f32(y.val[1])));
    }
}

#else
RLHF_INLINE void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int j = 0; j < 16; j++)
    for (int i = 0; i < 16; i++) to[j * to_row + i] = from[i * from_row + j];
}
#endif

RLHF_INLINE void transpose(const bf16* from, int64_t from_row, float* to, int64_t to_row) {
  float block[LANES * LANES];
  for (int i = 0; i < LANES; i++) store(block + i * LANES, load(from + i * from_row));
  transpose(block, LANES, to, to_row);
}

// rows x columns, any sizes: to[j][i] = from[i][j]
template <class T>
RLHF_INLINE void transpose(const T* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; i += LANES)
    for (int64_t j = 0; j < columns; j += LANES) {
      const T* in = from + i * from_row + j;
      float* out = to + j * to_row + i;
      if (i + LANES <= rows && j + LANES <= columns) {
        transpose(in, from_row, out, to_row);
        continue;
      }
      for (int64_t c = 0; c < LANES && j + c < columns; c++)
        for (int64_t r = 0; r < LANES && i + r < rows; r++) out[c * to_row + r] = in[r * from_row + c];
    }
}

}  // namespace rlhf::RLHF_ISA
