// Advantages of the turns of episodes.
import { largest } from '../../extremes.js'
import { reduce } from './advantages.js'

const epsilon = 1e-6

/** A turn with its own reward, as a range of the tokens of a sequence. */
export interface RewardedTurn {
  begin: number
  end: number
  reward: number | null
}

/** What turns are rated by: values per sequence, groups being `groupSize` consecutive ones. */
export interface TurnInput {
  /** Of the sequences, those of the turns included; null leaves a sequence out. */
  rewards: readonly (number | null)[]
  turns: readonly (readonly RewardedTurn[])[]
  /** Per turn: what it gains beside its reward. */
  gains?: readonly (readonly number[])[] | undefined
  groupSize: number
}

/**
 * One advantage per turn. The return of turn k is G_k = Σ_{m≥k} γ^(m-k) r_m; what the reward of a sequence has beyond those of its
 * turns belongs to its last turn. G_k is compared with the mean over the group of the returns of turn k, and divided by their unbiased standard
 * deviation. Where only one sequence of the group has a turn k, mean and deviation are those of all turns of the group.
 *
 * @param spec.discount γ
 * @param spec.scale `none` subtracts the mean alone
 * @returns per sequence one number per turn; [] where the reward is null
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

const equalBelow = 1e-12 // of the mean: what rounding leaves of equal returns

function statistics(values: readonly number[], segments: readonly number[]) {
  const means = reduce('mean', values, segments)
  const deviations = reduce('deviation', values, segments)
  return {
    count: reduce('count', values, segments),
    at: (segment: number) => ({ mean: means[segment]!, deviation: deviations[segment]! }),
  }
}

/** Values of turns at their predictions: len-1 per sequence, 0 elsewhere. */
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
