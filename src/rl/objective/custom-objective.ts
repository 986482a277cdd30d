import { LoopLMError } from '../../errors.js'
import type { RealArray, Scores, TokenSequence } from '../../model/types.js'
import { checkNames, describe } from '../../validation/arguments.js'

/** What an own objective sees: the sequences that count, their scores under the model and their group-relative advantages. */
export interface ObjectiveContext {
  /** Counted from 0. */
  step: number
  /** Token ids, prompt and response. */
  sequences: readonly TokenSequence[]
  /** Per sequence, how many of its tokens are prompt. */
  promptLengths: readonly number[]
  /** One per sequence. */
  rewards: readonly number[]
  /** z-scores of the groups. */
  advantages: readonly number[]
  /** 1 / (sequences × response tokens), per sequence. */
  lengthNormalizers: readonly number[]
  /** Of all loops, at the training temperature; rows before a response are 0. */
  scores: Scores
  /** T × (len-1) per sequence, where the batch brings them or several updates are made on the same rollouts. */
  oldLogprobs: readonly ArrayLike<number>[] | undefined
  /** Len-1 per sequence: 0 where a prediction does not count, for example tokens that a tool wrote; where the batch has a mask. */
  mask: readonly ArrayLike<number>[] | undefined
  /** The row of the data set or the problem of the task behind each sequence; in `update` what the batch brings. */
  columns: readonly Readonly<Record<string, unknown>>[] | undefined
}

/** ∂L/∂ℓ and, when the gate is trained, ∂L/∂(gate logits); the arrays have the shapes of `scores.logprobs` and `scores.gateLogits`. */
export interface ObjectiveGradient {
  /** Only logged. */
  loss: number
  /** T × (len-1) per sequence, row-major by loop. */
  coefficients: readonly (RealArray | readonly number[])[]
  /** T × len per sequence. */
  gateCoefficients?: readonly (RealArray | readonly number[])[]
}

/**
 * Your own objective: from scores and advantages to coefficients, once per optimizer step.
 *
 * @example
 * ```ts
 * import type { OwnObjective } from 'looplm'
 *
 * // REINFORCE on the second loop alone
 * const objective: OwnObjective = ({ sequences, promptLengths, advantages, lengthNormalizers, scores }) => {
 *   let loss = 0
 *   const coefficients = scores.logprobs.map((logprobs, i) => {
 *     const width = sequences[i]!.length - 1
 *     return logprobs.map((logprob, k) => {
 *       const [loop, position] = [Math.floor(k / width), k % width]
 *       if (loop !== 1 || position < promptLengths[i]! - 1) return 0
 *       loss -= lengthNormalizers[i]! * advantages[i]! * logprob
 *       return -lengthNormalizers[i]! * advantages[i]!
 *     })
 *   })
 *   return { loss, coefficients }
 * }
 * const trainer = new ObjectiveTrainer(model, { objective })
 * ```
 */
export type OwnObjective = (context: ObjectiveContext) => ObjectiveGradient | Promise<ObjectiveGradient>

const gradientFields: readonly (keyof ObjectiveGradient)[] = ['loss', 'coefficients', 'gateCoefficients']

/**
 * What an own objective returned; the engine checks the shapes of the coefficients.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the field
 */
export function checkGradient(returned: unknown): ObjectiveGradient {
  const operation = 'objective'
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (typeof returned !== 'object' || returned === null || Array.isArray(returned))
    throw refuse(`it must return { loss, coefficients, gateCoefficients? }, got ${describe(returned)}`)
  checkNames(returned, gradientFields, 'field', operation)
  const gradient = returned as ObjectiveGradient
  if (typeof gradient.loss !== 'number') throw refuse(`loss must be a number, got ${describe(gradient.loss)}`)
  if (!Array.isArray(gradient.coefficients))
    throw refuse(`coefficients must be an array with one row per sequence, got ${describe(gradient.coefficients)}`)
  return gradient
}
