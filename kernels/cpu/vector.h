// Sixteen lanes of f32, i32 or f64, the same on every ISA: one AVX-512 register, two AVX2, four
// NEON, a plain loop. Every operation is the IEEE one, lane by lane. max(a, b) is a > b ? a : b.
// Row sums join i+8, i+4, i+2, i+1.
//
//   V f32   D f64   I int32   B a mask
#pragma once
#include "native/list/kernel.h"

#if RLHF_VECTOR_AVX512 || RLHF_VECTOR_AVX2
#include <immintrin.h>
#elif RLHF_VECTOR_NEON
#include <arm_neon.h>
#endif

// clang-format off
namespace rlhf::RLHF_ISA {

constexpr int LANES = 16;

// Steps of a register tile in one turn of its loop. A vector of AVX2 has two registers, so a step has 20
// instructions, and 4 more to count. Where another thread shares the core, instructions are the limit.
#if RLHF_VECTOR_AVX2
constexpr int TURN = 8;
#else
constexpr int TURN = 1;
#endif

// The upper half of an f32.
struct bf16 {
  uint16_t bits;
  RLHF_INLINE operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
};

// A whole number added to this has the exponent of its power of two in its lowest bits.
constexpr double EXPONENT_BITS = 6755399441055744.0 + 1023;  // 1.5 2^52
constexpr float EXPONENT_BITS_F = 12582912.0f + 127;  // 1.5 2^23

#if RLHF_VECTOR_AVX512
// ------------------------------------------------------------------------------------------------ AVX-512
struct B { __mmask16 m; };
struct I { __m512i r; };
struct V { __m512 r; };
struct D { __m512d a, b; };
struct BD { __mmask8 a, b; };  // of comparisons in f64

RLHF_INLINE V set(float x) { return {_mm512_set1_ps(x)}; }
RLHF_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
RLHF_INLINE void store(float* p, V v) { _mm512_storeu_ps(p, v.r); }
RLHF_INLINE void stream(float* p, V v) { _mm512_stream_ps(p, v.r); }  // past the caches; p is aligned to 64 bytes
RLHF_INLINE void end_of_stream() { _mm_sfence(); }  // before another thread reads what was streamed
RLHF_INLINE V load(const bf16* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
RLHF_INLINE B first(int n) { return {__mmask16((1u << n) - 1)}; }  // lanes below n, 0 <= n <= 16
RLHF_INLINE V load(const float* p, int n) {
  if (__builtin_constant_p(n) && n >= 16) return load(p);
  return {_mm512_maskz_loadu_ps(first(n).m, p)};
}
RLHF_INLINE void store(float* p, V v, int n) {
  if (__builtin_constant_p(n) && n >= 16) return store(p, v);
  _mm512_mask_storeu_ps(p, first(n).m, v.r);
}
RLHF_INLINE V operator+(V a, V b) { return {_mm512_add_ps(a.r, b.r)}; }
RLHF_INLINE V operator-(V a, V b) { return {_mm512_sub_ps(a.r, b.r)}; }
RLHF_INLINE V operator*(V a, V b) { return {_mm512_mul_ps(a.r, b.r)}; }
RLHF_INLINE V operator/(V a, V b) { return {_mm512_div_ps(a.r, b.r)}; }
RLHF_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.r, b.r, c.r)}; }
RLHF_INLINE V sqrt(V a) { return {_mm512_sqrt_ps(a.r)}; }
RLHF_INLINE V max(V a, V b) { return {_mm512_max_ps(a.r, b.r)}; }
RLHF_INLINE V min(V a, V b) { return {_mm512_min_ps(a.r, b.r)}; }
RLHF_INLINE V nearest(V a) { return {_mm512_roundscale_ps(a.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
RLHF_INLINE B operator<(V a, V b) { return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_LT_OQ)}; }
RLHF_INLINE B operator<=(V a, V b) { return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_LE_OQ)}; }
RLHF_INLINE B operator==(V a, V b) { return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_EQ_OQ)}; }
RLHF_INLINE B isnan(V a) { return {_mm512_cmp_ps_mask(a.r, a.r, _CMP_UNORD_Q)}; }
RLHF_INLINE B operator&(B a, B b) { return {__mmask16(a.m & b.m)}; }
RLHF_INLINE B operator|(B a, B b) { return {__mmask16(a.m | b.m)}; }
RLHF_INLINE B operator!(B a) { return {__mmask16(~a.m)}; }
RLHF_INLINE unsigned bits(B a) { return a.m; }
RLHF_INLINE V select(B c, V yes, V no) { return {_mm512_mask_blend_ps(c.m, no.r, yes.r)}; }

RLHF_INLINE I seti(int32_t x) { return {_mm512_set1_epi32(x)}; }
RLHF_INLINE I load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
RLHF_INLINE void store(int32_t* p, I v) { _mm512_storeu_si512(p, v.r); }
RLHF_INLINE void store_low(uint16_t* p, I v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(v.r)); }  // 0 <= v < 2^16
RLHF_INLINE I iota() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
RLHF_INLINE I operator+(I a, I b) { return {_mm512_add_epi32(a.r, b.r)}; }
RLHF_INLINE I operator-(I a, I b) { return {_mm512_sub_epi32(a.r, b.r)}; }
RLHF_INLINE I operator&(I a, I b) { return {_mm512_and_si512(a.r, b.r)}; }
RLHF_INLINE I operator|(I a, I b) { return {_mm512_or_si512(a.r, b.r)}; }
RLHF_INLINE I operator^(I a, I b) { return {_mm512_xor_si512(a.r, b.r)}; }
template <int n> RLHF_INLINE I shl(I a) { return {_mm512_slli_epi32(a.r, n)}; }
template <int n> RLHF_INLINE I shr(I a) { return {_mm512_srli_epi32(a.r, n)}; }  // logical
template <int n> RLHF_INLINE I sar(I a) { return {_mm512_srai_epi32(a.r, n)}; }
RLHF_INLINE B operator==(I a, I b) { return {_mm512_cmpeq_epi32_mask(a.r, b.r)}; }
RLHF_INLINE B operator<(I a, I b) { return {_mm512_cmplt_epi32_mask(a.r, b.r)}; }
RLHF_INLINE I select(B c, I yes, I no) { return {_mm512_mask_blend_epi32(c.m, no.r, yes.r)}; }
RLHF_INLINE I to_int(V a) { return {_mm512_cvtps_epi32(a.r)}; }  // to nearest even
RLHF_INLINE V to_float(I a) { return {_mm512_cvtepi32_ps(a.r)}; }
RLHF_INLINE I as_int(V a) { return {_mm512_castps_si512(a.r)}; }
RLHF_INLINE V as_float(I a) { return {_mm512_castsi512_ps(a.r)}; }

RLHF_INLINE float sum(V v) {
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v.r), _mm512_extractf32x8_ps(v.r, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
RLHF_INLINE float max(V v) {
  __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v.r), _mm512_extractf32x8_ps(v.r, 1));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

RLHF_INLINE D setd(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
RLHF_INLINE D load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
RLHF_INLINE void store(double* p, D v) { _mm512_storeu_pd(p, v.a), _mm512_storeu_pd(p + 8, v.b); }
RLHF_INLINE D operator+(D a, D b) { return {_mm512_add_pd(a.a, b.a), _mm512_add_pd(a.b, b.b)}; }
RLHF_INLINE D operator-(D a, D b) { return {_mm512_sub_pd(a.a, b.a), _mm512_sub_pd(a.b, b.b)}; }
RLHF_INLINE D operator*(D a, D b) { return {_mm512_mul_pd(a.a, b.a), _mm512_mul_pd(a.b, b.b)}; }
RLHF_INLINE D operator/(D a, D b) { return {_mm512_div_pd(a.a, b.a), _mm512_div_pd(a.b, b.b)}; }
RLHF_INLINE D fma(D a, D b, D c) { return {_mm512_fmadd_pd(a.a, b.a, c.a), _mm512_fmadd_pd(a.b, b.b, c.b)}; }
RLHF_INLINE D widen(V v) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(v.r)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v.r, 1))};
}
RLHF_INLINE D widen(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p)), _mm512_cvtps_pd(_mm256_loadu_ps(p + 8))}; }
RLHF_INLINE BD operator<(D x, D y) { return {_mm512_cmp_pd_mask(x.a, y.a, _CMP_LT_OQ), _mm512_cmp_pd_mask(x.b, y.b, _CMP_LT_OQ)}; }
RLHF_INLINE D select(BD c, D yes, D no) { return {_mm512_mask_blend_pd(c.a, no.a, yes.a), _mm512_mask_blend_pd(c.b, no.b, yes.b)}; }
RLHF_INLINE D select(B c, D yes, D no) { return select(BD{__mmask8(c.m), __mmask8(c.m >> 8)}, yes, no); }
RLHF_INLINE V scale(V x, V n) { return {_mm512_scalef_ps(x.r, n.r)}; }  // x 2^n, n whole, -126 <= n <= 127
RLHF_INLINE D scale(D x, D n) { return {_mm512_scalef_pd(x.a, n.a), _mm512_scalef_pd(x.b, n.b)}; }  // -1022 <= n <= 1023
RLHF_INLINE V narrow(D v) {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(v.a)), _mm512_cvtpd_ps(v.b), 1)};
}
RLHF_INLINE double sum(D v) {
  __m512d s = _mm512_add_pd(v.a, v.b);
  __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(s), _mm512_extractf64x4_pd(s, 1));
  __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
  return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

#elif RLHF_VECTOR_AVX2
// --------------------------------------------------------------------------------------------------- AVX2
struct B { __m256 a, b; };
struct I { __m256i a, b; };
struct V { __m256 a, b; };
struct D { __m256d a, b, c, d; };
struct BD { __m256d a, b, c, d; };

RLHF_INLINE V set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
RLHF_INLINE V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
RLHF_INLINE V load(const bf16* p) {
  const auto eight = [](const bf16* q) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)q)), 16));
  };
  return {eight(p), eight(p + 8)};
}
RLHF_INLINE void store(float* p, V v) { _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b); }
RLHF_INLINE void stream(float* p, V v) { _mm256_stream_ps(p, v.a), _mm256_stream_ps(p + 8, v.b); }
RLHF_INLINE void end_of_stream() { _mm_sfence(); }
RLHF_INLINE I seti(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
RLHF_INLINE I iota() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)}; }
RLHF_INLINE B operator<(I a, I b) {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.a, a.a)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.b, a.b))};
}
RLHF_INLINE B first(int n) { return iota() < seti(n); }  // lanes below n, 0 <= n <= 16
RLHF_INLINE V load(const float* p, int n) {
  if (n >= 16) return load(p);
  B f = first(n);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(f.a)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(f.b))};
}
RLHF_INLINE void store(float* p, V v, int n) {
  if (n >= 16) return store(p, v);  // some cores take twenty cycles for a masked store
  B f = first(n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(f.a), v.a), _mm256_maskstore_ps(p + 8, _mm256_castps_si256(f.b), v.b);
}
RLHF_INLINE V operator+(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
RLHF_INLINE V operator-(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
RLHF_INLINE V operator*(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
RLHF_INLINE V operator/(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
RLHF_INLINE V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
RLHF_INLINE V sqrt(V x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
RLHF_INLINE V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
RLHF_INLINE V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
RLHF_INLINE V nearest(V x) {
  constexpr int even = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, even), _mm256_round_ps(x.b, even)};
}
RLHF_INLINE B operator<(V x, V y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)}; }
RLHF_INLINE B operator<=(V x, V y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ)}; }
RLHF_INLINE B operator==(V x, V y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)}; }
RLHF_INLINE B isnan(V x) { return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)}; }
RLHF_INLINE B operator&(B x, B y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
RLHF_INLINE B operator|(B x, B y) { return {_mm256_or_ps(x.a, y.a), _mm256_or_ps(x.b, y.b)}; }
RLHF_INLINE B operator!(B x) {
  __m256 ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  return {_mm256_xor_ps(x.a, ones), _mm256_xor_ps(x.b, ones)};
}
RLHF_INLINE unsigned bits(B x) { return unsigned(_mm256_movemask_ps(x.a)) | unsigned(_mm256_movemask_ps(x.b)) << 8; }
RLHF_INLINE V select(B c, V yes, V no) { return {_mm256_blendv_ps(no.a, yes.a, c.a), _mm256_blendv_ps(no.b, yes.b, c.b)}; }

RLHF_INLINE I load(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
RLHF_INLINE void store(int32_t* p, I v) { _mm256_storeu_si256((__m256i*)p, v.a), _mm256_storeu_si256((__m256i*)(p + 8), v.b); }
RLHF_INLINE void store_low(uint16_t* p, I v) { _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(_mm256_packus_epi32(v.a, v.b), 0xd8)); }
RLHF_INLINE I operator+(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
RLHF_INLINE I operator-(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
RLHF_INLINE I operator&(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
RLHF_INLINE I operator|(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
RLHF_INLINE I operator^(I x, I y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
template <int n> RLHF_INLINE I shl(I x) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
template <int n> RLHF_INLINE I shr(I x) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }  // logical
template <int n> RLHF_INLINE I sar(I x) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
RLHF_INLINE B operator==(I x, I y) {
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.a, y.a)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(x.b, y.b))};
}
RLHF_INLINE I to_int(V x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }  // to nearest even
RLHF_INLINE V to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
RLHF_INLINE I as_int(V x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
RLHF_INLINE V as_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
RLHF_INLINE I select(B c, I yes, I no) { return as_int(select(c, as_float(yes), as_float(no))); }

RLHF_INLINE float sum(V v) {
  __m256 h = _mm256_add_ps(v.a, v.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
RLHF_INLINE float max(V v) {
  __m256 h = _mm256_max_ps(v.a, v.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

RLHF_INLINE D setd(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x), _mm256_set1_pd(x), _mm256_set1_pd(x)}; }
RLHF_INLINE D load(const double* p) {
  return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4), _mm256_loadu_pd(p + 8), _mm256_loadu_pd(p + 12)};
}
RLHF_INLINE void store(double* p, D v) {
  _mm256_storeu_pd(p, v.a), _mm256_storeu_pd(p + 4, v.b), _mm256_storeu_pd(p + 8, v.c), _mm256_storeu_pd(p + 12, v.d);
}
#define EACH(f) {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)}
RLHF_INLINE D operator+(D x, D y) { return EACH(_mm256_add_pd); }
RLHF_INLINE D operator-(D x, D y) { return EACH(_mm256_sub_pd); }
RLHF_INLINE D operator*(D x, D y) { return EACH(_mm256_mul_pd); }
RLHF_INLINE D operator/(D x, D y) { return EACH(_mm256_div_pd); }
#undef EACH
RLHF_INLINE D fma(D x, D y, D z) {
  return {_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b), _mm256_fmadd_pd(x.c, y.c, z.c),
          _mm256_fmadd_pd(x.d, y.d, z.d)};
}
RLHF_INLINE D widen(V v) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v.a)), _mm256_cvtps_pd(_mm256_extractf128_ps(v.a, 1)),
          _mm256_cvtps_pd(_mm256_castps256_ps128(v.b)), _mm256_cvtps_pd(_mm256_extractf128_ps(v.b, 1))};
}
RLHF_INLINE D widen(const float* p) {  // in half the time of numbers in registers
  return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4)), _mm256_cvtps_pd(_mm_loadu_ps(p + 8)),
          _mm256_cvtps_pd(_mm_loadu_ps(p + 12))};
}
RLHF_INLINE BD operator<(D x, D y) {
  return {_mm256_cmp_pd(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_pd(x.b, y.b, _CMP_LT_OQ), _mm256_cmp_pd(x.c, y.c, _CMP_LT_OQ),
          _mm256_cmp_pd(x.d, y.d, _CMP_LT_OQ)};
}
RLHF_INLINE D select(BD c, D yes, D no) {
  return {_mm256_blendv_pd(no.a, yes.a, c.a), _mm256_blendv_pd(no.b, yes.b, c.b), _mm256_blendv_pd(no.c, yes.c, c.c),
          _mm256_blendv_pd(no.d, yes.d, c.d)};
}
RLHF_INLINE D select(B c, D yes, D no) {
  const auto four = [](__m128 m) { return _mm256_castsi256_pd(_mm256_cvtepi32_epi64(_mm_castps_si128(m))); };
  return select(BD{four(_mm256_castps256_ps128(c.a)), four(_mm256_extractf128_ps(c.a, 1)), four(_mm256_castps256_ps128(c.b)),
                   four(_mm256_extractf128_ps(c.b, 1))}, yes, no);
}
RLHF_INLINE D power_of_two(D n) {
  const auto four = [](__m256d n) {
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(_mm256_add_pd(n, _mm256_set1_pd(EXPONENT_BITS))), 52));
  };
  return {four(n.a), four(n.b), four(n.c), four(n.d)};
}
RLHF_INLINE V narrow(D v) {
  return {_mm256_set_m128(_mm256_cvtpd_ps(v.b), _mm256_cvtpd_ps(v.a)), _mm256_set_m128(_mm256_cvtpd_ps(v.d), _mm256_cvtpd_ps(v.c))};
}
RLHF_INLINE double sum(D v) {
  __m256d h = _mm256_add_pd(_mm256_add_pd(v.a, v.c), _mm256_add_pd(v.b, v.d));
  __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
  return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

#elif RLHF_VECTOR_NEON
// --------------------------------------------------------------------------------------------------- NEON
#define FOUR(e) {{e(0), e(1), e(2), e(3)}}
#define EIGHT(e) {{e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7)}}
struct B { uint32x4_t q[4]; };
struct I { int32x4_t q[4]; };
struct V { float32x4_t q[4]; };
struct D { float64x2_t q[8]; };
struct BD { uint64x2_t q[8]; };

#define UNARY(type, name, f) RLHF_INLINE type name(type x) { return {{f(x.q[0]), f(x.q[1]), f(x.q[2]), f(x.q[3])}}; }
#define BINARY(out, in, name, f) \
  RLHF_INLINE out name(in x, in y) { return {{f(x.q[0], y.q[0]), f(x.q[1], y.q[1]), f(x.q[2], y.q[2]), f(x.q[3], y.q[3])}}; }
RLHF_INLINE V set(float x) { float32x4_t q = vdupq_n_f32(x); return {{q, q, q, q}}; }
RLHF_INLINE V load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
RLHF_INLINE V load(const bf16* p) {
  V r;
  for (int i = 0; i < 4; i++) r.q[i] = vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16((const uint16_t*)p + 4 * i)), 16));
  return r;
}
RLHF_INLINE void store(float* p, V v) { for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, v.q[i]); }
RLHF_INLINE I seti(int32_t x) { int32x4_t q = vdupq_n_s32(x); return {{q, q, q, q}}; }
RLHF_INLINE I load(const int32_t* p) { return {{vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}}; }
RLHF_INLINE void store(int32_t* p, I v) { for (int i = 0; i < 4; i++) vst1q_s32(p + 4 * i, v.q[i]); }
RLHF_INLINE void store_low(uint16_t* p, I v) { for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vmovn_u32(vreinterpretq_u32_s32(v.q[i]))); }
RLHF_INLINE I iota() {
  const int32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(lanes);
}
BINARY(B, I, operator<, vcltq_s32)
BINARY(B, I, operator==, vceqq_s32)
RLHF_INLINE B first(int n) { return iota() < seti(n); }  // lanes below n, 0 <= n <= 16
RLHF_INLINE V load(const float* p, int n) {
  if (n >= 16) return load(p);
  float lanes[16] = {};
  for (int i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}
RLHF_INLINE void store(float* p, V v, int n) {
  if (n >= 16) return store(p, v);
  float lanes[16];
  store(lanes, v);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}
BINARY(V, V, operator+, vaddq_f32)
BINARY(V, V, operator-, vsubq_f32)
BINARY(V, V, operator*, vmulq_f32)
BINARY(V, V, operator/, vdivq_f32)
RLHF_INLINE V fma(V x, V y, V z) {
  return {{vfmaq_f32(z.q[0], x.q[0], y.q[0]), vfmaq_f32(z.q[1], x.q[1], y.q[1]), vfmaq_f32(z.q[2], x.q[2], y.q[2]),
           vfmaq_f32(z.q[3], x.q[3], y.q[3])}};
}
UNARY(V, sqrt, vsqrtq_f32)
UNARY(V, nearest, vrndnq_f32)
BINARY(B, V, operator<, vcltq_f32)
BINARY(B, V, operator<=, vcleq_f32)
BINARY(B, V, operator==, vceqq_f32)
BINARY(B, B, operator&, vandq_u32)
BINARY(B, B, operator|, vorrq_u32)
UNARY(B, operator!, vmvnq_u32)
RLHF_INLINE B isnan(V x) { return !(x == x); }
RLHF_INLINE unsigned bits(B x) {
  uint32_t lanes[16];
  for (int i = 0; i < 4; i++) vst1q_u32(lanes + 4 * i, x.q[i]);
  unsigned r = 0;
  for (int i = 0; i < 16; i++) r |= (lanes[i] & 1u) << i;
  return r;
}
RLHF_INLINE V select(B c, V yes, V no) {
  V r;
  for (int i = 0; i < 4; i++) r.q[i] = vbslq_f32(c.q[i], yes.q[i], no.q[i]);
  return r;
}
RLHF_INLINE I select(B c, I yes, I no) {
  I r;
  for (int i = 0; i < 4; i++) r.q[i] = vbslq_s32(c.q[i], yes.q[i], no.q[i]);
  return r;
}
RLHF_INLINE V max(V a, V b) { return select(b < a, a, b); }
RLHF_INLINE V min(V a, V b) { return select(a < b, a, b); }
BINARY(I, I, operator+, vaddq_s32)
BINARY(I, I, operator-, vsubq_s32)
BINARY(I, I, operator&, vandq_s32)
BINARY(I, I, operator|, vorrq_s32)
BINARY(I, I, operator^, veorq_s32)
template <int n> RLHF_INLINE I shl(I x) { for (auto& q : x.q) q = vshlq_n_s32(q, n); return x; }
template <int n> RLHF_INLINE I shr(I x) {  // logical
  for (auto& q : x.q) q = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(q), n));
  return x;
}
template <int n> RLHF_INLINE I sar(I x) { for (auto& q : x.q) q = vshrq_n_s32(q, n); return x; }
RLHF_INLINE I to_int(V x) {  // to nearest even; what does not fit is INT32_MIN, as on x86
  I r;
  for (int i = 0; i < 4; i++) r.q[i] = vbslq_s32(vcltq_f32(x.q[i], vdupq_n_f32(0x1p31f)), vcvtnq_s32_f32(x.q[i]), vdupq_n_s32(-2147483647 - 1));
  return r;
}
RLHF_INLINE V to_float(I x) { V r; for (int i = 0; i < 4; i++) r.q[i] = vcvtq_f32_s32(x.q[i]); return r; }
RLHF_INLINE I as_int(V x) { I r; for (int i = 0; i < 4; i++) r.q[i] = vreinterpretq_s32_f32(x.q[i]); return r; }
RLHF_INLINE V as_float(I x) { V r; for (int i = 0; i < 4; i++) r.q[i] = vreinterpretq_f32_s32(x.q[i]); return r; }
RLHF_INLINE float sum(V v) {
  float32x4_t q = vaddq_f32(vaddq_f32(v.q[0], v.q[2]), vaddq_f32(v.q[1], v.q[3]));
  float32x2_t d = vadd_f32(vget_low_f32(q), vget_high_f32(q));
  return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
}
RLHF_INLINE float max(V v) {
  float lanes[16];
  store(lanes, v);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
  return lanes[0];
}
RLHF_INLINE D setd(double x) { D r; for (auto& q : r.q) q = vdupq_n_f64(x); return r; }
RLHF_INLINE D load(const double* p) { D r; for (int i = 0; i < 8; i++) r.q[i] = vld1q_f64(p + 2 * i); return r; }
RLHF_INLINE void store(double* p, D v) { for (int i = 0; i < 8; i++) vst1q_f64(p + 2 * i, v.q[i]); }
#define BINARY_D(name, f) RLHF_INLINE D name(D x, D y) { for (int i = 0; i < 8; i++) x.q[i] = f(x.q[i], y.q[i]); return x; }
BINARY_D(operator+, vaddq_f64)
BINARY_D(operator-, vsubq_f64)
BINARY_D(operator*, vmulq_f64)
BINARY_D(operator/, vdivq_f64)
RLHF_INLINE D fma(D x, D y, D z) { for (int i = 0; i < 8; i++) z.q[i] = vfmaq_f64(z.q[i], x.q[i], y.q[i]); return z; }
RLHF_INLINE D widen(V v) {
  D r;
  for (int i = 0; i < 4; i++) r.q[2 * i] = vcvt_f64_f32(vget_low_f32(v.q[i])), r.q[2 * i + 1] = vcvt_high_f64_f32(v.q[i]);
  return r;
}
RLHF_INLINE D widen(const float* p) { return widen(load(p)); }
RLHF_INLINE BD operator<(D x, D y) {
  BD r;
  for (int i = 0; i < 8; i++) r.q[i] = vcltq_f64(x.q[i], y.q[i]);
  return r;
}
RLHF_INLINE D select(BD c, D yes, D no) {
  for (int i = 0; i < 8; i++) no.q[i] = vbslq_f64(c.q[i], yes.q[i], no.q[i]);
  return no;
}
RLHF_INLINE D select(B c, D yes, D no) {
  BD d;
  for (int i = 0; i < 8; i++) {
    const int32x4_t m = vreinterpretq_s32_u32(c.q[i / 2]);  // all bits or none, which the sign spreads
    d.q[i] = vreinterpretq_u64_s64(vmovl_s32(i % 2 ? vget_high_s32(m) : vget_low_s32(m)));
  }
  return select(d, yes, no);
}
RLHF_INLINE D power_of_two(D n) {
  for (auto& q : n.q) q = vreinterpretq_f64_s64(vshlq_n_s64(vreinterpretq_s64_f64(vaddq_f64(q, vdupq_n_f64(EXPONENT_BITS))), 52));
  return n;
}
RLHF_INLINE V narrow(D v) {
  V r;
  for (int i = 0; i < 4; i++) r.q[i] = vcvt_high_f32_f64(vcvt_f32_f64(v.q[2 * i]), v.q[2 * i + 1]);
  return r;
}
RLHF_INLINE double sum(D v) {
  for (int step = 4; step; step /= 2)
    for (int i = 0; i < step; i++) v.q[i] = vaddq_f64(v.q[i], v.q[i + step]);
  return vgetq_lane_f64(v.q[0], 0) + vgetq_lane_f64(v.q[0], 1);
}
#undef UNARY
#undef BINARY
#undef BINARY_D
#undef FOUR
#undef EIGHT

#else
// ------------------------------------------------------------------------- scalar: the living definition
struct B { bool v[16]; };
struct I { int32_t v[16]; };
struct V { float v[16]; };
struct D { double v[16]; };
using BD = B;

#define LANEWISE(out, expression) \
  out r;                          \
  for (int i = 0; i < 16; i++) r.v[i] = expression; \
  return r
RLHF_INLINE V set(float x) { LANEWISE(V, x); }
RLHF_INLINE V load(const float* p) { LANEWISE(V, p[i]); }
RLHF_INLINE V load(const bf16* p) { LANEWISE(V, p[i]); }
RLHF_INLINE void store(float* p, V v) { for (int i = 0; i < 16; i++) p[i] = v.v[i]; }
RLHF_INLINE B first(int n) { LANEWISE(B, i < n); }  // lanes below n, 0 <= n <= 16
RLHF_INLINE V load(const float* p, int n) { LANEWISE(V, i < n ? p[i] : 0.0f); }
RLHF_INLINE void store(float* p, V v, int n) { for (int i = 0; i < n; i++) p[i] = v.v[i]; }
RLHF_INLINE V operator+(V a, V b) { LANEWISE(V, a.v[i] + b.v[i]); }
RLHF_INLINE V operator-(V a, V b) { LANEWISE(V, a.v[i] - b.v[i]); }
RLHF_INLINE V operator*(V a, V b) { LANEWISE(V, a.v[i] * b.v[i]); }
RLHF_INLINE V operator/(V a, V b) { LANEWISE(V, a.v[i] / b.v[i]); }
RLHF_INLINE V fma(V a, V b, V c) { LANEWISE(V, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
RLHF_INLINE V sqrt(V a) { LANEWISE(V, __builtin_sqrtf(a.v[i])); }
RLHF_INLINE V max(V a, V b) { LANEWISE(V, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
RLHF_INLINE V min(V a, V b) { LANEWISE(V, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
RLHF_INLINE V nearest(V a) { LANEWISE(V, __builtin_nearbyintf(a.v[i])); }
RLHF_INLINE B operator<(V a, V b) { LANEWISE(B, a.v[i] < b.v[i]); }
RLHF_INLINE B operator<=(V a, V b) { LANEWISE(B, a.v[i] <= b.v[i]); }
RLHF_INLINE B operator==(V a, V b) { LANEWISE(B, a.v[i] == b.v[i]); }
RLHF_INLINE B isnan(V a) { LANEWISE(B, a.v[i] != a.v[i]); }
RLHF_INLINE B operator&(B a, B b) { LANEWISE(B, a.v[i] && b.v[i]); }
RLHF_INLINE B operator|(B a, B b) { LANEWISE(B, a.v[i] || b.v[i]); }
RLHF_INLINE B operator!(B a) { LANEWISE(B, !a.v[i]); }
RLHF_INLINE unsigned bits(B a) {
  unsigned r = 0;
  for (int i = 0; i < 16; i++) r |= unsigned(a.v[i]) << i;
  return r;
}
RLHF_INLINE V select(B c, V yes, V no) { LANEWISE(V, c.v[i] ? yes.v[i] : no.v[i]); }

RLHF_INLINE I seti(int32_t x) { LANEWISE(I, x); }
RLHF_INLINE I load(const int32_t* p) { LANEWISE(I, p[i]); }
RLHF_INLINE void store(int32_t* p, I v) { for (int i = 0; i < 16; i++) p[i] = v.v[i]; }
RLHF_INLINE void store_low(uint16_t* p, I v) { for (int i = 0; i < 16; i++) p[i] = uint16_t(v.v[i]); }
RLHF_INLINE I iota() { LANEWISE(I, i); }
RLHF_INLINE I operator+(I a, I b) { LANEWISE(I, int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i]))); }
RLHF_INLINE I operator-(I a, I b) { LANEWISE(I, int32_t(uint32_t(a.v[i]) - uint32_t(b.v[i]))); }
RLHF_INLINE I operator&(I a, I b) { LANEWISE(I, a.v[i] & b.v[i]); }
RLHF_INLINE I operator|(I a, I b) { LANEWISE(I, a.v[i] | b.v[i]); }
RLHF_INLINE I operator^(I a, I b) { LANEWISE(I, a.v[i] ^ b.v[i]); }
template <int n> RLHF_INLINE I shl(I a) { LANEWISE(I, int32_t(uint32_t(a.v[i]) << n)); }
template <int n> RLHF_INLINE I shr(I a) { LANEWISE(I, int32_t(uint32_t(a.v[i]) >> n)); }  // logical
template <int n> RLHF_INLINE I sar(I a) { LANEWISE(I, a.v[i] >> n); }
RLHF_INLINE B operator==(I a, I b) { LANEWISE(B, a.v[i] == b.v[i]); }
RLHF_INLINE B operator<(I a, I b) { LANEWISE(B, a.v[i] < b.v[i]); }
RLHF_INLINE I select(B c, I yes, I no) { LANEWISE(I, c.v[i] ? yes.v[i] : no.v[i]); }
RLHF_INLINE int32_t to_int_lane(float x) {  // to nearest even; what does not fit is INT32_MIN, as on x86
  return x >= -2147483648.0f && x < 2147483648.0f ? int32_t(__builtin_nearbyintf(x)) : INT32_MIN;
}
RLHF_INLINE I to_int(V a) { LANEWISE(I, to_int_lane(a.v[i])); }
RLHF_INLINE V to_float(I a) { LANEWISE(V, float(a.v[i])); }
RLHF_INLINE I as_int(V a) { I r; __builtin_memcpy(&r, &a, sizeof r); return r; }
RLHF_INLINE V as_float(I a) { V r; __builtin_memcpy(&r, &a, sizeof r); return r; }
RLHF_INLINE float sum(V v) {
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) v.v[i] += v.v[i + step];
  return v.v[0];
}
RLHF_INLINE float max(V v) {
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) v.v[i] = v.v[i] > v.v[i + step] ? v.v[i] : v.v[i + step];
  return v.v[0];
}
RLHF_INLINE D setd(double x) { LANEWISE(D, x); }
RLHF_INLINE D load(const double* p) { LANEWISE(D, p[i]); }
RLHF_INLINE void store(double* p, D v) { for (int i = 0; i < 16; i++) p[i] = v.v[i]; }
RLHF_INLINE D operator+(D a, D b) { LANEWISE(D, a.v[i] + b.v[i]); }
RLHF_INLINE D operator-(D a, D b) { LANEWISE(D, a.v[i] - b.v[i]); }
RLHF_INLINE D operator*(D a, D b) { LANEWISE(D, a.v[i] * b.v[i]); }
RLHF_INLINE D operator/(D a, D b) { LANEWISE(D, a.v[i] / b.v[i]); }
RLHF_INLINE D fma(D a, D b, D c) { LANEWISE(D, __builtin_fma(a.v[i], b.v[i], c.v[i])); }
RLHF_INLINE BD operator<(D a, D b) { LANEWISE(BD, a.v[i] < b.v[i]); }
RLHF_INLINE D select(B c, D yes, D no) { LANEWISE(D, c.v[i] ? yes.v[i] : no.v[i]); }
RLHF_INLINE D power_of_two(D n) { LANEWISE(D, __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, n.v[i] + EXPONENT_BITS) << 52)); }
RLHF_INLINE D widen(V v) { LANEWISE(D, double(v.v[i])); }
RLHF_INLINE D widen(const float* p) { return widen(load(p)); }
RLHF_INLINE V narrow(D v) { LANEWISE(V, float(v.v[i])); }
RLHF_INLINE double sum(D v) {
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) v.v[i] += v.v[i + step];
  return v.v[0];
}
#undef LANEWISE
#endif

// ------------------------------------------------------------------------------------- on every ISA
#if !RLHF_VECTOR_AVX512 && !RLHF_VECTOR_AVX2
RLHF_INLINE void stream(float* p, V v) { store(p, v); }
RLHF_INLINE void end_of_stream() {}
#endif
RLHF_INLINE V zero() { return set(0.0f); }
RLHF_INLINE V abs(V x) { return as_float(as_int(x) & seti(0x7fffffff)); }
RLHF_INLINE V operator-(V x) { return as_float(as_int(x) ^ seti(int32_t(0x80000000u))); }
#if !RLHF_VECTOR_AVX512
RLHF_INLINE V scale(V x, V n) { return x * as_float(shl<23>(as_int(n + set(EXPONENT_BITS_F)))); }  // x 2^n, n whole, -126 <= n <= 127
RLHF_INLINE D scale(D x, D n) { return x * power_of_two(n); }  // -1022 <= n <= 1023
#endif
RLHF_INLINE V load(const bf16* p, int n) {
  if (n >= LANES) return load(p);
  bf16 lanes[LANES] = {};
  for (int i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}
// to nearest, ties to even; a NaN stays one
RLHF_INLINE void store(bf16* p, V v) {
  const I x = as_int(v), even = x + seti(0x7fff) + (shr<16>(x) & seti(1));
  store_low(reinterpret_cast<uint16_t*>(p), shr<16>(select(isnan(v), x | seti(0x400000), even)));
}
RLHF_INLINE void store(bf16* p, V v, int n) {
  if (n >= LANES) return store(p, v);
  bf16 lanes[LANES];
  store(lanes, v);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}
#if RLHF_VECTOR_AVX2
RLHF_INLINE __m256 half(const float* p) { return _mm256_loadu_ps(p); }
RLHF_INLINE __m256 half(const bf16* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16)); }
RLHF_INLINE __m256 kept(__m256 x) {  // in a register: GCC would read it anew for each multiply-add
  asm("" : "+x"(x));
  return x;
}
#endif
// One step of a register tile: sum[i][j] += y(i) x[j], x being C vectors side by side.
template <int R, int C, class F, class T>
RLHF_INLINE void multiply_add(V (&sum)[R][C], F&& y, const T* x) {
#if RLHF_VECTOR_AVX2
  if (R > 1 && R <= 2 * C) {  // 3 rows of 2 vectors take all of the 16 registers: each half of x is read when its turn comes
    __m256 left[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) left[i] = kept(_mm256_set1_ps(y(i)));
#pragma GCC unroll 8
    for (int h = 0; h < 2 * C; h++) {
      const __m256 right = kept(half(x + 8 * h));
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        __m256& to = h % 2 ? sum[i][h / 2].b : sum[i][h / 2].a;
        to = _mm256_fmadd_ps(left[i], right, to);
      }
    }
    return;
  }
#endif
  V right[C];
#pragma GCC unroll 8
  for (int j = 0; j < C; j++) right[j] = load(x + j * LANES);
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) {
    const V left = set(y(i));
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) sum[i][j] = fma(left, right[j], sum[i][j]);
  }
}
// Calls f(i, n) for each vector of [begin, end), n lanes of it. n is the constant LANES in all but the last, so whole
// vectors need no mask: with masked stores Zen 5 takes up to three times as long.
template <class F>
RLHF_INLINE void each_vector(int64_t begin, int64_t end, F&& f) {
  for (; begin + LANES <= end; begin += LANES) f(begin, LANES);
  if (begin < end) f(begin, int(end - begin));
}
RLHF_INLINE bool any(B b) { return bits(b) != 0; }
RLHF_INLINE bool all(B b) { return bits(b) == 0xffff; }

}  // namespace rlhf::RLHF_ISA
