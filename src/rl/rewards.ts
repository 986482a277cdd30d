import { setMaxListeners } from 'node:events'
import { within } from '../chat/within.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import { checkScore, type RewardFunction, rewardFields, type WeightedReward } from '../tasks/rewards.js'
import { checkOptions } from '../validation/arguments.js'
import { prototypeKey } from '../validation/json-value.js'
import type { Metrics } from './events.js'
import type { Rewards } from './options.js'
import type { Rollout } from './rollout-record.js'

/** A completion, and what reward functions get about it. */
export interface Completion {
  prompt: string
  completion: string
  /** The columns of the dataset row or of the task's problem. */
  columns: Record<string, unknown>
}

/** The rewards of completions. */
export interface ScoredCompletions {
  /** Weighted sum per completion. null if every reward was null. */
  rewards: (number | null)[]
  /** Scores before weighting, per reward name and completion. */
  byName: Record<string, (number | null)[]>
}

/**
 * Converts the `reward` option to a list.
 *
 * @param rewards a function, a list with names and weights, or functions by name
 * @throws LoopLMError INVALID_CONFIG for an empty list, a repeated name or something that is not a function
 */
export function namedRewards(rewards: Rewards): WeightedReward[] {
  const operation = 'reward'
  const list = typeof rewards === 'function' ? [{ name: rewards.name || 'reward', reward: rewards }] : listOf(rewards)
  if (list.length === 0)
    throw new LoopLMError('INVALID_CONFIG', 'is empty; give at least one function, or omit it', { operation })
  for (const [i, entry] of list.entries()) {
    checkOptions(entry, rewardFields, operation, `entry ${i}`)
    const { name, reward, weight = 1 } = entry
    if (typeof reward !== 'function' || typeof name !== 'string') {
      throw new LoopLMError('INVALID_CONFIG', `entry ${i} must be { name: string, reward: function, weight?: number }`, {
        operation,
      })
    }
    if (name === prototypeKey) throw new LoopLMError('INVALID_CONFIG', `a reward cannot be named ${prototypeKey}`, { operation })
    if (!Number.isFinite(weight))
      throw new LoopLMError('INVALID_CONFIG', `weight of ${name} must be finite, got ${weight}`, { operation })
    if (list.findIndex((other) => other.name === name) !== i) {
      throw new LoopLMError('INVALID_CONFIG', `two rewards are named ${name}; give each another name`, { operation })
    }
  }
  return list
}

/** A trainer's limits of reward functions. Without them, all calls run at the same time and may take any time. */
export interface RewardLimits {
  /** Most calls of one function that run at the same time. */
  rewardConcurrency?: number | undefined
  /** Seconds after which an unfinished call fails; 0 sets no limit. */
  rewardTimeout?: number | undefined
}

/** How reward functions are called. */
type RewardCalls = RewardLimits & { signal?: AbortSignal | undefined }

/** A trainer's options of rewards. */
export type RewardOptions = RewardLimits & { reward?: Rewards | undefined }

/**
 * Runs every reward function on every completion. Asynchronous functions run concurrently.
 *
 * @param calls.signal aborts the calls; it is also passed to the functions
 * @throws LoopLMError naming the reward that failed, returned neither a finite number nor null, or timed out; ABORTED
 */
export async function scoreCompletions(
  functions: readonly WeightedReward[],
  completions: readonly Completion[],
  calls: RewardCalls = {},
): Promise<ScoredCompletions> {
  const byName: Record<string, (number | null)[]> = {}
  for (const { name, reward } of functions) byName[name] = await scoreWith(name, reward, completions, calls)
  const rewards = completions.map((_, i) => {
    let sum: number | null = null
    for (const { name, weight = 1 } of functions) {
      const value = byName[name]![i]!
      if (value !== null) sum = (sum ?? 0) + weight * value
    }
    return checkScore('(the weighted sum)', sum)
  })
  return { rewards, byName }
}

/** Adds the reward functions of a trainer's options to the rewards that rollouts already have. */
export async function addRewards(
  rollouts: readonly Rollout[],
  config: RewardOptions,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { reward } = config
  if (reward === undefined) return
  const completions = rollouts.map(
    ({ text, columns, prompt = String(columns.prompt) }): Completion => ({ prompt, completion: text, columns }),
  )
  const scored = await scoreCompletions(namedRewards(reward), completions, { ...config, signal })
  for (const [i, rollout] of rollouts.entries()) {
    const more = scored.rewards[i]!
    if (more !== null) rollout.reward = (rollout.reward ?? 0) + more
    rollout.scores = Object.fromEntries(Object.entries(scored.byName).map(([name, values]) => [name, values[i]!]))
  }
}

/**
 * `rewards/<name>/mean` and `rewards/<name>/std` (unbiased). A reward that was always null has no metrics.
 *
 * @param byName scores before weighting, per reward name and completion
 */
export function rewardMetrics(byName: Readonly<Record<string, readonly (number | null)[]>>): Metrics {
  const metrics: Metrics = {}
  for (const [name, values] of Object.entries(byName)) {
    const known = values.filter((value) => value !== null)
    if (known.length === 0) continue
    const mean = known.reduce((sum, value) => sum + value, 0) / known.length
    const squares = known.reduce((sum, value) => sum + (value - mean) ** 2, 0)
    metrics[`rewards/${name}/mean`] = mean
    metrics[`rewards/${name}/std`] = known.length > 1 ? Math.sqrt(squares / (known.length - 1)) : 0
  }
  return metrics
}

/** The scores of one function, with at most `concurrency` calls at a time. The first failure aborts the others. */
async function scoreWith(
  name: string,
  reward: RewardFunction,
  completions: readonly Completion[],
  { rewardConcurrency = completions.length, rewardTimeout = 0, signal }: RewardCalls,
): Promise<(number | null)[]> {
  const operation = `reward ${name}`
  const controller = new AbortController()
  setMaxListeners(0, controller.signal) // one listener per waiting call
  const scores: (number | null)[] = Array(completions.length)
  let next = 0
  const late = () => {
    const message = `no answer within rewardTimeout = ${rewardTimeout} s; raise it, or return null if there is no score`
    return new LoopLMError('ABORTED', message, { operation })
  }
  const abort = () => controller.abort(new LoopLMError('ABORTED', 'the run was aborted', { operation, cause: signal?.reason }))
  const worker = async (): Promise<void> => {
    while (next < completions.length && !controller.signal.aborted) {
      const i = next++
      const { prompt, completion, columns } = completions[i]!
      const answer = async () => reward(prompt, completion, columns, { signal: controller.signal })
      scores[i] = checkScore(name, await within(answer(), rewardTimeout, controller.signal, late))
    }
  }
  signal?.addEventListener('abort', abort, { once: true })
  if (signal?.aborted === true) abort()
  try {
    await Promise.all(Array.from({ length: Math.min(rewardConcurrency, completions.length) }, worker))
    controller.signal.throwIfAborted()
    return scores
  } catch (error) {
    controller.abort(error) // tells the calls that are still running
    throw toLoopLMError(error, operation)
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

function listOf(rewards: readonly WeightedReward[] | Readonly<Record<string, RewardFunction>>): WeightedReward[] {
  if (Array.isArray(rewards)) return [...rewards]
  return Object.entries(rewards).map(([name, reward]) => ({ name, reward }))
}
