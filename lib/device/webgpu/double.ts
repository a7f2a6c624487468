/** f64 numbers as pairs of f32: the nearest, and the nearest to what is left. */
export function toPairs(data: Float64Array): Float32Array {
  const pairs = new Float32Array(2 * data.length);
  data.forEach((x, i) => {
    pairs[2 * i] = x;
    pairs[2 * i + 1] = Number.isFinite(pairs[2 * i]) ? x - pairs[2 * i] : 0;
  });
  return pairs;
}

/** The numbers that pairs of f32 add up to. */
export function fromPairs(bytes: ArrayBuffer): Float64Array {
  const pairs = new Float32Array(bytes);
  return Float64Array.from({ length: pairs.length / 2 }, (_, i) => pairs[2 * i] + pairs[2 * i + 1]);
}
