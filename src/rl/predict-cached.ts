import type { LoopLM } from '../model/model.js'
import type { CacheType, LogitsContext, RealArray, StateOptions } from '../model/types.js'
import type { TrainingSequence } from './lessons.js'

/** Sums over the tokens of one sequence that count. */
export interface PredictionSum {
  /** Log-probabilities of the tokens. */
  logprob: number
  /** How many tokens were the most probable ones. */
  correct: number
}

/**
 * Predicts given tokens one after the other with a cache, exactly as generation would, and sums the results. It is slower than
 * {@link LoopLM.score}, which runs whole sequences without a cache.
 */
export async function predictCached(
  model: LoopLM,
  sequences: readonly TrainingSequence[],
  options: { loops: number; cacheType: CacheType; signal: AbortSignal | undefined } & Omit<StateOptions, 'initialStates'>,
): Promise<PredictionSum[]> {
  const counts = ({ mask }: TrainingSequence, position: number) => mask?.[position - 1] !== 0
  const sums = sequences.map(() => ({ logprob: 0, correct: 0 }))
  const force = (logits: RealArray, { prompt, tokens, index }: LogitsContext) => {
    const sequence = sequences[index]!
    const position = prompt.length + tokens.length
    const token = sequence.tokens[position]
    if (token === undefined) return // the sequence is complete, but longer ones are not
    if (counts(sequence, position)) sums[index]!.correct += Number(firstLargest(logits) === token)
    const own = logits[token]!
    logits.fill(-Infinity)
    logits[token] = own
  }
  const results = await model.generate(
    sequences.map(({ tokens, promptLength }) => Array.from(tokens.slice(0, promptLength))),
    {
      maxNewTokens: Math.max(...sequences.map(({ tokens, promptLength }) => tokens.length - promptLength)),
      temperature: 0,
      stop: [],
      exit: { rule: 'fixed' },
      logitsProcessor: force,
      ...options,
    },
  )
  for (const [i, { logprobs }] of results.entries()) {
    const { tokens, promptLength } = sequences[i]!
    for (let j = promptLength; j < tokens.length; j++)
      if (counts(sequences[i]!, j)) sums[i]!.logprob += logprobs[j - promptLength]!
  }
  return sums
}

function firstLargest(values: RealArray): number {
  let best = 0
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i
  return best
}
