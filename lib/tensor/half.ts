/** The bits of the f16 nearest to each number as f32, ties to even; a NaN stays one. */
export function toHalf(numbers: ArrayLike<number>): Uint16Array {
  const words = new Uint32Array(Float32Array.from(numbers).buffer);
  return Uint16Array.from(words, (word) => {
    const sign = (word >>> 16) & 0x8000;
    const size = word & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;
    if (size >= 0x477ff000) return sign | 0x7c00; // from the middle between the largest and what would follow it
    if (size >= 0x38800000) return sign | ((size + 0xfff + ((size >>> 13) & 1) - 0x38000000) >>> 13);
    const steps = new Float32Array(Uint32Array.of(size).buffer)[0] * 2 ** 24; // subnormal
    const [down, rest] = [Math.floor(steps), steps % 1];
    return sign | (rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down);
  });
}

/** f16 numbers, given by their bits. */
export function fromHalf(bits: Uint16Array): Float32Array {
  const words = new Uint32Array(bits.length);
  const values = new Float32Array(words.buffer);
  for (let i = 0; i < bits.length; i++) {
    const sign = (bits[i] & 0x8000) << 16;
    const exponent = (bits[i] >>> 10) & 0x1f;
    const fraction = bits[i] & 0x3ff;
    if (exponent === 0) {
      values[i] = fraction * 2 ** -24; // subnormal, or zero
      words[i] |= sign;
    } else words[i] = sign | ((exponent === 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
  }
  return values;
}
