import { largest } from '../../extremes.js'

/** How token terms are averaged into a loss; see {@link lengthNormalizers}. */
export type Normalizer = 'response-mean' | 'token-mean' | 'constant'

/**
 * The factor n of every response token of a sequence (math.md §2). It depends on the logical batch (all sequences of an
 * optimizer step), not on how the engine splits it into micro-batches.
 *
 * - `response-mean`: 1 / (B |y|), the mean over sequences of each one's mean (GRPO, arXiv 2402.03300; RLTT, arXiv 2602.10520)
 * - `token-mean`: 1 / Σ |y|, the mean over all response tokens (DAPO, arXiv 2503.14476)
 * - `constant`: 1 / (B · constantLength) (Dr. GRPO, arXiv 2503.20783); constantLength defaults to the length of the longest
 *   response
 *
 * @param responseLengths response tokens |y| of each sequence; a sequence without any gets the factor 0 and still counts in B
 * @param normalizer which of the three
 * @param constantLength number of tokens, for `constant`
 *
 * @example
 * ```ts
 * lengthNormalizers([2, 4], 'response-mean') // [1/4, 1/8]
 * ```
 */
export function lengthNormalizers(responseLengths: readonly number[], normalizer: Normalizer, constantLength?: number): number[] {
  const count = responseLengths.length
  switch (normalizer) {
    case 'response-mean':
      return responseLengths.map((length) => (length === 0 ? 0 : 1 / (count * length)))
    case 'token-mean': {
      const total = responseLengths.reduce((sum, length) => sum + length, 0)
      return responseLengths.map((length) => (length === 0 ? 0 : 1 / total))
    }
    case 'constant': {
      const divisor = count * (constantLength ?? largest(responseLengths))
      return responseLengths.map((length) => (length === 0 ? 0 : 1 / divisor))
    }
  }
}
