// Adds to rollouts what the model or the reference computes about them.
import { LoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { TokenSequence } from '../model/types.js'
import type { RatedBatch, RolloutBatch } from './batch.js'
import {
  loopsToRun,
  needsReference,
  onlyLastLoop,
  type RatedRollouts,
  ratioLoop,
  surrogateOf,
  usesRatio,
  usesTeacher,
} from './objective/compile.js'
import type { TrainedLoops } from './objective/loops.js'
import type { Objective } from './objective/schema.js'
import type { PolicyConfig } from './options.js'
import type { Ranks } from './ranks.js'
import { startingFrom } from './sampling.js'

/** Puts the values of some rows at their places among all rows. Other rows get `empty`. */
export function scattered<Value>(count: number, rows: readonly number[], values: readonly Value[], empty: Value): Value[] {
  const whole = Array<Value>(count).fill(empty)
  for (const [k, i] of rows.entries()) whole[i] = values[k]!
  return whole
}

/** What is needed to query the model outside of training. */
export interface ModelsView {
  model: LoopLM
  ranks: Ranks
  signal: AbortSignal | undefined
}

/**
 * Adds what the model itself can compute for a batch: embeddings for novelty, mean exit loops for costs and strata. An empty
 * response gets an empty embedding and one loop.
 */
export async function addModelsView(
  { model, ranks, signal }: ModelsView,
  batch: RolloutBatch,
  objective: Objective,
  { run, scoring }: TrainedLoops,
): Promise<RolloutBatch> {
  const complete = { ...batch }
  const count = batch.sequences.length
  const rows = [...batch.sequences.keys()].filter((i) => batch.sequences[i]!.length > batch.promptLengths[i]!)
  if (rows.length === 0 || batch.advantages !== undefined) return batch // nothing to learn from, or nothing to rate
  const shares = ranks.strided(rows.length)
  const ask = (own: readonly number[]) => {
    const mine = own.map((k) => rows[k]!)
    const promptLengths = mine.map((i) => batch.promptLengths[i]!)
    return {
      sequences: mine.map((i) => batch.sequences[i]!),
      options: { ...startingFrom(scoring), ...inputsOf(batch, mine), promptLengths, loops: run, signal },
    }
  }
  if (complete.embeddings === undefined && objective.rewards.some(({ kind }) => kind === 'novelty')) {
    const vectors = await ranks.rows('embeddings', shares, (own) => {
      const { sequences, options } = ask(own)
      return model.embed(sequences, options)
    })
    complete.embeddings = scattered<ArrayLike<number>>(count, rows, vectors, [])
  }
  const byLoop = objective.terms.some(
    ({ advantage }) => advantage.strata?.by === 'exit-loop' || advantage.cost?.by === 'exit-loop',
  )
  if (complete.exitLoops === undefined && (byLoop || objective.rewards.some(({ kind }) => kind === 'frugal'))) {
    const { mask } = batch
    const exitLoops = await ranks.rows('exit loops', shares, async (own) => {
      const { sequences, options } = ask(own)
      if (mask === undefined) return Array.from((await model.responseMeans(sequences, options)).exitLoop)
      return maskedExitLoops(model, sequences, { ...options, masks: own.map((k) => mask[rows[k]!]!) })
    })
    complete.exitLoops = scattered(count, rows, exitLoops, 1)
  }
  return complete
}

/** Mean exit loop of the tokens that the model wrote. */
async function maskedExitLoops(
  model: LoopLM,
  sequences: readonly TokenSequence[],
  { masks, ...options }: { promptLengths: number[]; loops: number; signal?: AbortSignal | undefined; masks: ArrayLike<number>[] },
): Promise<number[]> {
  const { exitPdf, loops } = await model.score(sequences, options)
  return sequences.map((sequence, i) => {
    let [sum, count] = [0, 0]
    for (let j = options.promptLengths[i]! - 1; j < sequence.length - 1; j++) {
      if (Number(masks[i]![j]) === 0) continue
      for (let t = 0; t < loops; t++) sum += (t + 1) * exitPdf[i]![t * sequence.length + j]!
      count++
    }
    return count === 0 ? 1 : sum / count
  })
}

/**
 * Checks that `oldLogprobs` cover every loop that has ratios.
 * @throws LoopLMError INVALID_SHAPE
 */
export function checkOldLogprobs(
  { sequences, oldLogprobs }: RolloutBatch,
  objective: Objective,
  trained: TrainedLoops,
  operation: string,
): void {
  const run = loopsToRun(objective, trained)
  const loops = trained.scoring.readLoops?.length ?? run
  if (!Array.isArray(oldLogprobs) || loops === 1 || ratioLoop(objective, run) !== undefined) return
  const i = sequences.findIndex((sequence, i) => sequence.length > 1 && oldLogprobs[i]?.length === sequence.length - 1)
  if (i === -1) return
  const width = sequences[i]!.length - 1
  const message =
    `oldLogprobs[${i}] has length - 1 = ${width} entries, those of one loop, but the objective has ratios at several loops. Pass loops × ` +
    `(length - 1) = ${loops * width} entries, as score returned them before the update; or use the weights 'last'; or omit ` +
    'oldLogprobs if the rollouts are fresh, so that every ratio is 1'
  throw new LoopLMError('INVALID_SHAPE', message, { operation })
}

/** The arguments of {@link withLogprobs}. */
export interface Scoring {
  model: LoopLM
  reference(): Promise<LoopLM>
  config: PolicyConfig
  loops: TrainedLoops
  objective: Objective
  /** The objective is the caller's function, so `objective` does not describe it. */
  custom: boolean
  /**
   * Whether several optimizer steps are made on these rollouts. With only one, every ratio is 1 and nothing needs to be scored.
   */
  several: boolean
  signal: AbortSignal | undefined
  /** The sequences that this process trains. Nothing is added for the others. */
  rows: readonly number[]
}

/** Whether each sequence has a gradient. */
export function activeRows(
  { batch, lengths, counted, moving }: RatedBatch,
  { config, objective, custom, several }: Pick<Scoring, 'config' | 'objective' | 'custom' | 'several'>,
): boolean[] {
  const { kl, lazy, entropy, terms } = objective
  const regularised = kl !== undefined || lazy !== undefined || entropy.token !== 0 || entropy.exit !== 0
  // K1.5 pulls the policy back to that of the rollouts, whatever the advantage: nothing as long as they are the same.
  const pulled = (several || batch.oldLogprobs !== undefined) && terms.some((term) => surrogateOf(term).kind === 'k15')
  const all = custom || regularised || pulled || !config.skipFlatGroups
  return counted.map((is, i) => is && lengths[i]! > 0 && (all || moving[i]!))
}

/** Adds the log-probabilities that the objective needs and the batch lacks. */
export async function withLogprobs(rated: RatedBatch, active: readonly boolean[], scoring: Scoring): Promise<RatedRollouts> {
  const { batch, lengths, counted, advantages, tokenAdvantages } = rated
  const { objective, rows } = scoring
  const { sequences, initialStates, inputVectors, promptLengths, oldLogprobs, referenceLogprobs, exits, segments, mask } = batch
  const complete: RatedRollouts = {
    ...{ sequences, initialStates, inputVectors, promptLengths, lengths, counted, active, advantages, tokenAdvantages },
    ...{ oldLogprobs, referenceLogprobs, exits, segments, mask },
  }
  if (objective.terms.some(({ space }) => space === 'marginal')) complete.marginal = marginal(batch, scoring)
  if (rows.length === 0) return complete
  if (scoring.several) await addOldLogprobs(complete, rows, scoring)
  if (needsReference(objective)) await addReference(complete, rows, scoring)
  return complete
}

/** The responses after a start token, without their prompts. */
function marginal({ sequences, promptLengths, mask }: RolloutBatch, { config, model }: Scoring) {
  const start = config.marginalToken ?? model.config.bos_token_id ?? 0
  return {
    sequences: sequences.map((sequence, i) => [start, ...Array.from(sequence).slice(promptLengths[i]!)]),
    mask: mask?.map((row, i) => Array.from(row).slice(promptLengths[i]! - 1)),
  }
}

/** The initial states and input vectors of some rows, if the batch has them. */
export function inputsOf(
  { initialStates, inputVectors }: Pick<RatedRollouts, 'initialStates' | 'inputVectors'>,
  rows: readonly number[],
) {
  return {
    ...(initialStates === undefined ? {} : { initialStates: rows.map((i) => initialStates[i]!) }),
    ...(inputVectors === undefined ? {} : { inputVectors: rows.map((i) => inputVectors[i]) }),
  }
}

async function addOldLogprobs(complete: RatedRollouts, rows: readonly number[], scoring: Scoring): Promise<void> {
  const { model, config, objective, custom, signal } = scoring
  const run = loopsToRun(objective, scoring.loops)
  const scored = async (space: 'conditional' | 'marginal', sequences: RatedRollouts['sequences'], promptLengths: number[]) => {
    const { logprobs } = await model.score(
      rows.map((i) => sequences[i]!),
      {
        ...{ promptLengths, temperature: config.temperature, signal, ...scoring.loops.scoring },
        lastLoop: !custom && onlyLastLoop(objective, space, run),
        loops: run,
        ...(space === 'conditional' ? inputsOf(complete, rows) : {}),
      },
    )
    return scattered<ArrayLike<number>>(sequences.length, rows, logprobs, [])
  }
  if ((custom || usesRatio(objective, 'conditional')) && complete.oldLogprobs === undefined) {
    const promptLengths = rows.map((i) => complete.promptLengths[i]!)
    complete.oldLogprobs = await scored('conditional', complete.sequences, promptLengths)
  }
  if (usesRatio(objective, 'marginal')) {
    const { sequences, mask } = complete.marginal!
    const ones = rows.map(() => 1)
    complete.marginal = { sequences, mask, oldLogprobs: await scored('marginal', sequences, ones) }
  }
}

async function addReference(complete: RatedRollouts, rows: readonly number[], scoring: Scoring): Promise<void> {
  const { config, objective, signal } = scoring
  const lazy = objective.lazy?.old === 'ema'
  const teacher = usesTeacher(objective)
  if (complete.referenceLogprobs !== undefined && !lazy && !teacher) return
  const loops = scoring.loops.read.length
  const byLoop =
    teacher ||
    (objective.kl !== undefined && objective.kl.loops !== 'last') ||
    (lazy && !onlyLastLoop(objective, 'conditional', scoring.loops.run))
  const sequences = rows.map((i) => complete.sequences[i]!)
  const promptLengths = rows.map((i) => complete.promptLengths[i]!)
  const { temperature } = config
  const options = { promptLengths, lastLoop: !byLoop, temperature, signal, ...scoring.loops.scoring, ...inputsOf(complete, rows) }
  const scores = await (await scoring.reference()).score(sequences, options)
  const scatter = (values: readonly ArrayLike<number>[]) => scattered(complete.sequences.length, rows, values, [])
  const logprobs = scatter(scores.logprobs)
  if (complete.referenceLogprobs === undefined) complete.referenceLogprobs = logprobs
  if (lazy) complete.lazyLogprobs = logprobs
  if (!teacher) return
  const widths = sequences.map((sequence) => sequence.length - 1)
  complete.referenceEntropy = scatter(scores.entropy.map((entropy, i) => entropy.slice((loops - 1) * widths[i]!)))
  complete.referenceExitPdf = scatter(
    scores.exitPdf.map((pdf, i) => {
      // the pdf has one entry per token; the one after the last token is not used
      const [width, stride] = [widths[i]!, widths[i]! + 1]
      return Array.from({ length: loops }, (_, t) => [...pdf.subarray(t * stride, t * stride + width)]).flat()
    }),
  )
}
