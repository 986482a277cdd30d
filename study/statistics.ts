/** The mean of a sample with its 95 % confidence interval. */
export interface Interval {
  mean: number
  low: number
  high: number
  /** Size of the sample. */
  count: number
}

/** A paired t-test of the differences against zero. */
export interface PairedTest extends Interval {
  t: number
  /** Two-sided. */
  p: number
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}

/** Sample standard deviation (n - 1). */
export function deviation(values: readonly number[]): number {
  const center = mean(values)
  return Math.sqrt(values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - 1))
}

/** Mean and 95 % interval by Student's t. For a single value the interval has no width. */
export function interval(values: readonly number[]): Interval {
  const center = mean(values)
  const count = values.length
  const half = count < 2 ? 0 : (studentQuantile(0.975, count - 1) * deviation(values)) / Math.sqrt(count)
  return { mean: center, low: center - half, high: center + half, count }
}

/**
 * Paired t-test of whether the mean of `after[i] - before[i]` is zero. The unit is the pair, here the base model.
 *
 * @throws RangeError if the arrays have different lengths or fewer than two entries
 */
export function pairedTest(after: readonly number[], before: readonly number[]): PairedTest {
  if (after.length !== before.length || after.length < 2) throw new RangeError(`${after.length} and ${before.length} values`)
  const differences = after.map((value, i) => value - before[i]!)
  const estimate = interval(differences)
  const spread = deviation(differences) / Math.sqrt(differences.length)
  const t = estimate.mean === 0 ? 0 : estimate.mean / spread
  return { ...estimate, t, p: 2 * (1 - studentCdf(Math.abs(t), differences.length - 1)) }
}

/**
 * Tests whether two methods are equal within a margin, by two one-sided paired t-tests. p is the larger of the two.
 *
 * @param margin above 0: differences of the mean within ± margin count as equal
 */
export function equivalent(after: readonly number[], before: readonly number[], margin: number): { p: number } {
  const { mean: difference } = pairedTest(after, before)
  const spread = deviation(after.map((value, i) => value - before[i]!)) / Math.sqrt(after.length)
  const inside = margin - Math.abs(difference) // distance to the nearer bound, whose p is the larger
  return { p: spread === 0 ? Number(inside < 0) : 1 - studentCdf(inside / spread, after.length - 1) }
}

/** Holm's adjustment of the p-values of one family of tests: adjusted values below .05 keep the family's error rate at 5 %. */
export function holm(values: readonly number[]): number[] {
  const order = [...values.keys()].sort((a, b) => values[a]! - values[b]!)
  const adjusted = values.map(() => 1)
  let largest = 0
  for (const [rank, i] of order.entries()) {
    largest = Math.max(largest, Math.min(1, (values.length - rank) * values[i]!))
    adjusted[i] = largest
  }
  return adjusted
}

/** A paired test with its p after Holm's correction over the tests of its table. */
export interface Outcome {
  test: PairedTest
  adjusted: number
  /** Number of pairs in which the first one is ahead. */
  ahead: number
}

/** Paired tests with Holm's correction over all of them. */
export function corrected(pairs: readonly { own: readonly number[]; others: readonly number[] }[]): Outcome[] {
  const tests = pairs.map(({ own, others }) => pairedTest(own, others))
  const adjusted = holm(tests.map(({ p }) => p))
  return pairs.map(({ own, others }, i) => {
    return { test: tests[i]!, adjusted: adjusted[i]!, ahead: own.filter((value, k) => value > others[k]!).length }
  })
}

/** P(X <= t) for Student's t with `freedom` degrees of freedom, by the incomplete beta function. */
export function studentCdf(t: number, freedom: number): number {
  if (!Number.isFinite(t)) return t > 0 ? 1 : 0
  const tail = incompleteBeta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2
  return t > 0 ? 1 - tail : tail
}

/** The quantile of Student's distribution for a probability `p` in (0.5, 1), by bisection. */
export function studentQuantile(p: number, freedom: number): number {
  let low = 0
  let high = 1
  while (studentCdf(high, freedom) < p) high *= 2
  for (let i = 0; i < 100; i++) {
    const middle = (low + high) / 2
    if (studentCdf(middle, freedom) < p) low = middle
    else high = middle
  }
  return (low + high) / 2
}

/** The regularized incomplete beta function I_x(a, b), by its continued fraction (Lentz's method). */
export function incompleteBeta(x: number, a: number, b: number): number {
  if (x <= 0) return 0
  if (x >= 1) return 1
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a) // the fraction converges fast there
  const tiny = 1e-300
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) / a
  let c = 1
  let d = 1 / (1 - ((a + b) * x) / (a + 1))
  let fraction = d
  for (let m = 1; m < 500; m++) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m))
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1))
    let factor = 1
    for (const term of [even, odd]) {
      d = 1 / (1 + term * d || tiny)
      c = 1 + term / c || tiny
      factor = c * d
      fraction *= factor
    }
    if (Math.abs(factor - 1) < 1e-15) break
  }
  return front * fraction
}

/** ln Γ(x) for x > 0: Stirling's series after a shift to large x. */
export function logGamma(x: number): number {
  let shift = 0
  let z = x
  for (; z < 15; z++) shift += Math.log(z)
  const series = 1 / (12 * z) - 1 / (360 * z ** 3) + 1 / (1260 * z ** 5) - 1 / (1680 * z ** 7)
  return (z - 0.5) * Math.log(z) - z + Math.log(2 * Math.PI) / 2 + series - shift
}
