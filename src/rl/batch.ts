import { types } from 'node:util'
import { LoopLMError } from '../errors.js'
import { largest, smallest } from '../extremes.js'
import { describe, packSequences, packValues } from '../model/checks.js'
import type { InputVectors, TokenSequence } from '../model/types.js'
import { checkNames } from '../validation/arguments.js'
import type { Metrics } from './events.js'
import { advantagesOf, groupAdvantages, reduce } from './objective/advantages.js'
import { beliefAdvantages } from './objective/belief.js'
import { usesRatio, usesReference } from './objective/compile.js'
import type { AdvantageSpec, BeliefSpec, Objective, RewardShaper } from './objective/schema.js'
import { isLabelFree, shapeRewards } from './objective/shape-rewards.js'
import { overTokens, turnAdvantages } from './objective/turns.js'

/**
 * Completed rollouts, which `update` and `gradients` of a policy-gradient trainer accept. Fields that only other objectives or
 * other trainers read are ignored. null means absent. Unknown names are rejected.
 */
export interface RolloutBatch {
  /** Prompt and response of each rollout as token ids. */
  sequences: readonly TokenSequence[]
  /** Per sequence, the number of prompt tokens; at least 1. */
  promptLengths: ArrayLike<number>
  /**
   * Per sequence len × D, row-major: the initial state of its tokens, for families that start from one. It must be the one of
   * the rollout, otherwise ratios differ from 1 even at equal weights. By default it is drawn as in `score`, with the trainer's
   * `stateSeed` and `initialState`.
   */
  initialStates?: readonly ArrayLike<number>[]
  /**
   * Per sequence the vectors that replace embedded tokens (soft prompts), or undefined, as in `score`. `gradients` returns
   * their gradients, `update` passes them to `onInputVectors`.
   */
  inputVectors?: readonly (InputVectors | undefined)[]
  /** One per sequence. `groupSize` consecutive sequences share a prompt. null excludes a sequence. */
  rewards?: ArrayLike<number | null>
  /** One per sequence. Used instead of rewards. */
  advantages?: ArrayLike<number>
  /**
   * Log-probabilities under the policy that made the rollouts, for surrogates with a ratio (`ppo`, `cispo`, …). len-1 per
   * sequence if ratios are of one loop: GRPO, or weights `last`. T × (len-1), row-major by loop as `score` returns them, if
   * several loops have ratios, for example RLTT with surrogate `ppo` and weights `exit-pdf`. Defaults to the model's own, so
   * that every ratio is 1.
   */
  oldLogprobs?: readonly ArrayLike<number>[]
  /**
   * Log-probabilities of the reference, len-1 per sequence (last loop), or T × (len-1). Used if the objective compares with a
   * reference.
   */
  referenceLogprobs?: readonly ArrayLike<number>[]
  /** Per sequence len-1: 0 for predictions that do not count, for example tokens that a tool wrote. */
  mask?: readonly ArrayLike<number>[]
  /** Per sequence the model's turns with their rewards, as ranges of its tokens. Used by advantages with source `turn`. */
  turns?: readonly (readonly BatchTurn[])[]
  /**
   * Per sequence len-1: the loop each prediction was read from, counted from 0. Exit terms train these. An objective with
   * `exits: 'sampled'` requires and replays them.
   */
  exits?: readonly ArrayLike<number>[]
  /** Per sequence len-1: the index of the response's action that a token belongs to (LLDS with gate `segment`). */
  segments?: readonly ArrayLike<number>[]
  /** Stratum of each sequence, for strata with `by: 'given'`. */
  strata?: ArrayLike<number>
  /** Cost of each sequence in [0, 1], for costs with `by: 'given'`. */
  costs?: ArrayLike<number>
  /** Mean exit loop of the tokens of each sequence. Defaults to what the model computes. */
  exitLoops?: ArrayLike<number>
  /** Whether each response was cut off at the length limit. */
  truncated?: readonly boolean[]
  /** The answer in each response as a string, or null if it has none (majority and novelty rewards). */
  answers?: readonly (string | null)[]
  /** A vector per response (novelty rewards). */
  embeddings?: readonly ArrayLike<number>[]
  /**
   * Per sequence b_0..b_T: the belief in the answer before the first loop and after each loop (beliefs `gold-answer` and
   * `forced-exit`).
   */
  beliefs?: readonly ArrayLike<number>[]
  /** The columns of each sequence's dataset row. Only passed to an objective that is a function. */
  columns?: readonly Readonly<Record<string, unknown>>[]
}

/** A turn of the model in a batch. */
export interface BatchTurn {
  /** Index of the first token. */
  begin: number
  /** Index after the last token. */
  end: number
  /** The reward of this turn alone; it is part of the sequence's reward. */
  reward: number | null
}

/** A batch whose rewards were converted to advantages. */
export interface RatedBatch {
  batch: RolloutBatch
  /** Number of response tokens of each sequence that count. */
  lengths: number[]
  /** After shaping and filtering. null: the sequence does not count. */
  rewards: (number | null)[]
  counted: boolean[]
  /** Per term of the objective: advantages per sequence, one or T each. [] for sequences that do not count. */
  advantages: number[][][]
  /** Per term whose advantages are per turn: one per prediction, len-1 per sequence. */
  tokenAdvantages: (number[][] | undefined)[]
  /** Whether each sequence has a gradient through its advantages. */
  moving: boolean[]
  /** Sequences per group: `groupSize`, or 1 if advantages were given. */
  groupSize: number
  /** Statistics of rewards and lengths under TRL's names. */
  metrics: Metrics
}

/** What rating needs besides the batch and the objective. */
export interface RatingSettings {
  groupSize: number
  /** Counted from 0. */
  step: number
  /** The longest response in tokens, for costs and strata by length. */
  maxLength: number | undefined
  /** How many loops are read. */
  loops: number
  /** The deepest loop that is read. Defaults to `loops`. */
  deepest?: number | undefined
  /** What turns gain besides their rewards, per sequence. */
  gains?: readonly (readonly number[])[] | undefined
  /** b_0..b_T per sequence, if the trainer measured them. Otherwise those of the batch are used. */
  beliefs?: BeliefCurves | undefined
}

/** Belief curves by source. */
export type BeliefCurves = { [Belief in SequenceBelief]?: readonly ArrayLike<number>[] }
type SequenceBelief = Exclude<BeliefSpec['belief'], 'token'>

/** The beliefs in whole responses that an objective's terms use as rewards. */
export function beliefsOf({ terms }: Objective): SequenceBelief[] {
  const all = terms.map(({ advantage }) => advantage.loops?.belief)
  return (['gold-answer', 'forced-exit'] as const).filter((belief) => all.includes(belief))
}

const perSequence = [
  ...(['rewards', 'advantages', 'oldLogprobs', 'referenceLogprobs', 'mask', 'turns', 'exits', 'segments', 'strata'] as const),
  ...(['costs', 'exitLoops', 'truncated', 'answers', 'embeddings', 'beliefs', 'initialStates', 'inputVectors'] as const),
  ...(['columns'] as const),
]
/** The field names of a {@link RolloutBatch}. */
export const rolloutFields: readonly (keyof RolloutBatch)[] = ['sequences', 'promptLengths', ...perSequence]

/** Fields that change what is learned. They are rejected if the trainer does not use them. */
const essential: readonly string[] = ['mask', 'inputVectors']
/** Fields of other trainers' batches that are ignored. */
const ignored: readonly string[] = [...rolloutFields.filter((field) => !essential.includes(field)), 'noise']

/**
 * Copies the fields of a batch that a trainer knows, so that the caller may reuse its arrays. null counts as absent.
 *
 * @throws LoopLMError INVALID_ARGUMENT if the batch is not an object or has a field that no trainer knows
 */
export function copyBatch<Batch extends object>(
  operation: string,
  batch: Batch,
  fields: readonly (keyof Batch & string)[],
): Batch {
  if (typeof batch !== 'object' || batch === null || Array.isArray(batch)) {
    const message = `a batch must be an object with sequences and what belongs to them, got ${describe(batch)}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  const extra = Object.keys(batch).filter(
    (name) => !ignored.includes(name) && !(essential.includes(name) && isAbsent(batch[name as never])),
  )
  const unknown = Object.fromEntries(extra.map((name) => [name, true]))
  checkNames(unknown, fields, 'field', operation)
  const known = fields.filter((field) => !isAbsent(batch[field]))
  const copies: Partial<Record<string, (values: unknown) => unknown>> = { inputVectors: copyVectors, turns: copyTurns }
  return Object.fromEntries(known.map((field) => [field, (copies[field] ?? copyRows)(batch[field])])) as Batch
}

function isAbsent(value: unknown): boolean {
  return value === undefined || value === null
}

function copyRows(values: unknown): unknown {
  return Array.isArray(values) ? values.map(copyRow) : copyRow(values)
}

function copyVectors(values: unknown): unknown {
  if (!Array.isArray(values)) return values
  const own = (vectors: object) => Object.entries(vectors).map(([name, rows]) => [name, copyRow(rows)])
  return values.map((vectors) => (typeof vectors === 'object' && vectors !== null ? Object.fromEntries(own(vectors)) : undefined))
}

function copyTurns(values: unknown): unknown {
  const own = (turn: unknown) => (typeof turn === 'object' && turn !== null ? { ...turn } : turn)
  return Array.isArray(values) ? values.map((turns) => (Array.isArray(turns) ? turns.map(own) : turns)) : values
}

function copyRow(values: unknown): unknown {
  return Array.isArray(values) || types.isTypedArray(values) ? (values as Int32Array).slice() : values
}

/**
 * The fields of a batch that an objective uses.
 * @param own whether the objective is the caller's function
 */
export function usedFields(batch: RolloutBatch, objective: Objective, own: boolean): RolloutBatch {
  const { terms, lazy, filter } = objective
  const rated = batch.advantages === undefined
  const needs = (test: (spec: AdvantageSpec) => boolean) => rated && terms.some(({ advantage }) => test(advantage))
  const shapes = (...kinds: RewardShaper['kind'][]) => rated && objective.rewards.some(({ kind }) => kinds.includes(kind))
  const used: Record<(typeof perSequence)[number], boolean> = {
    rewards: rated,
    advantages: true,
    oldLogprobs: own || usesRatio(objective, 'conditional'),
    referenceLogprobs: usesReference(objective),
    mask: true,
    turns: needs(({ source }) => source === 'turn'),
    exits: objective.exits === 'sampled' || terms.some(({ channel }) => channel === 'exit'),
    segments: lazy?.gate === 'segment',
    strata: needs(({ strata }) => strata?.by === 'given'),
    costs: needs(({ cost }) => cost?.by === 'given'),
    exitLoops: needs(({ strata, cost }) => strata?.by === 'exit-loop' || cost?.by === 'exit-loop') || shapes('frugal'),
    truncated: (rated && filter.dropTruncated) || needs(({ strata }) => strata?.by === 'truncated'),
    answers: shapes('majority', 'novelty'),
    embeddings: shapes('novelty'),
    beliefs: beliefsOf(objective).length > 0,
    columns: own,
    initialStates: true,
    inputVectors: true,
  }
  const { sequences, promptLengths } = batch
  const fields = perSequence.filter((field) => used[field] && batch[field] !== undefined)
  return { sequences, promptLengths, ...Object.fromEntries(fields.map((field) => [field, batch[field]])) }
}

/**
 * Computes the advantages of every term. The sequences must be checked, and the batch must only have the fields that the
 * objective uses.
 *
 * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field, NON_FINITE for a reward that is not finite
 */
export function rateBatch(operation: string, batch: RolloutBatch, objective: Objective, settings: RatingSettings): RatedBatch {
  const count = batch.sequences.length
  for (const field of perSequence) checkCount(operation, field, batch[field], count)
  if (objective.lazy?.gate === 'segment' && batch.segments === undefined) {
    const message =
      "segments: missing. The gate 'segment' of objective.lazy needs them, length - 1 per sequence. Pass them to update(), because rollouts of run() have none"
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  entries(operation, 'truncated', batch.truncated, (cut) => typeof cut === 'boolean', 'truncated are true or false')
  const lengths = maskedLengths(operation, batch)
  const metrics = lengthMetrics(lengths)
  if (batch.advantages !== undefined) {
    const given = numbers(operation, 'advantages', batch.advantages)!
    const outcome = objective.terms.map(({ advantage }) =>
      given.map((value) => (fromRewards(advantage) ? value : advantage.source === 'one' ? 1 : 0)),
    )
    const { advantages } = addBeliefs(operation, objective, batch, outcome, { ...settings, groupSize: 1 })
    const counted = given.map(() => true)
    const tokenAdvantages = objective.terms.map(() => undefined)
    return { batch, lengths, rewards: given, counted, advantages, tokenAdvantages, moving: counted, groupSize: 1, metrics }
  }
  const imitation = objective.terms.every(({ advantage }) => !fromRewards(advantage))
  if (batch.rewards === undefined && !isLabelFree(objective.rewards) && !imitation) {
    throw new LoopLMError('INVALID_ARGUMENT', 'a batch needs rewards or advantages, one per sequence', { operation })
  }
  const { groupSize } = settings
  const raw = batch.rewards === undefined ? Array<number>(count).fill(0) : Array.from(batch.rewards)
  const shapes = shaped(operation, raw, lengths, objective, batch, settings)
  const rewards = filterRewards(operation, objective, shapes, batch.truncated, groupSize)
  const { groupStds, flat } = groupAdvantages(rewards, groupSize)
  const outcome = objective.terms.map(({ advantage }) => {
    const strata = strataOf(operation, advantage, batch, lengths)
    const costs = costsOf(operation, advantage, batch, lengths, settings)
    return named(operation, () => advantagesOf(advantage, { rewards, groupSize, strata, costs }))
  })
  const { advantages, moving } = addBeliefs(operation, objective, batch, outcome, settings)
  const tokenAdvantages = objective.terms.map(({ advantage }) =>
    advantage.source === 'turn' ? advantagesOfTurns(operation, advantage, batch, rewards, settings) : undefined,
  )
  for (const rows of tokenAdvantages) for (const [i, row] of (rows ?? []).entries()) moving[i] ||= row.some((a) => a !== 0)
  Object.assign(metrics, {
    reward: mean(raw.filter((reward) => reward !== null)),
    reward_std: mean(groupStds),
    frac_reward_zero_std: mean(flat.map(Number)),
  })
  if (raw.includes(null)) metrics.frac_reward_null = mean(raw.map((reward) => Number(reward === null)))
  const counted = rewards.map((reward) => reward !== null)
  return { batch, lengths, rewards, counted, advantages, tokenAdvantages, moving, groupSize, metrics }
}

function shaped(
  operation: string,
  raw: readonly (number | null)[],
  lengths: readonly number[],
  objective: Objective,
  batch: RolloutBatch,
  { groupSize, step }: RatingSettings,
): (number | null)[] {
  named(operation, () => groupAdvantages(raw, groupSize)) // rejects rewards that are not finite or do not form whole groups
  const { embeddings } = batch
  const answers = entries(operation, 'answers', batch.answers, isAnswer, 'answers are strings, or null for none')
  const exitLoops = numbers(operation, 'exitLoops', batch.exitLoops)
  const input = { rewards: raw, groupSize, lengths, answers, embeddings, exitLoops }
  return named(operation, () => shapeRewards(objective.rewards, input, step))
}

/** Whether label-free rewards can compare an answer. */
export function isAnswer(answer: unknown): answer is string | null {
  return typeof answer === 'string' || answer === null
}

/** Runs an action and prefixes its error with the operation. */
function named<Result>(operation: string, action: () => Result): Result {
  try {
    return action()
  } catch (cause) {
    if (!(cause instanceof LoopLMError)) throw cause
    throw new LoopLMError(cause.code, cause.message, { operation, cause })
  }
}

/**
 * Replaces the rewards of filtered sequences by null.
 *
 * @throws LoopLMError INVALID_ARGUMENT if the filter needs `truncated` and the batch has none
 */
export function filterRewards(
  operation: string,
  { filter }: Objective,
  rewards: readonly (number | null)[],
  truncated: readonly boolean[] | undefined,
  groupSize: number,
): (number | null)[] {
  if (filter.dropTruncated && truncated === undefined) {
    const message = 'truncated: the filter dropTruncated needs one per sequence, and the batch has none'
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  let kept = rewards.map((reward, i) => (filter.dropTruncated && truncated?.[i] === true ? null : reward))
  if (filter.minGroupStd > 0) {
    const groups = kept.map((_, i) => Math.floor(i / groupSize))
    const stds = reduce('deviation', kept, groups)
    kept = kept.map((reward, i) => (stds[groups[i]!]! < filter.minGroupStd ? null : reward))
  }
  const { keepPerGroup } = filter
  return keepPerGroup === undefined ? kept : kept.map((reward, i) => (i % groupSize < keepPerGroup ? reward : null))
}

function strataOf(
  operation: string,
  { strata }: AdvantageSpec,
  batch: RolloutBatch,
  lengths: readonly number[],
): number[] | undefined {
  if (strata === undefined) return undefined
  const { by } = strata
  if (by === 'given') {
    const allowed = (stratum: number) => Number.isInteger(stratum) && stratum >= 0 && stratum < 2 ** 20
    return numbers(operation, 'strata', batch.strata, allowed, 'strata are integers from 0')
  }
  if (by === 'truncated') return batch.truncated?.map(Number)
  if (by === 'exit-loop')
    return numbers(operation, 'exitLoops', batch.exitLoops)?.map((loop) => Math.max(0, Math.round(loop) - 1))
  const longest = largest(lengths, 1)
  return lengths.map((length) => Math.min(7, Math.floor((8 * length) / longest)))
}

function costsOf(
  operation: string,
  { cost }: AdvantageSpec,
  batch: RolloutBatch,
  lengths: readonly number[],
  { loops, deepest = loops, maxLength }: RatingSettings,
): number[] | undefined {
  if (cost === undefined) return undefined
  const { by } = cost
  if (by === 'given') {
    const allowed = (value: number) => typeof value === 'number' && value >= 0 && value <= 1
    return numbers(operation, 'costs', batch.costs, allowed, 'costs are numbers from 0 to 1')
  }
  if (by === 'exit-loop')
    return numbers(operation, 'exitLoops', batch.exitLoops)?.map((loop) => (loop - 1) / Math.max(1, deepest - 1))
  const longest = maxLength ?? largest(lengths, 1)
  return lengths.map((length) => Math.min(1, length / longest))
}

/** Adds the rewards of single loops, and determines which sequences have a gradient. */
function addBeliefs(
  operation: string,
  objective: Objective,
  batch: RolloutBatch,
  outcome: readonly (readonly (number | null)[])[],
  settings: RatingSettings,
): { advantages: number[][][]; moving: boolean[] } {
  const moving = batch.sequences.map(() => false)
  const advantages = objective.terms.map(({ advantage }, k) => {
    const spec = advantage.loops
    const added =
      spec === undefined || spec.belief === 'token'
        ? undefined
        : beliefAdvantages(spec, beliefCurves(operation, objective, spec.belief, batch, settings), settings.groupSize)
    return outcome[k]!.map((value, i) => {
      if (value === null) return []
      const row = added === undefined ? [value] : added[i]!.map((x) => value + x)
      if (spec?.belief === 'token' || row.some((a) => a !== 0)) moving[i] = true
      return row
    })
  })
  return { advantages, moving }
}

function fromRewards({ source }: AdvantageSpec): boolean {
  return source === 'reward' || source === 'turn'
}

/** The advantages of turns, spread over their tokens. A sequence without turns counts as one turn. */
function advantagesOfTurns(
  operation: string,
  { discount, scale }: AdvantageSpec,
  batch: RolloutBatch,
  rewards: readonly (number | null)[],
  { groupSize, gains }: RatingSettings,
): number[][] {
  const { sequences, promptLengths } = batch
  const turns = sequences.map(
    ({ length }, i) => checkTurns(operation, batch, i) ?? [{ begin: promptLengths[i]!, end: length, reward: null }],
  )
  const values = turnAdvantages({ discount, scale: scale === 'none' ? 'none' : 'group' }, { rewards, turns, gains, groupSize })
  return overTokens(
    turns,
    values,
    sequences.map(({ length }) => length),
  )
}

/** @throws LoopLMError INVALID_ARGUMENT naming the turn */
function checkTurns(
  operation: string,
  { sequences, promptLengths, turns }: RolloutBatch,
  i: number,
): readonly BatchTurn[] | undefined {
  const own: unknown = turns?.[i]
  if (own === undefined || own === null) return undefined
  const refuse = (what: string, message: string) =>
    new LoopLMError('INVALID_ARGUMENT', `turns[${i}]${what} ${message}`, { operation })
  if (!Array.isArray(own)) throw refuse('', `must be a list of { begin, end, reward }, got ${describe(own)}`)
  let from = promptLengths[i]!
  for (const [k, turn] of (own as (BatchTurn | null)[]).entries()) {
    const { begin, end, reward } = turn ?? ({} as BatchTurn)
    const inside =
      Number.isInteger(begin) && Number.isInteger(end) && begin >= from && begin <= end && end <= sequences[i]!.length
    if (!inside)
      throw refuse(
        `[${k}]`,
        `must have begin and end from ${from} to ${sequences[i]!.length}, got ${describe(begin)} and ${describe(end)}`,
      )
    if (reward !== null && !Number.isFinite(reward))
      throw refuse(`[${k}].reward`, `must be a finite number or null, got ${describe(reward)}`)
    from = end
  }
  return own
}

/** The curves of one belief: those that the trainer measured, otherwise the batch's. */
function beliefCurves(
  operation: string,
  objective: Objective,
  belief: SequenceBelief,
  batch: RolloutBatch,
  { loops, beliefs }: RatingSettings,
): readonly ArrayLike<number>[] {
  const curves = beliefs?.[belief] ?? batch.beliefs
  const kinds = beliefsOf(objective)
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', `beliefs: ${message}`, { operation })
  if (curves === undefined) throw refuse(`the belief "${belief}" needs b_0..b_T per sequence, and the batch has none`)
  if (curves === batch.beliefs && kinds.length > 1)
    throw refuse(
      `the objective has the beliefs ${kinds.join(' and ')}, but a batch has the curves of only one; use run(), which measures both`,
    )
  // only for its checks of the rows
  packValues(curves, 'beliefs', () => [{ shape: 'loops + 1', length: loops + 1 }], batch.sequences.length, operation)
  return curves
}

/** Number of response tokens per sequence that the mask keeps. Without a mask, all. */
export function maskedLengths(
  operation: string,
  { sequences, promptLengths, mask }: Pick<RolloutBatch, 'sequences' | 'promptLengths' | 'mask'>,
): number[] {
  if (mask === undefined) return responseLengths({ sequences, promptLengths })
  checkCount(operation, 'mask', mask, sequences.length)
  return sequences.map((sequence, i) => {
    const row: ArrayLike<unknown> | null | undefined = mask[i]
    if (row?.length !== sequence.length - 1) {
      const message = `mask[${i}] must have length - 1 = ${sequence.length - 1} entries, got ${describe(row)}`
      throw new LoopLMError('INVALID_SHAPE', message, { operation })
    }
    let counted = 0
    for (let j = 0; j < row.length; j++) {
      const value = row[j]
      if (value !== 0 && value !== 1 && typeof value !== 'boolean') {
        throw new LoopLMError('INVALID_ARGUMENT', `mask[${i}][${j}] must be 0 or 1, got ${describe(value)}`, { operation })
      }
      if (j >= promptLengths[i]! - 1) counted += Number(value)
    }
    return counted
  })
}

/** Number of response tokens per sequence. */
export function responseLengths(batch: { sequences: readonly TokenSequence[]; promptLengths: ArrayLike<number> }): number[] {
  return batch.sequences.map((sequence, i) => sequence.length - batch.promptLengths[i]!)
}

/**
 * Checks the token ids and prompt lengths of all sequences, including those without a gradient.
 *
 * @throws LoopLMError INVALID_ARGUMENT or INVALID_SHAPE naming the field and the sequence
 */
export function checkSequences(
  operation: string,
  sequences: readonly TokenSequence[],
  promptLengths: ArrayLike<number>,
  vocabulary: number,
): void {
  if (!Array.isArray(sequences) || sequences.length === 0) {
    const message = `sequences must be a non-empty array of token id arrays, got ${describe(sequences)}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  packSequences(sequences, { vocabulary, minLength: 1 }, operation)
  if (promptLengths === undefined) {
    throw new LoopLMError('INVALID_ARGUMENT', 'promptLengths is missing: one number per sequence', { operation })
  }
  checkCount(operation, 'promptLengths', promptLengths, sequences.length)
  for (const [i, sequence] of sequences.entries()) {
    const prompt = promptLengths[i]!
    if (Number.isInteger(prompt) && prompt >= 1 && prompt <= sequence.length) continue
    const allowed = `an integer from 1 to the ${sequence.length} tokens of its sequence`
    const message = `promptLengths[${i}] must be ${allowed}, got ${describe(prompt)}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
}

/** Rejects a field that does not have one entry per sequence. */
export function checkCount(operation: string, field: string, values: unknown, count: number): void {
  if (values === undefined) return
  const length = typeof values === 'object' ? (values as { length?: unknown } | null)?.length : undefined
  if (length === count) return
  if (typeof length === 'number') {
    throw new LoopLMError('INVALID_SHAPE', `${field} has ${length} entries for ${count} sequences`, { operation })
  }
  const message = `${field} must be an array with one entry for each of the ${count} sequences, got ${describe(values)}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
}

function lengthMetrics(lengths: readonly number[]): Metrics {
  return {
    'completions/mean_length': mean(lengths),
    'completions/min_length': smallest(lengths),
    'completions/max_length': largest(lengths),
  }
}

function numbers(
  operation: string,
  field: string,
  values: ArrayLike<number> | undefined,
  allowed: (value: number) => boolean = Number.isFinite,
  rule = `${field} are finite numbers`,
): number[] | undefined {
  return entries(operation, field, values, allowed, rule)
}

function entries<Value>(
  operation: string,
  field: string,
  values: ArrayLike<Value> | undefined,
  allowed: (value: Value) => boolean,
  rule: string,
): Value[] | undefined {
  if (values === undefined) return undefined
  const list = Array.from(values)
  const wrong = list.findIndex((value) => !allowed(value))
  if (wrong === -1) return list
  const code = typeof list[wrong] === 'number' && !Number.isFinite(list[wrong]) ? 'NON_FINITE' : 'INVALID_ARGUMENT'
  throw new LoopLMError(code, `${field}[${wrong}] is ${describe(list[wrong])}; ${rule}`, { operation })
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length
}
