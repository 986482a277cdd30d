import { LoopLMError } from '../errors.js'
import { largest } from '../extremes.js'
import { checkLoopCounts } from '../model/checks.js'
import type { LoopLM } from '../model/model.js'
import type { CacheType, TokenSequence } from '../model/types.js'
import { checkOptions, describe, type Keys } from '../validation/arguments.js'
import { checkSequences, maskedLengths } from './batch.js'
import type { Metrics } from './events.js'
import type { TrainingSequence } from './lessons.js'
import { type PredictionSum, predictCached } from './predict-cached.js'
import { Ranks } from './ranks.js'
import { type StateChoice, startingFrom } from './sampling.js'
import { bootstrapInterval, type Interval } from './statistics.js'

/** Tokens to predict. */
export interface PredictedSequence {
  /** Token ids. */
  tokens: TokenSequence
  /** How many of them are the prompt, whose tokens are not predicted. Defaults to 1. */
  promptLength?: number | undefined
  /** len-1: 0 for predictions after the prompt that do not count. By default all count. */
  mask?: ArrayLike<number> | undefined
}

/** How well given tokens are predicted after a loop. */
export interface SequenceEvaluation {
  /** The number of loops. */
  loops: number
  /** Mean negative log-probability of a token, in nats. */
  loss: number
  /** Fraction of the tokens that are the model's most probable ones. */
  accuracy: number
  /** 95 % confidence interval of the accuracy, by {@link bootstrapInterval} over the sequences. */
  interval: Interval
  /** Number of predicted tokens. */
  tokens: number
}

const sequencesPerCall = 32 // bounds the memory for scores

/**
 * Predicts each token after the prompt from the tokens before it, in one pass for all loop counts. Under a launcher, all
 * processes call it with the same arguments, share the sequences, and get the same results.
 *
 * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the sequence, or if there is nothing to predict; ABORTED
 */
export async function evaluateSequences(
  model: LoopLM,
  sequences: readonly PredictedSequence[],
  options: {
    /** Loop counts. Defaults to 1 up to the model's number of loops. */
    loops?: readonly number[] | undefined
    /**
     * Decode token by token with a cache of this type, as generation does, once per loop count. This is slow. By default whole
     * sequences run at once, without a cache.
     */
    cacheType?: CacheType | undefined
    /** Aborts the evaluation with code ABORTED. */
    signal?: AbortSignal | undefined
  } & StateChoice = {},
): Promise<SequenceEvaluation[]> {
  const names = { loops: true, cacheType: true, initialState: true, stateSeed: true, signal: true } as const
  checkOptions(options, names, 'evaluateSequences')
  if (options.loops !== undefined) checkLoopCounts(options.loops, 'evaluateSequences')
  const ranks = Ranks.found('evaluateSequences')
  const wanted = options.loops ?? Array.from({ length: model.config.total_ut_steps }, (_, i) => i + 1)
  const known = readSequences(sequences, model.config.vocab_size).filter((sequence) => sequence.counted > 0)
  if (known.length === 0) {
    const remedy = 'pass sequences with tokens after their prompt, and a mask that counts some of them'
    throw new LoopLMError('INVALID_ARGUMENT', `nothing to predict: ${remedy}`, { operation: 'evaluateSequences' })
  }
  const predicted = await ranks.rows('predictions', ranks.strided(known.length), async (own) => {
    const sums: PredictionSum[][] = []
    for (let begin = 0; begin < own.length; begin += sequencesPerCall) {
      const part = own.slice(begin, begin + sequencesPerCall).map((i) => known[i]!)
      for (const one of await predict(model, part, wanted, options)) sums.push(one)
    }
    return sums
  })
  const weights = known.map(({ counted }) => counted)
  const tokens = weights.reduce((sum, count) => sum + count, 0)
  const evaluations: SequenceEvaluation[] = []
  for (const [k, loops] of wanted.entries()) {
    const shares = predicted.map((one, i) => one[k]!.correct / weights[i]!)
    evaluations.push({
      loops,
      loss: -predicted.reduce((sum, one) => sum + one[k]!.logprob, 0) / tokens,
      accuracy: predicted.reduce((sum, one) => sum + one[k]!.correct, 0) / tokens,
      interval: await bootstrapInterval(shares, { weights }),
      tokens,
    })
  }
  return evaluations
}

/** Per sequence, the sums over its tokens for each loop count. */
async function predict(
  model: LoopLM,
  part: readonly TrainingSequence[],
  wanted: readonly number[],
  { cacheType, signal, ...choice }: { cacheType?: CacheType | undefined; signal?: AbortSignal | undefined } & StateChoice,
): Promise<PredictionSum[][]> {
  const states = startingFrom(choice)
  if (cacheType !== undefined) {
    const byLoops: PredictionSum[][] = []
    for (const loops of wanted) byLoops.push(await predictCached(model, part, { ...states, loops, cacheType, signal }))
    return part.map((_, i) => byLoops.map((sums) => sums[i]!))
  }
  const { logprobs, predicted } = await model.score(
    part.map(({ tokens }) => tokens),
    {
      ...{ ...states, loops: largest(wanted), predictions: true, signal },
      promptLengths: part.map(({ promptLength }) => promptLength),
    },
  )
  return part.map(({ tokens, promptLength, mask }, i) =>
    wanted.map((loops) => {
      const sum = { logprob: 0, correct: 0 }
      const row = (loops - 1) * (tokens.length - 1)
      for (let j = promptLength; j < tokens.length; j++) {
        if (mask?.[j - 1] === 0) continue
        sum.logprob += logprobs[i]![row + j - 1]!
        sum.correct += Number(predicted![i]![row + j - 1] === tokens[j])
      }
      return sum
    }),
  )
}

/**
 * The sequences with their defaults, and how many predictions of each count.
 * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the sequence
 */
function readSequences(sequences: readonly PredictedSequence[], vocabulary: number): (TrainingSequence & { counted: number })[] {
  const operation = 'evaluateSequences'
  if (!Array.isArray(sequences) || sequences.length === 0) {
    const message = `sequences must be a non-empty array of { tokens, promptLength }, got ${describe(sequences)}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  const fields = { tokens: true, promptLength: true, mask: true } satisfies Keys<PredictedSequence>
  for (const [i, sequence] of sequences.entries()) checkOptions(sequence, fields, operation, `sequences[${i}]`)
  const tokens = sequences.map((sequence) => sequence.tokens)
  const promptLengths = sequences.map(({ promptLength = 1 }) => promptLength)
  checkSequences(operation, tokens, promptLengths, vocabulary)
  const mask = sequences.map((sequence, i) => sequence.mask ?? new Uint8Array(tokens[i]!.length - 1).fill(1))
  const counted = maskedLengths(operation, { sequences: tokens, promptLengths, mask })
  return sequences.map((sequence, i) => ({
    ...{ tokens: tokens[i]!, promptLength: promptLengths[i]!, counted: counted[i]! },
    ...(sequence.mask === undefined ? {} : { mask: Uint8Array.from(sequence.mask, Number) }),
  }))
}

/** `eval/loop_<t>/loss` and `eval/loop_<t>/accuracy` for each loop count t. */
export function sequenceMetrics(evaluations: readonly SequenceEvaluation[]): Metrics {
  const metrics: Metrics = {}
  for (const { loops, loss, accuracy, interval } of evaluations) {
    metrics[`eval/loop_${loops}/loss`] = loss
    metrics[`eval/loop_${loops}/accuracy`] = accuracy
    metrics[`eval/loop_${loops}/accuracy_low`] = interval.low
    metrics[`eval/loop_${loops}/accuracy_high`] = interval.high
  }
  return metrics
}
