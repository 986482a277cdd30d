import { LoopLMError } from '../errors.js'

/** How rewards become advantages: the group's z-score, or the difference from the group's mean alone. */
export type ScaleRewards = 'group' | 'none'

/** Advantages with what was learnt about the groups on the way. */
export interface GroupAdvantages {
  /** One per sequence; null where the reward was null. */
  advantages: (number | null)[]
  /** Standard deviation of each group's rewards (unbiased); 0 for a group with fewer than two rewards. */
  groupStds: number[]
  /** One per group: true when all its rewards are equal, so that it teaches nothing. */
  flat: boolean[]
}

const epsilon = 1e-6

/**
 * Group-relative advantages of GRPO (DeepSeekMath, arXiv 2402.03300; math.md §2): A = (R - mean) / (std + 1e-6) inside each
 * group of consecutive sequences, with the unbiased standard deviation. A group whose rewards are all equal gets exact zeros.
 *
 * @param rewards one per sequence, group after group; null excludes a sequence from its group
 * @param groupSize sequences per group; must divide the number of rewards
 * @param scale `'group'` divides by the standard deviation, `'none'` subtracts the mean only (Dr. GRPO, arXiv 2503.20783)
 * @throws LoopLMError INVALID_ARGUMENT when the rewards do not form whole groups, NON_FINITE for a NaN or infinite reward
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
  const result: GroupAdvantages = { advantages: [], groupStds: [], flat: [] }
  for (let start = 0; start < rewards.length; start += groupSize) {
    const group = rewards.slice(start, start + groupSize)
    const known = group.filter((reward) => reward !== null)
    const wrong = group.findIndex((reward) => reward !== null && !Number.isFinite(reward))
    if (wrong !== -1) {
      throw new LoopLMError('NON_FINITE', `reward ${start + wrong} is ${group[wrong]}`, { operation: 'groupAdvantages' })
    }
    const flat = known.every((reward) => reward === known[0])
    const mean = known.reduce((sum, reward) => sum + reward, 0) / known.length
    const std = flat ? 0 : Math.sqrt(known.reduce((sum, reward) => sum + (reward - mean) ** 2, 0) / (known.length - 1))
    const divisor = scale === 'group' ? std + epsilon : 1
    result.flat.push(flat)
    result.groupStds.push(std)
    for (const reward of group) result.advantages.push(reward === null ? null : flat ? 0 : (reward - mean) / divisor)
  }
  return result
}
