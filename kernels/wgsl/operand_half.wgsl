// What a kernel reads through operand(i), in the dtype that it has: f16, on an adapter without it.
// Two to a word. The widening is exact, and written out: that of unpack2x16float may flush
// denormals.
@group(0) @binding(0) var<storage, read> operands: array<u32>;
fn operand(i: u32) -> f32 {
  let half = (operands[i / 2u] >> (16u * (i % 2u))) & 0xffffu;
  let sign = (half & 0x8000u) << 16u;
  let exponent = (half >> 10u) & 31u;
  let fraction = half & 1023u;
  if (exponent == 0u) { return bitcast<f32>(sign | bitcast<u32>(f32(fraction) * 5.9604644775390625e-8)); } // 2^-24
  return bitcast<f32>(sign | select((exponent + 112u) << 23u, 0x7f800000u, exponent == 31u) | (fraction << 13u));
}
