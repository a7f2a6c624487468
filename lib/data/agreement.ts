/**
 * Krippendorff's alpha of values at interval level (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"): 1 where
 * annotators agree, 0 where they agree as by chance; undefined where no unit has two values or all values are the same.
 *
 *   alpha = 1 - Do / De,   Do = 1/n sum over units of sum_{i != j} (v_i - v_j)^2 / (m - 1),   De = 1/(n (n - 1)) sum over all i != j
 *
 * @param units the values that annotators gave to each thing judged: m of a unit, n in those units with more than one
 */
export function krippendorff(units: Iterable<readonly number[]>): number | undefined {
  const all: number[] = [];
  let within = 0;
  for (const values of units) {
    if (values.length < 2) continue;
    within += squares(values) / (values.length - 1);
    all.push(...values);
  }
  const between = squares(all) / (all.length - 1);
  return between > 0 ? 1 - within / between : undefined;
}

/** Sum over i != j of (v_i - v_j)^2, for values of one size: those of labels. */
function squares(values: readonly number[]): number {
  let sum = 0;
  let sumSquared = 0;
  for (const value of values) {
    sum += value;
    sumSquared += value * value;
  }
  return 2 * (values.length * sumSquared - sum * sum);
}
