import { stat } from 'node:fs/promises'
import { basename, extname, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { lastBoxed } from '../data/boxed.js'
import { errorMessage, LoopLMError } from '../errors.js'
import { checkOptions, describe, type Keys } from '../validation/arguments.js'
import { answersEqual } from './answers.js'
import { countdownMatch } from './countdown.js'
import { withoutThinking } from './thinking.js'

export { lastBoxed } from '../data/boxed.js'
export { answersEqual, normalizeAnswer } from './answers.js'

/**
 * Scores a completion. `columns` is the dataset row or the task's problem, with `answer` if it has one. `null` means no score:
 * a combination then ignores this reward. `context.signal` fires when the score is no longer needed; pass it to `fetch`.
 */
export type RewardFunction = (
  prompt: string,
  completion: string,
  columns: Record<string, unknown>,
  context?: {
    /** Fires when the score is no longer needed. */
    signal?: AbortSignal
  },
) => number | null | Promise<number | null>

/** A reward function with a name for metrics and errors, and a weight. */
export interface WeightedReward {
  /** The name in metrics and errors. */
  name: string
  /** The function. */
  reward: RewardFunction
  /** Factor in the sum. Defaults to 1. */
  weight?: number
}

export const rewardFields = { name: true, reward: true, weight: true } satisfies Keys<WeightedReward>

/**
 * 1 if the completion equals the column `answer`, apart from white space at both ends, else 0. null without an answer.
 *
 * @example
 * ```ts
 * exactMatch('2+2=', ' 4', { answer: '4' }) // 1
 * ```
 */
export function exactMatch(_prompt: string, completion: string, columns: Record<string, unknown>): number | null {
  if (typeof columns.answer !== 'string') return null
  return completion.trim() === columns.answer.trim() ? 1 : 0
}

/**
 * 1 if the last `\boxed{…}` of the completion equals the column `answer` by {@link answersEqual}, else 0. null without an
 * answer. A box inside `<think>…</think>`, closed or not, is not an answer. If the column is a worked solution, its answer is
 * the last box, or else the text after the last `####`.
 *
 * @example
 * ```ts
 * boxedMatch('…', 'so \\boxed{\\dfrac{1}{2}}', { answer: '0.5' }) // 1
 * ```
 */
export function boxedMatch(prompt: string, completion: string, columns: Record<string, unknown>): number | null {
  const { answer } = columns
  if (typeof answer !== 'string') return null
  const given = lastBoxed(withoutThinking(completion, prompt))
  if (given === undefined) return 0
  const mark = answer.lastIndexOf('####')
  return answersEqual(given, lastBoxed(answer) ?? (mark < 0 ? answer : answer.slice(mark + 4))) ? 1 : 0
}

/** The rewards that configuration files and the command line can name. */
export const builtInRewards: Readonly<Record<string, RewardFunction>> = { exactMatch, boxedMatch, countdownMatch }

/**
 * Combines rewards to their weighted sum. Rewards that return null are ignored. If all do, the result is null.
 *
 * @param rewards at least one, with distinct names
 * @throws LoopLMError INVALID_ARGUMENT for an empty list, a repeated name or a weight that is not finite; the combined function
 *   throws INVALID_ARGUMENT or NON_FINITE naming a reward that returned neither a finite number nor null
 *
 * @example
 * ```ts
 * const reward = combineRewards([
 *   { name: 'correct', reward: boxedMatch },
 *   { name: 'short', reward: (_prompt, completion) => (completion.length < 500 ? 1 : 0), weight: 0.1 },
 * ])
 * ```
 */
export function combineRewards(rewards: readonly WeightedReward[]): RewardFunction {
  const operation = 'combineRewards'
  if (rewards.length === 0) throw new LoopLMError('INVALID_ARGUMENT', 'rewards is empty; give at least one', { operation })
  for (const [i, entry] of rewards.entries()) {
    checkOptions(entry, rewardFields, operation, `rewards[${i}]`)
    const { name, weight = 1 } = entry
    if (!Number.isFinite(weight)) {
      throw new LoopLMError('INVALID_ARGUMENT', `the weight of reward ${name} must be finite, got ${weight}`, { operation })
    }
    if (rewards.findIndex((other) => other.name === name) !== i) {
      throw new LoopLMError('INVALID_ARGUMENT', `two rewards are named ${name}; give each another name`, { operation })
    }
  }
  return async (prompt, completion, columns, context) => {
    const scores = await Promise.all(
      rewards.map(async ({ name, reward, weight = 1 }) => {
        const score = checkScore(name, await reward(prompt, completion, columns, context))
        return score === null ? null : weight * score
      }),
    )
    const opinions = scores.filter((score) => score !== null)
    return opinions.length === 0
      ? null
      : checkScore(
          'combineRewards',
          opinions.reduce((sum, score) => sum + score, 0),
        )
  }
}

/** The squares of larger rewards would overflow in a standard deviation. */
export const maxReward = 1e100

/**
 * Returns the result of a reward function if it is a finite number or null.
 *
 * @param name the reward's name in errors
 * @throws LoopLMError INVALID_ARGUMENT or NON_FINITE
 */
export function checkScore(name: string, score: unknown): number | null {
  if (score === null || (typeof score === 'number' && Math.abs(score) <= maxReward)) return score
  const large = typeof score === 'number' && Number.isFinite(score) ? ` of at most ${maxReward} in size` : ''
  const code = typeof score === 'number' && large === '' ? 'NON_FINITE' : 'INVALID_ARGUMENT'
  throw new LoopLMError(code, `reward ${name} must return a finite number${large} or null, got ${describe(score)}`)
}

/**
 * Loads reward functions from a JavaScript module. If a function is exported as default, it is the only reward, named after the
 * file. Otherwise every exported function is a reward under its name. The module's code runs with all rights of this process:
 * only load modules that you trust.
 *
 * @param path an ES module or CommonJS file, relative to the working folder
 * @returns at least one reward function by name
 * @throws LoopLMError NOT_FOUND, or INVALID_FILE if the module fails to load or exports no function
 *
 * @example
 * ```ts
 * const { correct } = await loadRewards('rewards.mjs') // export function correct(prompt, completion, { answer }) { … }
 * ```
 */
export async function loadRewards(path: string): Promise<Record<string, RewardFunction>> {
  const operation = 'loadRewards'
  await stat(path).catch((cause) => {
    throw new LoopLMError('NOT_FOUND', `no file ${path}`, { operation, cause })
  })
  let exports: Record<string, unknown>
  try {
    exports = await import(pathToFileURL(resolve(path)).href)
  } catch (cause) {
    const message = `${path} does not load: ${errorMessage(cause)}`
    throw new LoopLMError('INVALID_FILE', message, { operation, cause })
  }
  if (typeof exports.default === 'function') return { [basename(path, extname(path))]: exports.default as RewardFunction }
  const functions = Object.entries(exports).filter((entry): entry is [string, RewardFunction] => typeof entry[1] === 'function')
  if (functions.length === 0) {
    const found = Object.keys(exports).join(', ') || 'nothing'
    const message = `${path} exports no function (found: ${found}); export default a function (prompt, completion, columns)`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  return Object.fromEntries(functions)
}
