import { LoopLMError } from '../errors.js'
import type { LossBatch, TokenSequence } from '../model/types.js'
import { groupAdvantages } from './advantages.js'
import type { PolicyConfig } from './config.js'
import type { Metrics } from './events.js'
import { sequenceNorms } from './normalizer.js'

/** Completed rollouts, as `update` and `gradients` of a policy-gradient trainer take them. Other fields are ignored. */
export interface RolloutBatch {
  /** Prompt and response of each rollout as token ids. */
  sequences: readonly TokenSequence[]
  /** Per sequence, how many of its tokens are prompt; at least 1. */
  promptLengths: ArrayLike<number>
  /** One per sequence, `groupSize` consecutive sequences sharing a prompt; null leaves a sequence out. */
  rewards?: ArrayLike<number | null>
  /** One per sequence, instead of rewards. */
  advantages?: ArrayLike<number>
  /** Log-probabilities under the policy that made the rollouts: len-1 per sequence (last loop), or T × (len-1) when several loops are trained. Absent: the model's own, so that every ratio is 1. */
  oldLogprobs?: readonly ArrayLike<number>[]
  /** Log-probabilities of the frozen reference, len-1 per sequence (last loop). */
  referenceLogprobs?: readonly ArrayLike<number>[]
}

/** A batch whose rewards have become advantages. */
export interface RatedBatch {
  batch: RolloutBatch
  /** Response tokens of each sequence. */
  responseLengths: number[]
  /** One per sequence; null where the reward was null. */
  advantages: (number | null)[]
  /** Indices of the sequences that have a gradient. */
  active: number[]
  /** Sequences per group: `groupSize`, or 1 where advantages were given. */
  groupSize: number
  /** Reward and length statistics under TRL's names. */
  metrics: Metrics
}

/**
 * Checks a batch and computes its advantages.
 *
 * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field, NON_FINITE for a reward that is not finite
 */
export function rateBatch(operation: string, batch: RolloutBatch, config: PolicyConfig): RatedBatch {
  const responseLengths = checkSequences(operation, batch.sequences, batch.promptLengths)
  const count = batch.sequences.length
  checkCount(operation, 'oldLogprobs', batch.oldLogprobs, count)
  checkCount(operation, 'referenceLogprobs', batch.referenceLogprobs, count)
  const metrics = lengthMetrics(responseLengths)
  if (batch.advantages !== undefined) {
    checkCount(operation, 'advantages', batch.advantages, count)
    const advantages = Array.from(batch.advantages)
    const wrong = advantages.findIndex((advantage) => !Number.isFinite(advantage))
    if (wrong !== -1) throw new LoopLMError('NON_FINITE', `advantages[${wrong}] is ${advantages[wrong]}`, { operation })
    const active = [...advantages.keys()].filter((i) => responseLengths[i]! > 0)
    return { batch, responseLengths, advantages, active, groupSize: 1, metrics }
  }
  if (batch.rewards === undefined) {
    throw new LoopLMError('INVALID_ARGUMENT', 'a batch needs rewards or advantages, one per sequence', { operation })
  }
  checkCount(operation, 'rewards', batch.rewards, count)
  const rewards = Array.from(batch.rewards)
  const { groupSize } = config
  const { advantages, groupStds, flat } = groupAdvantages(rewards, groupSize, config.scaleRewards)
  const skip = config.skipFlatGroups && config.beta === 0
  const active = [...rewards.keys()].filter(
    (i) => advantages[i] !== null && responseLengths[i]! > 0 && !(skip && flat[Math.floor(i / groupSize)]),
  )
  Object.assign(metrics, {
    reward: mean(rewards.filter((reward) => reward !== null)),
    reward_std: mean(groupStds),
    frac_reward_zero_std: mean(flat.map(Number)),
  })
  if (rewards.includes(null)) metrics.frac_reward_null = mean(rewards.map((reward) => Number(reward === null)))
  return { batch, responseLengths, advantages, active, groupSize, metrics }
}

/**
 * The part of a rated batch that the engine runs for one optimizer step. The norms are those of the whole part, so that leaving
 * flat groups out does not change the loss.
 *
 * @param part indices of the sequences that form the logical batch
 */
export function lossBatch(rated: RatedBatch, part: readonly number[], config: PolicyConfig): LossBatch {
  const { batch, advantages, responseLengths } = rated
  const counted = part.filter((i) => advantages[i] !== null)
  const lengths = counted.map((i) => responseLengths[i]!)
  const norms = sequenceNorms(lengths, config.normalizer, config.maxCompletionLength ?? config.maxNewTokens)
  const active = new Set(rated.active)
  const positions = [...counted.keys()].filter((k) => active.has(counted[k]!))
  const indices = positions.map((k) => counted[k]!)
  return {
    sequences: indices.map((i) => batch.sequences[i]!),
    promptLengths: indices.map((i) => batch.promptLengths[i]!),
    terms: [{ advantages: indices.map((i) => advantages[i]!), norms: positions.map((k) => norms[k]!) }],
    norms: positions.map((k) => norms[k]!),
    oldLogprobs: batch.oldLogprobs && indices.map((i) => batch.oldLogprobs![i]!),
    referenceLogprobs: batch.referenceLogprobs && indices.map((i) => batch.referenceLogprobs![i]!),
  }
}

/**
 * Checks sequences and prompt lengths.
 *
 * @returns response tokens of each sequence
 * @throws LoopLMError INVALID_ARGUMENT naming the field and the sequence
 */
export function checkSequences(
  operation: string,
  sequences: readonly TokenSequence[],
  promptLengths: ArrayLike<number>,
): number[] {
  if (!Array.isArray(sequences) || sequences.length === 0) {
    throw new LoopLMError('INVALID_ARGUMENT', 'sequences must be a non-empty array of token id arrays', { operation })
  }
  if (promptLengths === undefined) {
    throw new LoopLMError('INVALID_ARGUMENT', 'promptLengths is missing: one number per sequence', { operation })
  }
  checkCount(operation, 'promptLengths', promptLengths, sequences.length)
  return sequences.map((sequence, i) => {
    const prompt = promptLengths[i]!
    if (Number.isInteger(prompt) && prompt >= 1 && prompt <= sequence.length) return sequence.length - prompt
    const message = `promptLengths[${i}] must be an integer from 1 to the ${sequence.length} tokens of its sequence, got ${prompt}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  })
}

function checkCount(operation: string, field: string, values: ArrayLike<unknown> | undefined, count: number): void {
  if (values === undefined || values.length === count) return
  throw new LoopLMError('INVALID_SHAPE', `${field} has ${values.length} entries for ${count} sequences`, { operation })
}

function lengthMetrics(lengths: readonly number[]): Metrics {
  return {
    'completions/mean_length': mean(lengths),
    'completions/min_length': Math.min(...lengths),
    'completions/max_length': Math.max(...lengths),
  }
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length
}
