import { Random } from '../data/random.js'
import { LoopLMError } from '../errors.js'
import { nextTurn, turnIsOver } from '../turns.js'
import { checkNumber, checkOptions } from '../validation/arguments.js'

/** A confidence interval of a proportion or a mean. */
export interface Interval {
  /** Lower end. */
  low: number
  /** Upper end. */
  high: number
}

/**
 * Wilson's interval (1927) for a proportion. It stays within 0 and 1. It is also valid for few trials and for proportions near
 * 0 or 1, where the normal approximation fails.
 *
 * @param successes a number from 0 to `trials`
 * @param trials at least 1, independent of each other
 * @param confidence between 0 and 1; defaults to 0.95
 * @throws LoopLMError INVALID_ARGUMENT
 *
 * @example
 * ```ts
 * const { low, high } = wilsonInterval(40, 50) // 0.6696…, 0.8876…
 * ```
 */
export function wilsonInterval(successes: number, trials: number, confidence = 0.95): Interval {
  const operation = 'wilsonInterval'
  checkNumber(trials, 'trials', { min: 1, integer: true }, operation)
  checkNumber(successes, 'successes', { min: 0, max: trials }, operation)
  const z = normalQuantile((1 + checkConfidence(confidence, operation)) / 2)
  const share = successes / trials
  const middle = (share + z ** 2 / (2 * trials)) / (1 + z ** 2 / trials)
  const half = (z / (1 + z ** 2 / trials)) * Math.sqrt((share * (1 - share)) / trials + z ** 2 / (4 * trials ** 2))
  return { low: successes === 0 ? 0 : Math.max(0, middle - half), high: successes === trials ? 1 : Math.min(1, middle + half) }
}

/**
 * The percentile bootstrap interval (Efron, 1979) of a mean: the range of the mean when the values are resampled with
 * replacement. With several samples per problem, pass the mean of each problem, because an evaluation draws problems at random.
 *
 * @param values at least one finite number
 * @throws LoopLMError INVALID_ARGUMENT
 *
 * @example
 * ```ts
 * const { low, high } = await bootstrapInterval([0.25, 1, 0, 0.5, 0.75])
 * ```
 */
export async function bootstrapInterval(
  values: ArrayLike<number>,
  options: {
    /** Confidence level, between 0 and 1. Defaults to 0.95. */
    confidence?: number
    /** How often the values are resampled. Defaults to 1000. */
    resamples?: number
    /** Seed of the draws. Defaults to 0. */
    seed?: number
    /** Weights of the values in each mean, one per value and more than 0. Defaults to equal weights. */
    weights?: ArrayLike<number>
  } = {},
): Promise<Interval> {
  const operation = 'bootstrapInterval'
  checkOptions(options, { confidence: true, resamples: true, seed: true, weights: true }, operation)
  const { confidence = 0.95, resamples = 1000, seed = 0, weights } = options
  checkConfidence(confidence, operation)
  checkNumber(resamples, 'resamples', { min: 1, max: 2 ** 20, integer: true }, operation)
  const count = values.length
  if (count === 0) throw new LoopLMError('INVALID_ARGUMENT', 'values: at least one is needed', { operation })
  for (let i = 0; i < count; i++) checkNumber(values[i], `values[${i}]`, {}, operation)
  if (weights !== undefined && weights.length !== count) {
    throw new LoopLMError('INVALID_SHAPE', `weights has ${weights.length} entries for ${count} values`, { operation })
  }
  for (let i = 0; weights !== undefined && i < count; i++) checkNumber(weights[i], `weights[${i}]`, { above: 0 }, operation)
  const means = new Float64Array(resamples)
  for (let resample = 0; resample < resamples; resample++) {
    const random = new Random(seed, resample)
    let sum = 0
    let total = 0
    for (let i = 0; i < count; i++) {
      const drawn = random.integer(count)
      const weight = weights === undefined ? 1 : weights[drawn]!
      sum += weight * values[drawn]!
      total += weight
    }
    means[resample] = sum / total
    if (turnIsOver()) await nextTurn()
  }
  means.sort()
  const at = (share: number) => means[Math.min(resamples - 1, Math.max(0, Math.round(share * (resamples - 1))))]!
  return { low: at((1 - confidence) / 2), high: at((1 + confidence) / 2) }
}

/**
 * pass@k: the probability that at least one of k samples is right. This is the unbiased estimate from n ≥ k samples of a
 * problem, of which c are right: 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, equation 1). Usually the mean over
 * problems is reported.
 *
 * @param correct c, from 0 to `samples`
 * @param samples n
 * @param k from 1 to `samples`
 * @throws LoopLMError INVALID_ARGUMENT
 *
 * @example
 * ```ts
 * const share = passAtK(1, 4, 2) // 0.5
 * ```
 */
export function passAtK(correct: number, samples: number, k: number): number {
  const operation = 'passAtK'
  checkNumber(samples, 'samples', { min: 1, integer: true }, operation)
  checkNumber(correct, 'correct', { min: 0, max: samples, integer: true }, operation)
  checkNumber(k, 'k', { min: 1, max: samples, integer: true }, operation)
  if (samples - correct < k) return 1
  let allWrong = 1 // product form of the paper, which avoids overflow of binomials
  for (let i = samples - correct + 1; i <= samples; i++) allWrong *= 1 - k / i
  return 1 - allWrong
}

/**
 * avg@k: the mean score of the first k samples of each problem, over all problems.
 *
 * @param scores per problem, one per sample
 * @param k from 1 to the number of samples; defaults to all
 * @throws LoopLMError INVALID_ARGUMENT
 *
 * @example
 * ```ts
 * const mean = averageAtK([[1, 0, 1, 1], [0, 0, 0, 1]], 4) // 0.5
 * ```
 */
export function averageAtK(scores: readonly ArrayLike<number>[], k?: number): number {
  const operation = 'averageAtK'
  if (scores.length === 0) throw new LoopLMError('INVALID_ARGUMENT', 'scores: at least one problem is needed', { operation })
  let sum = 0
  for (const [i, own] of scores.entries()) {
    const count = checkNumber(k ?? own.length, `k for problem ${i}`, { min: 1, max: own.length, integer: true }, operation)
    let total = 0
    for (let sample = 0; sample < count; sample++) total += checkNumber(own[sample], `scores[${i}][${sample}]`, {}, operation)
    sum += total / count
  }
  return sum / scores.length
}

function checkConfidence(confidence: number, operation: string): number {
  return checkNumber(confidence, 'confidence', { above: 0, below: 1 }, operation)
}

/** The quantile of the standard normal distribution for p ≥ 1/2, by bisection of {@link normalCdf}. */
function normalQuantile(p: number): number {
  let [low, high] = [0, 8.3] // above 8.3 the probability is 1 in double precision
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2
    if (normalCdf(middle) < p) low = middle
    else high = middle
  }
  return (low + high) / 2
}

/**
 * Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + …), Marsaglia, J. Stat. Softw. 11(4), 2004. All terms are positive, so there
 * is no cancellation.
 */
function normalCdf(x: number): number {
  let sum = x
  let term = x
  for (let i = 3; sum + term !== sum; i += 2) {
    term *= x ** 2 / i
    sum += term
  }
  return 0.5 + (sum * Math.exp(-(x ** 2) / 2)) / Math.sqrt(2 * Math.PI)
}
