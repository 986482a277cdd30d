// Rollouts from the caller's own function.
import { types } from 'node:util'
import { within } from '../chat/within.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { GenerateOptions } from '../model/types.js'
import { maxReward } from '../tasks/rewards.js'
import { checkNames, describe } from '../validation/arguments.js'
import type { Problem, Rollout, RolloutTurn } from './rollout-record.js'

/** What a {@link RolloutFunction} gets besides the problems. */
export interface RolloutContext {
  /** The model to sample from. */
  model: LoopLM
  /** Turns prompts into tokens. */
  tokenizer: Tokenizer
  /** The step, counted from 0. */
  step: number
  /** A seed that depends on the seed of the trainer, the step and the round. */
  seed: number
  /** Rollouts per problem. */
  groupSize: number
  /** Options for `model.generate`: the trainer's or, in an evaluation, those of the evaluation. */
  generation: GenerateOptions
  /** Fires when the run is aborted. */
  signal: AbortSignal
}

/**
 * Makes the rollouts of a step: `groupSize` consecutive rollouts for each problem, in the order of the problems.
 *
 * @example
 * ```ts
 * import type { RolloutFunction } from 'looplm'
 *
 * const rollout: RolloutFunction = async (problems, { model, tokenizer, groupSize, generation }) => {
 *   const prompts = problems.flatMap(({ prompt }) => Array(groupSize).fill(tokenizer.encode(prompt as string)))
 *   const results = await model.generate(prompts, generation)
 *   return results.map(({ tokens, logprobs, finishReason }, i) => ({
 *     tokens: Int32Array.from([...prompts[i]!, ...tokens]),
 *     promptLength: prompts[i]!.length,
 *     samplingLogprobs: logprobs,
 *     reward: tokens.length,
 *     truncated: finishReason === 'length',
 *     text: tokenizer.decode(tokens),
 *     columns: problems[Math.floor(i / groupSize)]!,
 *   }))
 * }
 * ```
 */
export type RolloutFunction = (problems: Problem[], context: RolloutContext) => Promise<Rollout[]>

/**
 * Calls a rollout function. An abort ends the wait even if the function ignores its signal.
 *
 * @param where names the step in errors
 * @throws LoopLMError ABORTED; errors of the function
 */
export async function callRollout(
  rollout: RolloutFunction,
  problems: Problem[],
  context: RolloutContext,
  where: string,
): Promise<unknown> {
  const { signal } = context
  const operation = 'rollout'
  const aborted = () => new LoopLMError('ABORTED', 'the run was aborted', { operation, cause: signal.reason })
  const made = async () => rollout(problems, context)
  try {
    return await within(made(), 0, signal, aborted)
  } catch (cause) {
    if (signal.aborted) throw aborted()
    const { code, message } = toLoopLMError(cause)
    throw new LoopLMError(code, `${where}: ${message}`, { operation, cause })
  }
}

const rolloutFields: Readonly<Record<keyof Rollout, true>> = {
  tokens: true,
  promptLength: true,
  mask: true,
  samplingLogprobs: true,
  loops: true,
  turns: true,
  reward: true,
  scores: true,
  truncated: true,
  prompt: true,
  text: true,
  messages: true,
  columns: true,
}

/** Limits for the rollouts of a function. */
export interface RolloutLimits {
  /** The requested number of rollouts. */
  count: number
  vocabulary: number
  /** The most tokens of a rollout. */
  maxLength: number
}

/**
 * Checks what a {@link RolloutFunction} returned.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the index and the field
 */
export function checkRollouts(rollouts: unknown, { count, vocabulary, maxLength }: RolloutLimits): Rollout[] {
  const operation = 'rollout'
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (!Array.isArray(rollouts)) throw refuse(`the function must return an array of rollouts, got ${describe(rollouts)}`)
  if (rollouts.length !== count)
    throw refuse(`the function must return groupSize rollouts for each problem, ${count} in all, got ${rollouts.length}`)
  return rollouts.map((rollout: unknown, i) => {
    if (typeof rollout !== 'object' || rollout === null) throw refuse(`[${i}] must be a rollout, got ${describe(rollout)}`)
    checkNames(rollout, Object.keys(rolloutFields), 'field', operation, (name) => `[${i}].${name}`)
    return checkRollout(rollout as Rollout, { vocabulary, maxLength }, (field, message) => refuse(`[${i}].${field} ${message}`))
  })
}

type Refuse = (field: string, message: string) => LoopLMError

function checkRollout(rollout: Rollout, { vocabulary, maxLength }: Omit<RolloutLimits, 'count'>, refuse: Refuse): Rollout {
  const { tokens, promptLength, reward, truncated, text, columns } = rollout
  if (!isList(tokens) || tokens.length === 0)
    throw refuse('tokens', `must be an Int32Array of token ids, got ${describe(tokens)}`)
  if (tokens.length > maxLength) throw refuse('tokens', `has ${tokens.length} ids; a rollout has at most ${maxLength}`)
  const ids = Array.from(tokens)
  const bad = ids.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocabulary))
  if (bad !== -1) throw refuse(`tokens[${bad}]`, `must be a token id below ${vocabulary}, got ${describe(ids[bad])}`)
  if (!(Number.isInteger(promptLength) && promptLength >= 1 && promptLength <= ids.length))
    throw refuse('promptLength', `must be an integer from 1 to the ${ids.length} tokens, got ${describe(promptLength)}`)
  if (reward !== null && !(typeof reward === 'number' && Math.abs(reward) <= maxReward))
    throw refuse('reward', `must be a finite number, or null for none, got ${describe(reward)}`)
  if (typeof truncated !== 'boolean') throw refuse('truncated', `must be true or false, got ${describe(truncated)}`)
  if (typeof text !== 'string') throw refuse('text', `must be a string, got ${describe(text)}`)
  if (typeof columns !== 'object' || columns === null) throw refuse('columns', `must be the problem, got ${describe(columns)}`)
  checkPerToken(rollout, refuse)
  for (const [k, turn] of (rollout.turns ?? []).entries())
    checkTurn(turn, rollout, (field, message) => refuse(`turns[${k}]${field}`, message))
  return { ...rollout, tokens: Int32Array.from(ids), scores: rollout.scores ?? {} }
}

function checkPerToken({ tokens, promptLength, mask, samplingLogprobs, loops }: Rollout, refuse: Refuse): void {
  const length = tokens.length - promptLength
  for (const [field, values] of Object.entries({ mask, samplingLogprobs, loops })) {
    if (values === undefined) continue
    if (!isList(values) || values.length !== length)
      throw refuse(field, `must have one entry for each of the ${length} tokens behind the prompt, got ${describe(values)}`)
  }
  const wrong = Array.from(mask ?? []).findIndex((value) => value !== 0 && value !== 1)
  if (wrong !== -1)
    throw refuse(`mask[${wrong}]`, `must be 1 where the model wrote the token, else 0, got ${describe(mask![wrong])}`)
  const infinite = Array.from(samplingLogprobs ?? []).findIndex((value) => !Number.isFinite(value))
  if (infinite !== -1)
    throw refuse(`samplingLogprobs[${infinite}]`, `must be finite, got ${describe(samplingLogprobs![infinite])}`)
}

function checkTurn(turn: RolloutTurn, { tokens, promptLength }: Rollout, refuse: Refuse): void {
  if (typeof turn !== 'object' || turn === null) throw refuse('', `must be { begin, end, reward }, got ${describe(turn)}`)
  const { begin, end, reward } = turn
  const whole = Number.isInteger(begin) && Number.isInteger(end)
  if (!(whole && begin >= promptLength && begin <= end && end <= tokens.length))
    throw refuse(
      '',
      `must lie behind the prompt, from ${promptLength} to ${tokens.length}, got ${describe(begin)} to ${describe(end)}`,
    )
  if (reward !== null && !(typeof reward === 'number' && Math.abs(reward) <= maxReward))
    throw refuse('.reward', `must be a finite number, or null for none, got ${describe(reward)}`)
}

function isList(values: unknown): values is ArrayLike<number> {
  return Array.isArray(values) || types.isTypedArray(values)
}
