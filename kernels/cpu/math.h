// exp, log and their kin, one definition each. They use + - * / fma sqrt, selects and integer
// operations alone, so the bits are the same on every ISA. Coefficients are Chebyshev fits, in 40
// digits, of the functions on the reduced range.
//
//   V exp         n = nearest(x log2 e), r = x - n ln 2 in two parts, 2^n (1 + r + r^2 P(r)); 0 below 2^-126; <= 1 ulp
//   V exp_below   the same up to 88
//   exp_diff      exp((x - m) t) for x <= m, rounding errors carried into r
//   V log         mantissa and exponent in f64, 2 atanh((m-1)/(m+1)), rounded once; <= 0.51 ulp
//   V expm1, tanh, sincos, erf: the critical part in f64;  log1p: f64 lane by lane
//   double exp, log, log1p, expm1, cos, pow: <= 2 ulp
//   D exp_below   the bits of exp, up to 709;  D log1p: 0 to 1
#pragma once
#include "kernels/cpu/vector.h"

// Functions are part of their callers where a vector is a register or a few; where it is sixteen numbers in memory,
// they are called: as fast there, and what uses many of them compiles in a fifth to two thirds of the time.
#if RLHF_VECTOR_AVX512 || RLHF_VECTOR_AVX2 || RLHF_VECTOR_NEON
#define RLHF_FUNCTION RLHF_INLINE
#else
#define RLHF_FUNCTION inline __attribute__((noinline))
#endif

namespace rlhf::RLHF_ISA {

// ------------------------------------------------------------------------------------------------- double
RLHF_INLINE double bits_to_double(int64_t bits) {
  double x;
  __builtin_memcpy(&x, &bits, 8);
  return x;
}
RLHF_INLINE int64_t double_to_bits(double x) {
  int64_t bits;
  __builtin_memcpy(&bits, &x, 8);
  return bits;
}
RLHF_INLINE double power_of_two(int64_t n) { return bits_to_double((n + 1023) << 52); }  // -1022 <= n <= 1023

constexpr double LOG2E = 1.4426950408889634, LN2_HIGH = 0.693147180369123816490, LN2_LOW = 1.90821492927058770002e-10;
constexpr double MAGIC = 6755399441055744.0;  // 1.5 2^52: adding and taking it off rounds to nearest

template <class T>  // double, or sixteen of them
RLHF_INLINE T number(double x);
template <>
RLHF_INLINE double number<double>(double x) {
  return x;
}
template <>
RLHF_INLINE D number<D>(double x) {
  return setd(x);
}
RLHF_INLINE double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }

// c[0] x^(n-1) + ... + c[n-1]
template <class T, int n>
RLHF_INLINE T polynomial(const double (&c)[n], T x) {
  T p = number<T>(c[0]);
#pragma GCC unroll 16
  for (int i = 1; i < n; i++) p = fma(p, x, number<T>(c[i]));
  return p;
}

// exp(r) - 1 for |r| <= 0.35: Taylor, whose remainder is below 2^-56
template <class T>
RLHF_INLINE T expm1_reduced(T r) {
  constexpr double c[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
      1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5};
  return fma(polynomial(c, r) * r, r, r);
}
RLHF_FUNCTION double exp(double x) {
  if (x != x) return x;
  if (x > 709.782712893384) return __builtin_inf();
  if (x < -708.0) return 0;
  const double n = (x * LOG2E + MAGIC) - MAGIC;
  const double r = __builtin_fma(-n, LN2_LOW, __builtin_fma(-n, LN2_HIGH, x));
  const int64_t k = int64_t(n), half = k >> 1;
  return (1 + expm1_reduced(r)) * power_of_two(half) * power_of_two(k - half);
}
RLHF_FUNCTION double expm1(double x) {
  if (x != x) return x;
  if (x > 709.782712893384) return __builtin_inf();
  if (x < -40) return -1;
  const double n = (x * LOG2E + MAGIC) - MAGIC;
  const double r = __builtin_fma(-n, LN2_LOW, __builtin_fma(-n, LN2_HIGH, x));
  const int64_t k = int64_t(n), half = k >> 1;
  const double e = expm1_reduced(r);
  if (k == 0) return e;
  if (k > 60) return (1 + e) * power_of_two(half) * power_of_two(k - half);
  const double scale = power_of_two(k);
  return __builtin_fma(e, scale, scale - 1);
}
// log((1 + s)/(1 - s)) - 2s = 2 (s^3/3 + s^5/5 + ...), for |s| <= 0.172
RLHF_INLINE double atanh_tail(double s) {
  const double z = s * s;
  double p = 1.0 / 23;
  p = __builtin_fma(p, z, 1.0 / 21);
  p = __builtin_fma(p, z, 1.0 / 19);
  p = __builtin_fma(p, z, 1.0 / 17);
  p = __builtin_fma(p, z, 1.0 / 15);
  p = __builtin_fma(p, z, 1.0 / 13);
  p = __builtin_fma(p, z, 1.0 / 11);
  p = __builtin_fma(p, z, 1.0 / 9);
  p = __builtin_fma(p, z, 1.0 / 7);
  p = __builtin_fma(p, z, 1.0 / 5);
  p = __builtin_fma(p, z, 1.0 / 3);
  return 2 * s * z * p;
}
RLHF_FUNCTION double log(double x) {
  if (x != x || x < 0) return __builtin_nan("");
  if (x == 0) return -__builtin_inf();
  if (x == __builtin_inf()) return x;
  int64_t k = 0;
  if (x < 2.2250738585072014e-308) x = x * 0x1p54, k = -54;
  int64_t bits = double_to_bits(x);
  k += (bits >> 52) - 1023;
  double m = bits_to_double((bits & 0xfffffffffffffll) | 0x3ff0000000000000ll);
  if (m > 1.4142135623730951) m = m * 0.5, k++;
  const double s = (m - 1) / (m + 1), n = double(k);
  return __builtin_fma(n, LN2_HIGH, 2 * s + (atanh_tail(s) + n * LN2_LOW));
}
RLHF_FUNCTION double log1p(double x) {
  if (x != x || x < -1) return __builtin_nan("");
  if (x == -1 || x == __builtin_inf()) return log(1 + x);
  const double u = 1 + x;
  if (u > 0.75 && u < 1.4) {
    const double s = x / (2 + x);
    return 2 * s + atanh_tail(s);
  }
  const double lost = u > 1 ? 1 - (u - x) : x - (u - 1);  // what rounding 1 + x took
  return log(u) + lost / u;
}
// cos by quadrants; good to |x| < 1e6
RLHF_FUNCTION double cos(double x) {
  if (x != x || x - x != 0) return __builtin_nan("");
  const double n = (x * 0.63661977236758138 + MAGIC) - MAGIC;
  double r = __builtin_fma(-n, 1.5707963267341256, x);
  r = __builtin_fma(-n, 6.0771005065061922e-11, r);
  const int64_t quadrant = int64_t(n) & 3;
  const double z = r * r;
  double c = 1.0 / 20922789888000.0, s = -1.0 / 1307674368000.0;
  c = __builtin_fma(c, z, -1.0 / 87178291200.0), s = __builtin_fma(s, z, 1.0 / 6227020800.0);
  c = __builtin_fma(c, z, 1.0 / 479001600.0), s = __builtin_fma(s, z, -1.0 / 39916800.0);
  c = __builtin_fma(c, z, -1.0 / 3628800.0), s = __builtin_fma(s, z, 1.0 / 362880.0);
  c = __builtin_fma(c, z, 1.0 / 40320.0), s = __builtin_fma(s, z, -1.0 / 5040.0);
  c = __builtin_fma(c, z, -1.0 / 720.0), s = __builtin_fma(s, z, 1.0 / 120.0);
  c = __builtin_fma(c, z, 1.0 / 24.0), s = __builtin_fma(s, z, -1.0 / 6.0);
  c = __builtin_fma(c, z, -0.5), s = __builtin_fma(s * z, r, r);
  c = __builtin_fma(c, z, 1.0);
  const double y = quadrant & 1 ? s : c;
  return quadrant == 1 || quadrant == 2 ? -y : y;
}
// x^y for x > 0; exact products where y is a small whole number
RLHF_FUNCTION double pow(double x, double y) {
  if (y == double(int64_t(y)) && y >= 0 && y <= 1048576) {
    double result = 1;
    for (int64_t n = int64_t(y); n; n >>= 1, x = x * x)
      if (n & 1) result = result * x;
    return result;
  }
  if (x == 0) return y > 0 ? 0 : __builtin_inf();
  return exp(y * log(x));
}
// ------------------------------------------------------------------------------------------------ sixteen f64
// n = nearest(x log2 e), r = x - n ln 2
struct WideReduction {
  D n, r;
  RLHF_FUNCTION explicit WideReduction(D x) {
    n = (x * setd(LOG2E) + setd(MAGIC)) - setd(MAGIC);
    r = fma(n, setd(-LN2_LOW), fma(n, setd(-LN2_HIGH), x));
  }
};
RLHF_FUNCTION D exp_below(D x, const WideReduction& a) {  // for x up to 709
  return select(x < setd(-708), setd(0), scale(setd(1) + expm1_reduced(a.r), a.n));
}
RLHF_INLINE D exp_below(D x) { return exp_below(x, WideReduction(x)); }
// for 0 <= x <= 1: 2 (s + s^3/3 + ...), s = x/(2 + x), the rest of the series fitted up to s = 1/3
RLHF_FUNCTION D log1p(D x) {
  constexpr double c[] = {0.084353503305486047, 0.0516133463524954095, 0.067511712358785502, 0.0768663743817900115,
      0.0909113055420987315, 0.111111062789648563, 0.142857143383304975, 0.199999999997800644, 0.333333333333334843};
  const D s = x / (setd(2) + x), z = s * s, half = fma(s * z, polynomial(c, z), s);
  return half + half;
}

// ------------------------------------------------------------------------------------------------ sixteen f32
constexpr float LN2F_HIGH = 0.693359375f, LN2F_LOW = -2.12194440e-4f, LOG2EF = 1.44269504f;

RLHF_INLINE V power_of_two(I n) { return as_float(shl<23>(n + seti(127))); }  // -126 <= n <= 127

// P(r) r of exp(r) = 1 + r + r^2 P(r), |r| <= 0.35
RLHF_FUNCTION V exp_tail(V r) {
  V p = set(0.0001989198131397769f);
  p = fma(p, r, set(0.0013934541928270264f));
  p = fma(p, r, set(0.0083333100242252924f));
  p = fma(p, r, set(0.041666456809677876f));
  p = fma(p, r, set(0.16666666682534356f));
  return fma(p, r, set(0.5f)) * r;
}

constexpr float EXP_LEAST = -87.3365402f;  // log 2^-126

// n = nearest(x log2 e), r = x - n ln 2; *e, if given, is a rounding error of x
struct Reduction {
  V n, r;
  RLHF_FUNCTION explicit Reduction(V x, const V* e = nullptr) {
    n = nearest(x * set(LOG2EF));
    r = fma(n, set(-LN2F_LOW), fma(n, set(-LN2F_HIGH), x));
    if (e) r = r + *e;
  }
  RLHF_INLINE Reduction(V n, V r) : n(n), r(r) {}
};

// q = exp(x) 2^-n = 1 + r + r^2 P(r)
struct Reduced : Reduction {
  V tail, q;
  RLHF_INLINE explicit Reduced(const Reduction& a) : Reduction(a) {
    tail = exp_tail(r), q = fma(tail, r, r) + set(1.0f);
  }
  RLHF_INLINE explicit Reduced(V x, const V* e = nullptr) : Reduced(Reduction(x, e)) {}
  RLHF_INLINE V excess(V x, V y) const {
    return select(n == zero(), tail * r, (y - set(1.0f)) - x);
  }  // y - 1 - x without loss of digits near 0
};

RLHF_FUNCTION V exp(V x, V* excess = nullptr) {
  const V most = set(89.0f);  // log of the largest is 88.72
  const Reduced a(min(most, x));  // in this order NaN stays NaN
  const I k = to_int(a.n), half = sar<1>(k);
  const V y = select(x < set(EXP_LEAST), zero(), a.q * power_of_two(half) * power_of_two(k - half));
  if (excess) *excess = a.excess(x, y);
  return y;
}
// The same for |x| <= 87 or NaN, where nothing can leave the range.
RLHF_FUNCTION V exp_within(V x, const Reduction& reduction, V* excess) {
  const Reduced a(reduction);
  const V y = scale(a.q, a.n);
  if (excess) *excess = a.excess(x, y);
  return y;
}
RLHF_INLINE V exp_within(V x, V* excess = nullptr) { return exp_within(x, Reduction(x), excess); }
RLHF_FUNCTION V exp_below(V x, const Reduction& reduction) {
  const Reduced a(reduction);
  return select(x < set(EXP_LEAST), zero(), scale(a.q, a.n));
}
RLHF_INLINE V exp_below(V x) { return exp_below(x, Reduction(x)); }

// of x - m, its rounding error carried into r
RLHF_FUNCTION Reduction reduce_diff(V x, V m) {
  const V d = x - m, back = d - x, e = (x - (d - back)) - (m + back);  // Knuth's two-sum
  return Reduction(d, &e);
}
// of (x - m) t, the rounding errors of both steps carried into r
RLHF_FUNCTION Reduction reduce_diff(V x, V m, V t) {
  const V d = x - m, back = d - x, e = (x - (d - back)) - (m + back), y = d * t, lost = fma(d, t, -y) + e * t;
  return Reduction(y, &lost);
}
// exp((x - m) t) for x <= m as if the exponent were exact: 1 where x == m, 0 where x is -inf. The difference is scaled,
// not its terms, so that nothing overflows that is not 0 in the end.
RLHF_INLINE V exp_diff(V x, V m) { return exp_below(x - m, reduce_diff(x, m)); }
RLHF_INLINE V exp_diff(V x, V m, V t) { return exp_below((x - m) * t, reduce_diff(x, m, t)); }

RLHF_FUNCTION V log(V x) {
  const B tiny = x < set(1.17549435e-38f);
  const V scaled = select(tiny, x * set(16777216.0f), x);
  const I bits = as_int(scaled);
  I k = sar<23>(bits) - seti(127);
  V m = as_float((bits & seti(0x7fffff)) | seti(0x3f800000));
  const B large = set(1.41421354f) < m;
  m = select(large, m * set(0.5f), m);
  k = k + select(large, seti(1), seti(0)) - select(tiny, seti(24), seti(0));
  const D n = widen(to_float(k)), w = widen(m), one = setd(1);
  const D s = (w - one) / (w + one), z = s * s;
  D p = setd(1.0 / 13);
  p = fma(p, z, setd(1.0 / 11));
  p = fma(p, z, setd(1.0 / 9));
  p = fma(p, z, setd(1.0 / 7));
  p = fma(p, z, setd(1.0 / 5));
  p = fma(p, z, setd(1.0 / 3));
  p = fma(p * z, s, s);
  V y = narrow(fma(n, setd(0.69314718055994531), p + p));
  y = select(x == set(__builtin_inff()), x, y);
  y = select(x == zero(), set(-__builtin_inff()), y);
  y = select(x < zero(), set(__builtin_nanf("")), y);
  return select(isnan(x), x, y);
}

// exp(x) - 1 in f64, for f32 x
RLHF_FUNCTION D expm1_wide(V x) {
  const V clamped = min(max(x, set(-87.0f)), set(88.7228394f));
  const V n = nearest(clamped * set(LOG2EF));
  const D w = widen(n), r = fma(w, setd(-LN2_LOW), fma(w, setd(-LN2_HIGH), widen(clamped)));
  D p = setd(1.0 / 3628800);
  p = fma(p, r, setd(1.0 / 362880));
  p = fma(p, r, setd(1.0 / 40320));
  p = fma(p, r, setd(1.0 / 5040));
  p = fma(p, r, setd(1.0 / 720));
  p = fma(p, r, setd(1.0 / 120));
  p = fma(p, r, setd(1.0 / 24));
  p = fma(p, r, setd(1.0 / 6));
  p = fma(p, r, setd(0.5));
  p = fma(p * r, r, r);
  const I k = to_int(n), half = sar<1>(k);
  const D scale = widen(power_of_two(half)) * widen(power_of_two(k - half));
  return fma(p, scale, scale - setd(1));
}
RLHF_FUNCTION V expm1(V x) {
  V y = narrow(expm1_wide(x));
  y = select(set(88.7228394f) < x, set(__builtin_inff()), y);
  y = select(abs(x) < set(1e-30f), x, y);
  return select(isnan(x), x, y);
}
RLHF_FUNCTION V tanh(V x) {
  const V a = min(abs(x), set(20.0f));
  const D t = expm1_wide(a + a);
  const V y = narrow(t / (t + setd(2)));
  const V signed_y = as_float(as_int(y) | (as_int(x) & seti(int32_t(0x80000000u))));
  return select(isnan(x), x, signed_y);
}
// 1 / (1 + exp(-x)), and that of -x where it is asked for
RLHF_FUNCTION V sigmoid(V x, V* of_minus = nullptr) {
  const V least = set(-87.3365402f), minus = -abs(x), e = select(minus < least, zero(), exp_within(minus)),
          one = set(1.0f), sum = one + e;
  const B negative = x < zero();
  if (of_minus) *of_minus = select(negative, one, e) / sum;
  return select(negative, e, one) / sum;
}

template <class F>
RLHF_INLINE V lanewise(V x, F&& f) {  // f in f64 on each lane
  float lanes[LANES];
  store(lanes, x);
  for (int i = 0; i < LANES; i++) lanes[i] = float(f(double(lanes[i])));
  return load(lanes);
}
RLHF_FUNCTION V log1p(V x) {
  return lanewise(x, [](double y) { return log1p(y); });
}
// erfc(x) = t exp(-x^2 + g(t)), t = 1 / (1 + x/2), for x >= 0.5 (Press et al. 1992, g refitted); |x| < 0.5: Taylor,
// (-1)^k x^(2k+1) / (k! (2k+1))
RLHF_FUNCTION V erf(V narrow_x) {
  constexpr double taylor[] = {-1 / 6894720.0, 1 / 685440.0, -1 / 75600.0, 1 / 9360.0, -1 / 1320.0, 1 / 216.0,
      -1 / 42.0, 1 / 10.0, -1 / 3.0, 1.0};
  constexpr double g[] = {0.18160513475234548, -1.7742153260230882, 7.8530820378583222, -20.717908156929874,
      36.055768892691734, -43.348835465549466, 36.927009797880583, -22.946019909425923, 10.936695173210958,
      -4.007490658480246, 0.92044953188240657, -0.3015794019176219, 0.11492450509574627, 0.37183794382599518,
      1.0001934826283552, -1.2655175814997767};
  const D x = widen(narrow_x), a = select(x < setd(0), setd(0) - x, x), z = x * x;
  const D t = setd(1) / fma(setd(0.5), a, setd(1));
  const D y = setd(1) - t * exp_below(polynomial(g, t) - z);
  return narrow(
      select(a < setd(0.5), setd(1.1283791670955126) * x * polynomial(taylor, z), select(x < setd(0), setd(0) - y, y)));
}
RLHF_INLINE V log_sigmoid(V x) { return min(x, zero()) - log1p(exp(-abs(x))); }

// sin and cos of an angle up to 1e6: reduced in f64, polynomials in f32
RLHF_FUNCTION void sincos(V x, V& s, V& c) {
  const V n = nearest(x * set(0.636619772f));
  const D w = widen(n);
  const V r = narrow(fma(w, setd(-6.0771005065061922e-11), fma(w, setd(-1.5707963267341256), widen(x))));
  const V z = r * r;
  V p = set(2.7243781409461229e-6f), q = set(-2.7295830827614616e-7f);
  p = fma(p, z, set(-0.00019840038872556748f)), q = fma(q, z, set(2.4800560429914503e-5f));
  p = fma(p, z, set(0.0083333317852176954f)), q = fma(q, z, set(-0.0013888887597327811f));
  p = fma(p, z, set(-0.16666666663622832f)), q = fma(q, z, set(0.041666666664127212f));
  p = fma(p * z, r, r), q = fma(q * z, z, fma(z, set(-0.5f), set(1.0f)));
  const I quadrant = to_int(n);
  const B odd = (quadrant & seti(1)) == seti(1);
  const I sign = seti(int32_t(0x80000000u));
  const V flip_s = as_float(shl<30>(quadrant) & sign), flip_c = as_float(shl<30>(quadrant + seti(1)) & sign);
  s = as_float(as_int(select(odd, q, p)) ^ as_int(flip_s));
  c = as_float(as_int(select(odd, p, q)) ^ as_int(flip_c));
}

// one number, with the bits of a lane
RLHF_INLINE float first_lane(V v) {
  float lanes[LANES];
  store(lanes, v);
  return lanes[0];
}
RLHF_INLINE float exp(float x) { return first_lane(exp(set(x))); }
RLHF_INLINE float log(float x) { return first_lane(log(set(x))); }
RLHF_INLINE float expm1(float x) { return first_lane(expm1(set(x))); }

}  // namespace rlhf::RLHF_ISA
