import { LoopLMError } from '../../errors.js'
import { largest } from '../../extremes.js'
import { native } from '../../native.js'
import { maxReward } from '../../tasks/rewards.js'
import { describe } from '../../validation/arguments.js'
import type { AdvantageSpec } from './schema.js'

/** How rewards become advantages: the z-score in the group, or only the difference from the group's mean. */
export type ScaleRewards = 'group' | 'none'

/** Advantages and statistics of the groups. */
export interface GroupAdvantages {
  /** One per sequence. null if its reward was null. */
  advantages: (number | null)[]
  /** Unbiased standard deviation of each group's rewards. 0 for groups with fewer than two rewards. */
  groupStds: number[]
  /** One per group: true if all its rewards are equal, so that it gives no gradient. */
  flat: boolean[]
}

/** The inputs of advantages: values per sequence. Groups are `groupSize` consecutive sequences. */
export interface AdvantageInput {
  rewards: readonly (number | null)[]
  groupSize: number
  /** Stratum of each sequence. Required by `strata`. */
  strata?: readonly number[] | undefined
  /** Cost of each sequence in [0, 1]. Required by `cost`. */
  costs?: readonly number[] | undefined
}

const epsilon = 1e-6
const batchEpsilon = 1e-9

/**
 * Group-relative advantages of GRPO (DeepSeekMath, arXiv 2402.03300; math.md §2): A = (R - mean) / (std + 1e-6) inside each
 * group of consecutive sequences, with the unbiased standard deviation. A group whose rewards are all equal gets exact zeros.
 *
 * @param rewards one per sequence, group after group; null excludes a sequence from its group
 * @param groupSize sequences per group; must divide the number of rewards
 * @param scale `'group'` divides by the standard deviation, `'none'` subtracts the mean only (Dr. GRPO, arXiv 2503.20783)
 * @throws LoopLMError INVALID_ARGUMENT if the rewards do not form whole groups or one is not a number, NON_FINITE for a NaN or
 *   infinite one
 *
 * @example
 * ```ts
 * groupAdvantages([1, 0, 0, 0, 0, 0, 0, 0], 8).advantages // [2.474867, -0.353552, …]
 * ```
 */
export function groupAdvantages(
  rewards: readonly (number | null)[],
  groupSize: number,
  scale: ScaleRewards = 'group',
): GroupAdvantages {
  if (rewards.length === 0 || rewards.length % groupSize !== 0) {
    const message = `${rewards.length} rewards do not form groups of groupSize = ${groupSize}; give whole groups or pass advantages`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'groupAdvantages' })
  }
  const wrong = rewards.findIndex((reward) => reward !== null && !(typeof reward === 'number' && Math.abs(reward) <= maxReward))
  if (wrong !== -1) {
    const large = typeof rewards[wrong] === 'number' && Number.isFinite(rewards[wrong])
    const code = typeof rewards[wrong] === 'number' && !large ? 'NON_FINITE' : 'INVALID_ARGUMENT'
    const allowed = `finite numbers${large ? ` of at most ${maxReward} in size` : ''}, or null for none`
    const message = `reward ${wrong} is ${describe(rewards[wrong])}; rewards are ${allowed}`
    throw new LoopLMError(code, message, { operation: 'groupAdvantages' })
  }
  const groups = rewards.map((_, i) => Math.floor(i / groupSize))
  const flat = Array.from({ length: rewards.length / groupSize }, (_, group) => {
    const known = rewards.slice(group * groupSize, (group + 1) * groupSize).filter((reward) => reward !== null)
    return known.every((reward) => reward === known[0])
  })
  const advantages = zScores(rewards, groups, scale === 'group' ? epsilon : 'mean')
  const groupStds = reduce('deviation', rewards, groups).map((std, group) => (flat[group] ? 0 : std))
  return { advantages: advantages.map((a, i) => (a !== null && flat[groups[i]!] ? 0 : a)), groupStds, flat }
}

/**
 * Advantages by a specification of the algebra (docs/objectives.md), in this order: group baseline and scale, strata (SAN,
 * arXiv 2510.06214), cost (CAPO, arXiv 2603.28610), a second z-score over the batch (BN-GSPO), the sign filter (NSR and PreRL,
 * arXiv 2604.14142).
 *
 * @returns one per sequence; null if its reward was null
 * @throws LoopLMError as {@link groupAdvantages}; INVALID_ARGUMENT if the required strata or costs are missing
 */
export function advantagesOf(spec: AdvantageSpec, input: AdvantageInput): (number | null)[] {
  const { rewards, groupSize } = input
  // turns are handled by token
  if (spec.source !== 'reward') return rewards.map((reward) => (reward === null ? null : spec.source === 'one' ? 1 : 0))
  let values: (number | null)[]
  if (spec.baseline === 'none') values = [...rewards]
  else if (spec.scale === 'population') values = populationScores(rewards, groupSize)
  else values = groupAdvantages(rewards, groupSize, spec.scale ?? 'group').advantages
  if (spec.strata !== undefined) {
    const strata = needed(input.strata, 'strata')
    const kinds = largest(strata) + 1
    const inside = zScores(
      rewards,
      strata.map((stratum, i) => Math.floor(i / groupSize) * kinds + stratum),
      epsilon,
    )
    const { blend } = spec.strata
    values = values.map((value, i) => (value === null ? null : blend * inside[i]! + (1 - blend) * value))
  }
  if (spec.cost !== undefined) values = addCost(spec.cost, values, rewards, needed(input.costs, 'costs'), groupSize)
  if (spec.batch) {
    values = zScores(
      values,
      values.map(() => 0),
      batchEpsilon,
    )
  }
  return values.map((value) => {
    if (value === null) return null
    if ((spec.sign === 'negative' && value > 0) || (spec.sign === 'positive' && value < 0)) return 0
    return value > 0 ? value * spec.positiveWeight : value
  })
}

/** CAPO: A = z + λ_e S - λ_g c. Right answers get at least .001. */
function addCost(
  cost: NonNullable<AdvantageSpec['cost']>,
  values: readonly (number | null)[],
  rewards: readonly (number | null)[],
  costs: readonly number[],
  groupSize: number,
): (number | null)[] {
  const groups = rewards.map((_, i) => Math.floor(i / groupSize))
  const known = costs.map((c, i) => (rewards[i] === null ? null : c))
  const means = reduce('mean', known, groups)
  const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))
  return values.map((value, i) => {
    const accuracy = rewards[i]
    if (value === null || accuracy === null || accuracy === undefined) return null
    const right = accuracy > cost.rightAbove
    const pivot = cost.pivotShare * means[groups[i]!]! + (1 - cost.pivotShare) * cost.pivot
    const saving = right
      ? 0.7 * Math.max(Math.sqrt(accuracy), 0.05) * (sigmoid((pivot - costs[i]!) / cost.temperature) - 0.5)
      : 1.3 * (1 - accuracy) * (sigmoid((costs[i]! - pivot) / cost.temperature) - 0.5)
    const total = value + cost.shape * saving - cost.price * costs[i]!
    return right ? Math.max(total, 0.001) : total
  })
}

/** The z-score with the population's standard deviation. 0 in a group whose rewards hardly differ. */
function populationScores(rewards: readonly (number | null)[], groupSize: number): (number | null)[] {
  const groups = rewards.map((_, i) => Math.floor(i / groupSize))
  const means = reduce('mean', rewards, groups)
  const squares = rewards.map((reward, i) => (reward === null ? null : (reward - means[groups[i]!]!) ** 2))
  const deviations = reduce('mean', squares, groups).map(Math.sqrt)
  return rewards.map((reward, i) => {
    if (reward === null) return null
    const deviation = deviations[groups[i]!]!
    return deviation < 1e-4 ? 0 : (reward - means[groups[i]!]!) / (deviation + epsilon)
  })
}

/**
 * (x - mean) / (std + ε) inside each segment, with the unbiased standard deviation. With `mean` only the difference x - mean.
 */
export function zScores(
  values: readonly (number | null)[],
  segments: readonly number[],
  eps: number | 'mean',
): (number | null)[] {
  const means = reduce('mean', values, segments)
  const deviations = eps === 'mean' ? [] : reduce('deviation', values, segments)
  return values.map((value, i) => {
    if (value === null) return null
    const segment = segments[i]!
    return (value - means[segment]!) / (eps === 'mean' ? 1 : deviations[segment]! + eps)
  })
}

/** One number per segment, computed by the engine. Nulls are skipped. */
export function reduce(
  op: 'sum' | 'mean' | 'count' | 'deviation',
  values: readonly (number | null)[],
  segments: readonly number[],
): number[] {
  const ids = Int32Array.from(segments, (segment, i) => (values[i] === null ? -1 : segment))
  return native().segmentReduce(
    op,
    Float64Array.from(values, (value) => value ?? 0),
    ids,
    largest(segments) + 1,
  )
}

function needed(values: readonly number[] | undefined, field: string): readonly number[] {
  if (values !== undefined) return values
  const message = `${field}: the objective needs one per sequence, and the batch has none`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'advantagesOf' })
}
