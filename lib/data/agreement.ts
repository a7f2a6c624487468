/**
 * Krippendorff's alpha of values at interval level (Krippendorff 2011, "Computing Krippendorff's
 * Alpha-Reliability"): 1 where annotators agree, 0 where they agree as by chance; undefined where
 * no unit has two values or all values are the same.
 *
 * alpha = 1 - Do / De, Do = 1/n sum over units of sum_{i != j} (v_i - v_j)^2 / (m - 1), De = 1/(n
 * (n - 1)) sum over all i != j
 *
 * @param units the values that annotators gave to each thing judged: m of a unit, n in those units
 *   with more than one
 */
export function krippendorff(units: Iterable<readonly number[]>): number | undefined {
  const agreement = new Agreement();
  for (const values of units) agreement.count(values, 1);
  return agreement.alpha;
}

/**
 * Krippendorff's alpha of units that come and go, from sums alone. The sums of halves, which labels
 * are, are exact in any order.
 */
export class Agreement {
  private values = 0;
  private sum = 0;
  private sumSquared = 0;
  // sums over i != j of (v_i - v_j)^2 of all units with so many values
  private readonly within = new Map<number, number>();

  /** @param sign 1 for a unit that comes, -1 for one that goes */
  count(values: readonly number[], sign: 1 | -1): void {
    const m = values.length;
    if (m < 2) return;
    let [sum, sumSquared] = [0, 0];
    for (const value of values) {
      sum += value;
      sumSquared += value * value;
    }
    this.values += sign * m;
    this.sum += sign * sum;
    this.sumSquared += sign * sumSquared;
    this.within.set(m, (this.within.get(m) ?? 0) + sign * squares(m, sum, sumSquared));
  }

  get alpha(): number | undefined {
    const between = squares(this.values, this.sum, this.sumSquared) / (this.values - 1);
    let within = 0;
    for (const [m, sum] of [...this.within].sort(([a], [b]) => a - b)) within += sum / (m - 1);
    return between > 0 ? 1 - within / between : undefined;
  }
}

/** Sum over i != j of (v_i - v_j)^2, for values of one size: those of labels. */
const squares = (count: number, sum: number, sumSquared: number) => 2 * (count * sumSquared - sum * sum);
