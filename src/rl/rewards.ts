import { LoopLMError, toLoopLMError } from '../errors.js'
import { checkScore, type RewardFunction, type WeightedReward } from '../tasks/rewards.js'
import type { Rewards } from './config.js'
import type { Metrics } from './events.js'

/** A completion and what the reward functions see of it. */
export interface Completion {
  prompt: string
  completion: string
  /** Columns of the dataset row or of the task's problem. */
  columns: Record<string, unknown>
}

/** The rewards of completions. */
export interface ScoredCompletions {
  /** Weighted sum per completion; null when every reward was null. */
  rewards: (number | null)[]
  /** Scores before weighting, per reward name and completion. */
  byName: Record<string, (number | null)[]>
  /** `rewards/<name>/mean` and `rewards/<name>/std` (unbiased). */
  metrics: Metrics
}

/**
 * Brings the `reward` option into one form.
 *
 * @param rewards a function, a list with names and weights, or functions by name
 * @throws LoopLMError INVALID_CONFIG for an empty list, a repeated name or something that is not a function
 */
export function namedRewards(rewards: Rewards): WeightedReward[] {
  const operation = 'reward'
  const list = typeof rewards === 'function' ? [{ name: rewards.name || 'reward', reward: rewards }] : listOf(rewards)
  if (list.length === 0) throw new LoopLMError('INVALID_CONFIG', 'no reward functions given', { operation })
  for (const [i, { name, reward, weight = 1 }] of list.entries()) {
    if (typeof reward !== 'function' || typeof name !== 'string') {
      throw new LoopLMError('INVALID_CONFIG', `entry ${i} must be { name: string, reward: function, weight?: number }`, {
        operation,
      })
    }
    if (!Number.isFinite(weight))
      throw new LoopLMError('INVALID_CONFIG', `weight of ${name} must be finite, got ${weight}`, { operation })
    if (list.findIndex((other) => other.name === name) !== i) {
      throw new LoopLMError('INVALID_CONFIG', `two rewards are named ${name}`, { operation })
    }
  }
  return list
}

/**
 * Runs every reward function on every completion, asynchronous ones side by side.
 *
 * @throws LoopLMError naming the reward that failed or returned neither a finite number nor null
 */
export async function scoreCompletions(
  functions: readonly WeightedReward[],
  completions: readonly Completion[],
): Promise<ScoredCompletions> {
  const byName: Record<string, (number | null)[]> = {}
  const metrics: Metrics = {}
  for (const { name, reward } of functions) {
    byName[name] = await Promise.all(completions.map((completion) => score(name, reward, completion)))
    const known = byName[name].filter((value) => value !== null)
    if (known.length === 0) continue
    const mean = known.reduce((sum, value) => sum + value, 0) / known.length
    const squares = known.reduce((sum, value) => sum + (value - mean) ** 2, 0)
    metrics[`rewards/${name}/mean`] = mean
    metrics[`rewards/${name}/std`] = known.length > 1 ? Math.sqrt(squares / (known.length - 1)) : 0
  }
  const rewards = completions.map((_, i) => {
    let sum: number | null = null
    for (const { name, weight = 1 } of functions) {
      const value = byName[name]![i]!
      if (value !== null) sum = (sum ?? 0) + weight * value
    }
    return sum
  })
  return { rewards, byName, metrics }
}

async function score(name: string, reward: RewardFunction, { prompt, completion, columns }: Completion): Promise<number | null> {
  let value: unknown
  try {
    value = await reward(prompt, completion, columns)
  } catch (error) {
    throw toLoopLMError(error, `reward ${name}`)
  }
  return checkScore(name, value)
}

function listOf(rewards: readonly WeightedReward[] | Readonly<Record<string, RewardFunction>>): WeightedReward[] {
  if (Array.isArray(rewards)) return [...rewards]
  return Object.entries(rewards).map(([name, reward]) => ({ name, reward }))
}
