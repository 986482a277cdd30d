// Advantages of the turns of episodes.
import { largest } from '../../extremes.js'
import { reduce } from './advantages.js'

const epsilon = 1e-6

/** A turn with its reward, as a range of the tokens of a sequence. */
export interface RewardedTurn {
  begin: number
  end: number
  reward: number | null
}

/** The inputs of turn advantages: values per sequence. Groups are `groupSize` consecutive sequences. */
export interface TurnInput {
  /** Rewards of the sequences, which include those of their turns. null excludes a sequence. */
  rewards: readonly (number | null)[]
  turns: readonly (readonly RewardedTurn[])[]
  /** Per turn: what it gains besides its reward. */
  gains?: readonly (readonly number[])[] | undefined
  groupSize: number
}

/**
 * One advantage per turn. The return of turn k is G_k = Σ_{m≥k} γ^(m-k) r_m; the part of a sequence's reward that its turns
 * do not account for is added to its last turn. The advantage is G_k minus the mean of the group's returns of turn k, divided
 * by their unbiased standard deviation. If only one sequence of the group has a turn k, mean and deviation are over all turns
 * of the group.
 *
 * @param spec.discount γ
 * @param spec.scale `none` only subtracts the mean
 * @returns per sequence one number per turn; [] if its reward is null
 *
 * @example
 * ```ts
 * const turns = [[{ begin: 2, end: 4, reward: 1 }, { begin: 6, end: 8, reward: null }], [{ begin: 2, end: 4, reward: 0 }]]
 * turnAdvantages({ discount: 1, scale: 'none' }, { rewards: [1, 0], turns, groupSize: 2 }) // [[0.5, -1/3], [-0.5]]
 * ```
 */
export function turnAdvantages(
  { discount, scale }: { discount: number; scale: 'group' | 'none' },
  { rewards, turns, gains, groupSize }: TurnInput,
): number[][] {
  const returns = turns.map((own, i) => {
    const total = rewards[i]
    if (total === null || total === undefined) return []
    const each = own.map(({ reward }, k) => (reward ?? 0) + (gains?.[i]?.[k] ?? 0))
    if (each.length > 0) each[each.length - 1]! += total - own.reduce((sum, { reward }) => sum + (reward ?? 0), 0)
    for (let k = each.length - 2; k >= 0; k--) each[k]! += discount * each[k + 1]!
    return each
  })
  const longest = largest(
    returns.map(({ length }) => length),
    0,
  )
  const flat = returns.flat()
  if (flat.length === 0) return returns
  const groupOf = returns.flatMap((own, i) => own.map(() => Math.floor(i / groupSize)))
  const placeOf = returns.flatMap((own, i) => own.map((_, k) => Math.floor(i / groupSize) * longest + k))
  const ofGroup = statistics(flat, groupOf)
  const ofPlace = statistics(flat, placeOf)
  const advantages = flat.map((value, n) => {
    const { mean, deviation } = ofPlace.count[placeOf[n]!]! > 1 ? ofPlace.at(placeOf[n]!) : ofGroup.at(groupOf[n]!)
    const difference = value - mean
    if (scale === 'none') return difference
    return deviation <= equalBelow * Math.abs(mean) ? 0 : difference / (deviation + epsilon)
  })
  let next = 0
  return returns.map((own) => own.map(() => advantages[next++]!))
}

const equalBelow = 1e-12 // relative to the mean: rounding errors of equal returns

function statistics(values: readonly number[], segments: readonly number[]) {
  const means = reduce('mean', values, segments)
  const deviations = reduce('deviation', values, segments)
  return {
    count: reduce('count', values, segments),
    at: (segment: number) => ({ mean: means[segment]!, deviation: deviations[segment]! }),
  }
}

/** Spreads values of turns over their predictions: len-1 per sequence, 0 elsewhere. */
export function overTokens(
  turns: readonly (readonly RewardedTurn[])[],
  values: readonly (readonly number[])[],
  lengths: readonly number[],
): number[][] {
  return turns.map((own, i) => {
    const row = new Array<number>(lengths[i]! - 1).fill(0)
    for (const [k, { begin, end }] of own.entries()) if (values[i]![k] !== undefined) row.fill(values[i]![k]!, begin - 1, end - 1)
    return row
  })
}
