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
 * Completed rollouts, as `update` and `gradients` of a policy-gradient trainer take them. Fields that the trainer's objective does not
 * read, and those of other trainers' batches, are ignored; null stands for an absent field. Other names are refused.
 */
export interface RolloutBatch {
  /** Prompt and response of each rollout as token ids. */
  sequences: readonly TokenSequence[]
  /** Per sequence, how many of its tokens are prompt; at least 1. */
  promptLengths: ArrayLike<number>
  /**
   * Per sequence len × D, row-major: the first state of its tokens, for families that begin with one. It must be that of the rollout, or no
   * ratio is 1 at equal weights. Default: drawn as in `score`, by `stateSeed` and `initialState` of the trainer.
   */
  initialStates?: readonly ArrayLike<number>[]
  /**
   * Per sequence its vectors in place of embedded tokens (soft prompts), or undefined, as `score` takes them. `gradients` returns
   * their gradients, `update` hands them to `onInputVectors`.
   */
  inputVectors?: readonly (InputVectors | undefined)[]
  /** One per sequence, `groupSize` consecutive sequences sharing a prompt; null leaves a sequence out. */
  rewards?: ArrayLike<number | null>
  /** One per sequence, instead of rewards. */
  advantages?: ArrayLike<number>
  /**
   * Log-probabilities under the policy that made the rollouts, read where the surrogate has a ratio (`ppo`, `cispo`, …). len-1 per sequence
   * where ratios are those of one loop: GRPO, or weights `last`. T × (len-1), row-major by loop as `score` returns them, where several loops
   * have ratios, for example RLTT with surrogate `ppo` and weights `exit-pdf`. Absent: the model's own, so that every ratio is 1.
   */
  oldLogprobs?: readonly ArrayLike<number>[]
  /** Log-probabilities of the reference, len-1 per sequence (last loop), or T × (len-1); read where the objective compares with one. */
  referenceLogprobs?: readonly ArrayLike<number>[]
  /** Per sequence len-1: 0 where a prediction does not count, for example tokens that a tool wrote. */
  mask?: readonly ArrayLike<number>[]
  /** Per sequence the model's turns, as ranges of its tokens, with their rewards; read by advantages with source `turn`. */
  turns?: readonly (readonly BatchTurn[])[]
  /**
   * Per sequence len-1: the loop each prediction was read from, counted from 0; exit terms train these, and an objective with `exits:
   * 'sampled'` replays them and needs them.
   */
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
  /** Columns of the data set's row behind each sequence. Only an objective that is a function sees them. */
  columns?: readonly Readonly<Record<string, unknown>>[]
}

/** A turn of the model in a batch. */
export interface BatchTurn {
  /** First token. */
  begin: number
  /** Behind the last token. */
  end: number
  /** Of this turn alone; part of the reward of the sequence. */
  reward: number | null
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
  /** Per term whose advantages are those of turns: one per prediction, len-1 per sequence. */
  tokenAdvantages: (number[][] | undefined)[]
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
  /** Loops that are read. */
  loops: number
  /** The deepest of them; default their number. */
  deepest?: number | undefined
  /** What turns gain beside their rewards, per sequence. */
  gains?: readonly (readonly number[])[] | undefined
  /** b_0..b_T per sequence, where the trainer has measured them; else those of the batch. */
  beliefs?: BeliefCurves | undefined
}

/** Belief curves by where they come from. */
export type BeliefCurves = { [Belief in SequenceBelief]?: readonly ArrayLike<number>[] }
type SequenceBelief = Exclude<BeliefSpec['belief'], 'token'>

/** The beliefs in whole responses that the terms of an objective are rewarded by. */
export function beliefsOf({ terms }: Objective): SequenceBelief[] {
  const all = terms.map(({ advantage }) => advantage.loops?.belief)
  return (['gold-answer', 'forced-exit'] as const).filter((belief) => all.includes(belief))
}

const perSequence = [
  ...(['rewards', 'advantages', 'oldLogprobs', 'referenceLogprobs', 'mask', 'turns', 'exits', 'segments', 'strata'] as const),
  ...(['costs', 'exitLoops', 'truncated', 'answers', 'embeddings', 'beliefs', 'initialStates', 'inputVectors'] as const),
  ...(['columns'] as const),
]
/** The names of the fields of a {@link RolloutBatch}. */
export const rolloutFields: readonly (keyof RolloutBatch)[] = ['sequences', 'promptLengths', ...perSequence]

/** What changes what is learnt, and is refused where it is not read. */
const essential: readonly string[] = ['mask', 'inputVectors']
/** Fields of other trainers' batches that may be left in one. */
const ignored: readonly string[] = [...rolloutFields.filter((field) => !essential.includes(field)), 'noise']

/**
 * A copy of the fields of a batch that a trainer knows, so that the caller may go on with its arrays; null counts as absent.
 *
 * @throws LoopLMError INVALID_ARGUMENT when the batch is no object or has a field that no trainer knows
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
  return Object.fromEntries(
    known.map((field) => [field, field === 'inputVectors' ? copyVectors(batch[field]) : copyRows(batch[field])]),
  ) as Batch
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

function copyRow(values: unknown): unknown {
  return Array.isArray(values) || types.isTypedArray(values) ? (values as Int32Array).slice() : values
}

/** The fields of a batch that an objective reads. @param own whether the objective is a function of the caller's */
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
 * Computes the advantages of every term for a batch whose sequences are checked and whose fields are those that the objective reads.
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
  named(operation, () => groupAdvantages(raw, groupSize)) // refuses rewards that are not finite or no whole groups
  const { answers, embeddings } = batch
  const exitLoops = numbers(operation, 'exitLoops', batch.exitLoops)
  const input = { rewards: raw, groupSize, lengths, answers, embeddings, exitLoops }
  return named(operation, () => shapeRewards(objective.rewards, input, step))
}

/** What an action returns; its error with the operation in front. */
function named<Result>(operation: string, action: () => Result): Result {
  try {
    return action()
  } catch (cause) {
    if (!(cause instanceof LoopLMError)) throw cause
    throw new LoopLMError(cause.code, cause.message, { operation, cause })
  }
}

/**
 * Nulls in place of what the filter leaves out.
 *
 * @throws LoopLMError INVALID_ARGUMENT when the filter asks for `truncated` and the batch has none
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

/** Adds the rewards of single loops, and says which sequences have a gradient at all. */
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

/** The advantages of turns, at their tokens. A sequence without turns is one. */
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

/** The curves of one belief: those that the trainer measured, or the batch's. */
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
  // packed for the checks of its rows alone
  packValues(curves, 'beliefs', () => [{ shape: 'loops + 1', length: loops + 1 }], batch.sequences.length, operation)
  return curves
}

/** Response tokens that the mask keeps; without a mask all. */
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

/** Response tokens of each sequence. */
export function responseLengths(batch: { sequences: readonly TokenSequence[]; promptLengths: ArrayLike<number> }): number[] {
  return batch.sequences.map((sequence, i) => sequence.length - batch.promptLengths[i]!)
}

/**
 * Checks the token ids of all sequences, also of those that will have no gradient, and their prompt lengths.
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

/** Refuses a field that has not one entry per sequence. */
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
