import type { LoopLM } from '../model/model.js'
import type { RealArray, TokenSequence } from '../model/types.js'

/**
 * Finds out why a loss is not finite: a parameter, or the first loop whose states or predictions are not finite.
 *
 * @returns words for an error, for example `the parameter lm_head.weight holds NaN`
 */
export async function findNonFinite(model: LoopLM, sequences: readonly TokenSequence[]): Promise<string> {
  const bad = (values: ArrayLike<number>) => Array.prototype.findIndex.call(values, (value: number) => !Number.isFinite(value))
  for (const { name } of model.parameters()) {
    const values = await model.getParameter(name)
    const at = bad(values)
    if (at !== -1) return `the parameter ${name} holds ${values[at]}`
  }
  if (sequences.length === 0) return 'the parameters of the model are finite, so it comes from the sequences of another process'
  const { loops, gateLogits, logprobs } = await model.score(sequences)
  for (let loop = 0; loop < loops; loop++) {
    for (const [what, arrays, drop] of [
      ['hidden state', gateLogits, 0], // the gate reads the state
      ['log-probability', logprobs, 1],
    ] as const) {
      for (const [i, values] of arrays.entries()) {
        const length = sequences[i]!.length - drop
        const at = bad(values.subarray(loop * length, (loop + 1) * length))
        if (at !== -1) return `the ${what} after loop ${loop + 1} is not finite (sequence ${i}, token ${at + drop})`
      }
    }
  }
  return 'parameters, hidden states and log-probabilities of the model are finite, so it comes from what the objective was given'
}

/** The first gradient that is not finite, in words for an error. undefined if all are finite. */
export function nonFiniteGradient(gradients: ReadonlyMap<string, RealArray>): string | undefined {
  for (const [name, values] of gradients) {
    for (let i = 0; i < values.length; i++) {
      if (!Number.isFinite(values[i])) return `the gradient of ${name} holds ${values[i]}`
    }
  }
  return undefined
}
