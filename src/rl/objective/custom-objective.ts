import { LoopLMError } from '../../errors.js'
import type { RealArray, Scores, TokenSequence } from '../../model/types.js'
import { checkNames, describe } from '../../validation/arguments.js'

/** What your own objective gets: the sequences that count, their scores under the model and their group-relative advantages. */
export interface ObjectiveContext {
  /** The step, counted from 0. */
  step: number
  /** Token ids, prompt and response. */
  sequences: readonly TokenSequence[]
  /** Per sequence, the number of prompt tokens. */
  promptLengths: readonly number[]
  /** One per sequence. */
  rewards: readonly number[]
  /** z-scores within the groups. */
  advantages: readonly number[]
  /** 1 / (sequences × response tokens), per sequence. */
  lengthNormalizers: readonly number[]
  /** Scores of all loops, at the training temperature. Rows before a response are 0. */
  scores: Scores
  /** T × (len-1) per sequence. Set if the batch has them or if several updates are made on the same rollouts. */
  oldLogprobs: readonly ArrayLike<number>[] | undefined
  /**
   * len-1 per sequence: 0 for predictions that do not count, for example tokens that a tool wrote. Set if the batch has a mask.
   */
  mask: readonly ArrayLike<number>[] | undefined
  /** The dataset row or the task's problem of each sequence. In `update`, what the batch contains. */
  columns: readonly Readonly<Record<string, unknown>>[] | undefined
}

/**
 * ∂L/∂ℓ and, if the gate is trained, ∂L/∂(gate logits). The arrays have the shapes of `scores.logprobs` and
 * `scores.gateLogits`.
 */
export interface ObjectiveGradient {
  /** The loss, which is only logged. */
  loss: number
  /** T × (len-1) per sequence, row-major by loop. */
  coefficients: readonly (RealArray | readonly number[])[]
  /** T × len per sequence. */
  gateCoefficients?: readonly (RealArray | readonly number[])[]
}

/**
 * Your own objective: it maps scores and advantages to coefficients, once per optimizer step.
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
 * Checks what your own objective returned. The engine checks the shapes of the coefficients.
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
