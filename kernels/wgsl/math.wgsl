// exp, log and their kin, and numbers of twice f32's precision. One definition for every kernel and
// driver.
//
// WGSL lets a compiler reassociate sums, fuse products or not, and assume that there is no NaN or
// infinity. So a result whose rounding error matters passes through opaque(), which no compiler can
// look behind (p.zero is 0 at run time). Products are made exact by splitting their factors, not by
// fma. NaN is tested on bits.
//
//   f32:   exp, exp_diff: <= 1.5 ulp whether products fuse or not;  0 below 2^-126
//   Wide:  x + y as (x, y), |y| <= ulp(x) / 2: sums to 2^-46; exp, expm1, log to 2^-30, which rounds to f32 within
//          0.51 ulp
alias Wide = vec2<f32>;

const LOG2E = 1.44269504f;
const LN2_HIGH = 0.693359375f; // ten bits: a small whole number times it is exact
const LN2_LOW = Wide(-0x1.bd0106p-13f, 0x1.cf79acp-40f);

fn opaque(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ p.zero); }
fn nan() -> f32 { return bitcast<f32>(0x7fc00000u ^ p.zero); }
fn infinity() -> f32 { return bitcast<f32>(0x7f800000u ^ p.zero); }
fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn power_of_two(n: i32) -> f32 { return bitcast<f32>(u32(n + 127) << 23u); } // -126 <= n <= 127

// ---------------------------------------------------------------------------------------------------------------- Wide
fn two_sum(a: f32, b: f32) -> Wide { // Knuth: a + b, exactly
  let s = opaque(a + b);
  let c = opaque(s - a);
  return Wide(s, opaque(a - opaque(s - c)) + opaque(b - c));
}
fn quick_two_sum(a: f32, b: f32) -> Wide { // the same for |a| >= |b|
  let s = opaque(a + b);
  return Wide(s, b - opaque(s - a));
}
fn upper(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u); }
fn two_product(a: f32, b: f32) -> Wide { // Dekker: a b, exactly; halves have twelve bits, so their products are exact
  let product = opaque(a * b);
  let ah = upper(a);
  let bh = upper(b);
  let al = opaque(a - ah);
  let bl = opaque(b - bh);
  let error = opaque(opaque(opaque(opaque(ah * bh) - product) + opaque(ah * bl)) + opaque(al * bh)) + opaque(al * bl);
  return Wide(product, error);
}
fn wide(x: f32) -> Wide { return Wide(x, 0.0); }
fn narrow(x: Wide) -> f32 { return x.x + x.y; }
fn wide_add(a: Wide, b: Wide) -> Wide {
  let s = two_sum(a.x, b.x);
  let t = two_sum(a.y, b.y);
  let u = quick_two_sum(s.x, s.y + t.x);
  return quick_two_sum(u.x, u.y + t.y);
}
fn wide_mul(a: Wide, b: Wide) -> Wide {
  let product = two_product(a.x, b.x);
  return quick_two_sum(product.x, product.y + (a.x * b.y + a.y * b.x));
}
fn wide_div(a: Wide, b: Wide) -> Wide {
  let q = a.x / b.x;
  let rest = wide_add(a, -wide_mul(b, wide(q)));
  return quick_two_sum(q, rest.x / b.x);
}

// ----------------------------------------------------------------------------------------------------------------- exp
// exp(x + e), |e| a rounding error of x: n = nearest(x log2 e), r = x - n ln 2, 2^n (1 + r + r^2
// P(r)), P a Chebyshev fit
fn exp_with_error(x: f32, e: f32) -> f32 {
  if (is_nan(x)) { return x; }
  if (x < -87.3365402f) { return 0.0; }
  if (x > 88.7228394f) { return infinity(); }
  let n = round(x * LOG2E);
  let r = (opaque(x - n * LN2_HIGH) - n * LN2_LOW.x) + e;
  var q = 0.0001989198131397769f;
  q = fma(q, r, 0.0013934541928270264f);
  q = fma(q, r, 0.0083333100242252924f);
  q = fma(q, r, 0.041666456809677876f);
  q = fma(q, r, 0.16666666682534356f);
  q = fma(q, r, 0.5f);
  let k = i32(n);
  return (fma(q * r, r, r) + 1.0f) * power_of_two(k / 2) * power_of_two(k - k / 2);
}
fn own_exp(x: f32) -> f32 { return exp_with_error(x, 0.0); }
// exp(x - m) as if the difference were exact
fn exp_diff(x: f32, m: f32) -> f32 {
  let d = two_sum(x, -m);
  return exp_with_error(d.x, d.y);
}

// (exp(r) - 1 - r - r^2 / 2) / r^3 for |r| <= 0.35
fn exp_tail(r: f32) -> f32 {
  var q = 1.0f / 3628800.0f;
  q = fma(q, r, 1.0f / 362880.0f);
  q = fma(q, r, 1.0f / 40320.0f);
  q = fma(q, r, 1.0f / 5040.0f);
  q = fma(q, r, 1.0f / 720.0f);
  q = fma(q, r, 1.0f / 120.0f);
  q = fma(q, r, 1.0f / 24.0f);
  return fma(q, r, 1.0f / 6.0f);
}
// exp(r) - 1 - r for |r| <= 0.35
fn expm1_less_reduced(r: Wide) -> Wide {
  let square = wide_mul(r, r);
  return wide_add(0.5f * square, wide(square.x * r.x * exp_tail(r.x)));
}
fn wide_exp(x: Wide) -> Wide {
  if (is_nan(x.x)) { return wide(x.x); }
  if (x.x < -87.3f) { return wide(0.0); }
  if (x.x > 88.7f) { return wide(infinity()); }
  let n = round(x.x * LOG2E);
  let r = wide_add(wide_add(two_sum(x.x, -(n * LN2_HIGH)), wide(x.y)), -wide_mul(LN2_LOW, wide(n)));
  let y = wide_add(wide(1.0), wide_add(r, expm1_less_reduced(r)));
  let k = i32(n);
  return y * power_of_two(k / 2) * power_of_two(k - k / 2);
}
// exp(x) - 1 - x, and exp(x) - 1, with their digits where x is small
fn wide_expm1_less(x: Wide) -> Wide {
  if (abs(x.x) < 0.34f) { return expm1_less_reduced(x); }
  if (x.x > 88.7f) { return wide(infinity()); }
  return wide_add(wide_add(wide_exp(x), wide(-1.0)), -x);
}
fn wide_expm1(x: Wide) -> Wide {
  if (abs(x.x) < 0.34f) { return wide_add(x, expm1_less_reduced(x)); }
  if (x.x > 88.7f) { return wide(infinity()); }
  return wide_add(wide_exp(x), wide(-1.0));
}

// log(x) for x >= 2^-126: mantissa m and exponent k, 2 atanh((m - 1) / (m + 1)) + k ln 2
fn wide_log(x: Wide) -> Wide {
  if (is_nan(x.x)) { return wide(x.x); }
  var k = i32(bitcast<u32>(x.x) >> 23u) - 127;
  if (bitcast<f32>((bitcast<u32>(x.x) & 0x7fffffu) | 0x3f800000u) > 1.41421354f) { k = k + 1; }
  let m = x * power_of_two(-(k / 2)) * power_of_two(-(k - k / 2));
  let s = wide_div(two_sum(opaque(m.x - 1.0f), m.y), wide_add(two_sum(m.x, 1.0), wide(m.y)));
  let z = s.x * s.x;
  var q = 1.0f / 13.0f;
  q = fma(q, z, 1.0f / 11.0f);
  q = fma(q, z, 1.0f / 9.0f);
  q = fma(q, z, 1.0f / 7.0f);
  q = fma(q, z, 1.0f / 5.0f);
  q = fma(q, z, 1.0f / 3.0f);
  let n = f32(k);
  let whole = wide_add(wide(n * LN2_HIGH), wide_mul(LN2_LOW, wide(n)));
  return wide_add(whole, 2.0f * wide_add(s, wide(s.x * z * q)));
}
// log(1 + x) for x >= 0, small or not
fn wide_log1p(x: Wide) -> Wide { return wide_log(wide_add(wide(1.0), x)); }
