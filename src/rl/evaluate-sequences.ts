import { largest } from '../extremes.js'
import type { LoopLM } from '../model/model.js'
import { checkOptions } from '../validation/arguments.js'
import type { Metrics } from './events.js'
import type { TrainingSequence } from './problems.js'

/** How well given tokens are predicted after a loop. */
export interface SequenceEvaluation {
  /** Loops, counted from 1. */
  loops: number
  /** Mean negative log-probability of a token, in nats. */
  loss: number
  /** Share of the tokens that are the likeliest ones. */
  accuracy: number
  /** Tokens that were predicted. */
  tokens: number
}

const sequencesPerCall = 32 // bounds the scores that are held at once

/**
 * Predicts each token after the prompt from those before it, once for all loop counts.
 *
 * @param options.loops loop counts; default 1 to the model's
 * @throws LoopLMError ABORTED
 */
export async function evaluateSequences(
  model: LoopLM,
  sequences: readonly TrainingSequence[],
  options: { loops?: readonly number[] | undefined; signal?: AbortSignal | undefined } = {},
): Promise<SequenceEvaluation[]> {
  checkOptions(options, { loops: true, signal: true }, 'evaluateSequences')
  const wanted = options.loops ?? Array.from({ length: model.config.total_ut_steps }, (_, i) => i + 1)
  const sums = wanted.map(() => ({ logprob: 0, correct: 0 }))
  const known = sequences.filter(({ tokens, promptLength }) => tokens.length > promptLength)
  for (let begin = 0; begin < known.length; begin += sequencesPerCall) {
    const part = known.slice(begin, begin + sequencesPerCall)
    const { logprobs, predicted } = await model.score(
      part.map(({ tokens }) => tokens),
      {
        loops: largest(wanted),
        promptLengths: part.map(({ promptLength }) => promptLength),
        predictions: true,
        signal: options.signal,
      },
    )
    for (const [i, { tokens, promptLength }] of part.entries()) {
      for (const [k, loops] of wanted.entries()) {
        const row = (loops - 1) * (tokens.length - 1)
        for (let j = promptLength; j < tokens.length; j++) {
          sums[k]!.logprob += logprobs[i]![row + j - 1]!
          sums[k]!.correct += Number(predicted![i]![row + j - 1] === tokens[j])
        }
      }
    }
  }
  const tokens = known.reduce((sum, { tokens, promptLength }) => sum + tokens.length - promptLength, 0)
  return wanted.map((loops, k) => ({
    loops,
    loss: -sums[k]!.logprob / tokens,
    accuracy: sums[k]!.correct / tokens,
    tokens,
  }))
}

/** `eval/loop_<t>/loss` and `eval/loop_<t>/accuracy` for each loop count t. */
export function sequenceMetrics(evaluations: readonly SequenceEvaluation[]): Metrics {
  const metrics: Metrics = {}
  for (const { loops, loss, accuracy } of evaluations) {
    metrics[`eval/loop_${loops}/loss`] = loss
    metrics[`eval/loop_${loops}/accuracy`] = accuracy
  }
  return metrics
}
