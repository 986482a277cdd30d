import { LoopLMError } from '../errors.js'
import type { TokenSequence } from '../model/types.js'
import { advantagesOf, groupAdvantages, reduce } from './advantages.js'
import type { Metrics } from './events.js'
import { beliefAdvantages } from './objective/belief.js'
import type { Objective } from './objective/schema.js'
import { isLabelFree, shapeRewards } from './objective/shape-rewards.js'

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
  /** Log-probabilities of the reference, len-1 per sequence (last loop), or T × (len-1). */
  referenceLogprobs?: readonly ArrayLike<number>[]
  /** Per sequence len-1: 0 where a prediction does not count, for example tokens that a tool wrote. */
  mask?: readonly ArrayLike<number>[]
  /** Per sequence len-1: the loop each prediction was read from, counted from 0; exit terms train these. */
  exits?: readonly ArrayLike<number>[]
  /** Per sequence len-1: which action of the response a token belongs to (LLDS with gate `segment`). */
  segments?: readonly ArrayLike<number>[]
  /** Stratum of each sequence, for strata by `given`. */
  strata?: ArrayLike<number>
  /** Cost of each sequence in [0, 1], for costs by `given`. */
  costs?: ArrayLike<number>
  /** Mean loop that the tokens of each sequence leave at; default what the model says. */
  exitLoops?: ArrayLike<number>
  /** Whether each response was cut at the length limit. */
  truncated?: readonly boolean[]
  /** Answer of each response as text, null for none (majority and novelty rewards). */
  answers?: readonly (string | null)[]
  /** A vector per response (novelty rewards). */
  embeddings?: readonly ArrayLike<number>[]
  /** Per sequence b_0..b_T: belief in the answer before any loop and after each (beliefs `gold-answer` and `forced-exit`). */
  beliefs?: readonly ArrayLike<number>[]
}

/** A batch whose rewards have become advantages. */
export interface RatedBatch {
  batch: RolloutBatch
  /** Response tokens of each sequence that count. */
  lengths: number[]
  /** After shaping and filtering; null: not counted. */
  rewards: (number | null)[]
  counted: boolean[]
  /** Per term of the objective: advantages per sequence, one or T each; [] where not counted. */
  advantages: number[][][]
  /** Whether each sequence has a gradient through its advantages. */
  moving: boolean[]
  /** Sequences per group: `groupSize`, or 1 where advantages were given. */
  groupSize: number
  /** Reward and length statistics under TRL's names. */
  metrics: Metrics
}

/** What rating needs beside the batch and the objective. */
export interface RatingSettings {
  groupSize: number
  /** Counted from 0. */
  step: number
  /** Longest response in tokens, for costs and strata by length. */
  maxLength: number | undefined
  /** Loops of the model. */
  loops: number
}

/**
 * Checks a batch and computes the advantages of every term.
 *
 * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field, NON_FINITE for a reward that is not finite
 */
export function rateBatch(operation: string, batch: RolloutBatch, objective: Objective, settings: RatingSettings): RatedBatch {
  const responseLengths = checkSequences(operation, batch.sequences, batch.promptLengths)
  const count = batch.sequences.length
  for (const field of perSequence) checkCount(operation, field, batch[field] as ArrayLike<unknown> | undefined, count)
  const lengths = batch.mask === undefined ? responseLengths : maskedLengths(batch)
  const metrics = lengthMetrics(responseLengths)
  if (batch.advantages !== undefined) {
    const given = Array.from(batch.advantages)
    const wrong = given.findIndex((advantage) => !Number.isFinite(advantage))
    if (wrong !== -1) throw new LoopLMError('NON_FINITE', `advantages[${wrong}] is ${given[wrong]}`, { operation })
    const outcome = objective.terms.map(({ advantage }) =>
      given.map((value) => (advantage.source === 'reward' ? value : advantage.source === 'one' ? 1 : 0)),
    )
    const { advantages } = addBeliefs(operation, objective, batch, outcome, 1)
    const counted = given.map(() => true)
    return { batch, lengths, rewards: given, counted, advantages, moving: counted, groupSize: 1, metrics }
  }
  const imitation = objective.terms.every(({ advantage }) => advantage.source !== 'reward')
  if (batch.rewards === undefined && !isLabelFree(objective.rewards) && !imitation) {
    throw new LoopLMError('INVALID_ARGUMENT', 'a batch needs rewards or advantages, one per sequence', { operation })
  }
  const { groupSize } = settings
  const raw = batch.rewards === undefined ? Array<number>(count).fill(0) : Array.from(batch.rewards)
  const rewards = filterRewards(objective, shaped(operation, raw, lengths, objective, batch, settings), batch, groupSize)
  const { groupStds, flat } = groupAdvantages(rewards, groupSize)
  const input = {
    rewards,
    groupSize,
    strata: strataOf(objective, batch, lengths),
    costs: costsOf(objective, batch, lengths, settings),
  }
  const outcome = objective.terms.map(({ advantage }) => advantagesOf(advantage, input))
  const { advantages, moving } = addBeliefs(operation, objective, batch, outcome, groupSize)
  Object.assign(metrics, {
    reward: mean(raw.filter((reward) => reward !== null)),
    reward_std: mean(groupStds),
    frac_reward_zero_std: mean(flat.map(Number)),
  })
  if (raw.includes(null)) metrics.frac_reward_null = mean(raw.map((reward) => Number(reward === null)))
  return { batch, lengths, rewards, counted: rewards.map((reward) => reward !== null), advantages, moving, groupSize, metrics }
}

const perSequence = [
  ...(['rewards', 'advantages', 'oldLogprobs', 'referenceLogprobs', 'mask', 'exits', 'segments', 'strata', 'costs'] as const),
  ...(['exitLoops', 'truncated', 'answers', 'embeddings', 'beliefs'] as const),
]

function shaped(
  operation: string,
  raw: readonly (number | null)[],
  lengths: readonly number[],
  objective: Objective,
  batch: RolloutBatch,
  { groupSize, step }: RatingSettings,
): (number | null)[] {
  groupAdvantages(raw, groupSize) // refuses rewards that are not finite or no whole groups, by their own index
  const { answers, embeddings } = batch
  const input = { rewards: raw, groupSize, lengths, answers, embeddings, exitLoops: numbers(batch.exitLoops) }
  try {
    return shapeRewards(objective.rewards, input, step)
  } catch (cause) {
    if (!(cause instanceof LoopLMError)) throw cause
    throw new LoopLMError(cause.code, cause.message, { operation, cause })
  }
}

/** Nulls in place of what the filter leaves out. */
function filterRewards(
  { filter }: Objective,
  rewards: readonly (number | null)[],
  { truncated }: RolloutBatch,
  groupSize: number,
): (number | null)[] {
  let kept = rewards.map((reward, i) => (filter.dropTruncated && truncated?.[i] === true ? null : reward))
  if (filter.minGroupStd > 0) {
    const groups = kept.map((_, i) => Math.floor(i / groupSize))
    const stds = reduce('deviation', kept, groups)
    kept = kept.map((reward, i) => (stds[groups[i]!]! < filter.minGroupStd ? null : reward))
  }
  const { keepPerGroup } = filter
  return keepPerGroup === undefined ? kept : kept.map((reward, i) => (i % groupSize < keepPerGroup ? reward : null))
}

function strataOf({ terms }: Objective, batch: RolloutBatch, lengths: readonly number[]): number[] | undefined {
  const by = terms.map(({ advantage }) => advantage.strata?.by).find((kind) => kind !== undefined)
  if (by === undefined || by === 'given') return numbers(batch.strata)
  if (by === 'truncated') return batch.truncated?.map(Number)
  if (by === 'exit-loop') return numbers(batch.exitLoops)?.map((loop) => Math.max(0, Math.round(loop) - 1))
  const longest = Math.max(1, ...lengths)
  return lengths.map((length) => Math.min(7, Math.floor((8 * length) / longest)))
}

function costsOf(
  { terms }: Objective,
  batch: RolloutBatch,
  lengths: readonly number[],
  { loops, maxLength }: RatingSettings,
): number[] | undefined {
  const by = terms.map(({ advantage }) => advantage.cost?.by).find((kind) => kind !== undefined)
  if (by === undefined || by === 'given') return numbers(batch.costs)
  if (by === 'exit-loop') return numbers(batch.exitLoops)?.map((loop) => (loop - 1) / Math.max(1, loops - 1))
  const longest = maxLength ?? Math.max(1, ...lengths)
  return lengths.map((length) => Math.min(1, length / longest))
}

/** Adds the rewards of single loops, and says which sequences have a gradient at all. */
function addBeliefs(
  operation: string,
  { terms }: Objective,
  batch: RolloutBatch,
  outcome: readonly (readonly (number | null)[])[],
  groupSize: number,
): { advantages: number[][][]; moving: boolean[] } {
  const moving = batch.sequences.map(() => false)
  const advantages = terms.map(({ advantage }, k) => {
    const spec = advantage.loops
    const perLoop = spec !== undefined && spec.belief !== 'token'
    if (perLoop && batch.beliefs === undefined) {
      const message = `beliefs: the belief "${spec.belief}" needs b_0..b_T per sequence, and the batch has none`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
    }
    const added = perLoop ? beliefAdvantages(spec, batch.beliefs!, groupSize) : undefined
    return outcome[k]!.map((value, i) => {
      if (value === null) return []
      const row = added === undefined ? [value] : added[i]!.map((x) => value + x)
      if (spec?.belief === 'token' || row.some((a) => a !== 0)) moving[i] = true
      return row
    })
  })
  return { advantages, moving }
}

function maskedLengths({ sequences, promptLengths, mask }: RolloutBatch): number[] {
  return sequences.map((sequence, i) => {
    let counted = 0
    for (let j = promptLengths[i]! - 1; j < sequence.length - 1; j++) counted += mask![i]![j] === 0 ? 0 : 1
    return counted
  })
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

function numbers(values: ArrayLike<number> | undefined): number[] | undefined {
  return values === undefined ? undefined : Array.from(values)
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length
}
