// Turns rated rollouts into logical batches, and those into gradients.
import { Random } from '../data/random.js'
import type { LoopLM } from '../model/model.js'
import type { InputVectors, LossMetrics } from '../model/types.js'
import type { RatedBatch } from './batch.js'
import { inputsOf } from './complete-rollouts.js'
import type { Measured } from './loss-metrics.js'
import { lossMetrics } from './loss-metrics.js'
import { groupAdvantages } from './objective/advantages.js'
import { type EnginePass, enginePasses, type RatedRollouts, usesRatio } from './objective/compile.js'
import { checkGradient, type ObjectiveContext, type OwnObjective } from './objective/custom-objective.js'
import type { TrainedLoops } from './objective/loops.js'
import { lengthNormalizers } from './objective/normalizer.js'
import type { Objective } from './objective/schema.js'
import type { PolicyConfig } from './options.js'
import type { LogicalBatch } from './updates.js'

const shuffleStream = 2 ** 16 // different from the substreams of rollouts
const drawStream = 2 ** 17

/** One logical batch: calls of the engine's loss core, or the caller's own objective. */
export interface PolicyLoss extends LogicalBatch {
  /** The engine's calls, in order. */
  passes: EnginePass[]
  /** Set instead if the objective is a function. */
  own?: {
    /** The function. */
    objective: OwnObjective
    /** Its argument, without the scores. */
    context: Omit<ObjectiveContext, 'scores'>
    /** Per sequence len × D: the initial state of its tokens, for families that start from one. */
    initialStates?: readonly ArrayLike<number>[]
    /** Per sequence the vectors that replace embedded tokens. */
    inputVectors?: readonly (InputVectors | undefined)[]
  }
}

/**
 * The logical batches of a step, as indices of rollouts. Every pass over the rollouts is split into minibatches of whole
 * groups.
 */
export function logicalBatches(config: PolicyConfig, step: number, { rewards, groupSize }: RatedBatch): number[][] {
  const { updatesPerRollout, minibatches, seed } = config
  const groups = rewards.length / groupSize
  const parts: number[][] = []
  for (let pass = 0; pass < updatesPerRollout; pass++) {
    const order = Array.from({ length: groups }, (_, group) => group)
    if (minibatches > 1) new Random(seed, step, shuffleStream + pass).shuffle(order)
    for (let k = 0; k < minibatches; k++) {
      const part = order.slice(Math.floor((k * groups) / minibatches), Math.floor(((k + 1) * groups) / minibatches))
      if (part.length > 0) parts.push(part.flatMap((group) => Array.from({ length: groupSize }, (_, i) => group * groupSize + i)))
    }
  }
  return parts
}

/** The part of a logical batch that this process trains. */
export interface OwnPart {
  /** The sequences of the whole batch. */
  part: readonly number[]
  /** The sequences that this process trains. */
  own: readonly number[]
}

/**
 * The loss of this process's share of a logical batch.
 *
 * @param settings.constantLength divisor of the normalizer `constant`
 */
export function policyLoss(
  objective: Objective | OwnObjective,
  rated: RatedBatch,
  rollouts: RatedRollouts,
  { part, own }: OwnPart,
  settings: { config: PolicyConfig; step: number; loops: TrainedLoops; constantLength: number | undefined },
): PolicyLoss {
  const { config, step, loops, constantLength } = settings
  if (typeof objective === 'function') {
    const context = customContext(rated, rollouts, { part, own }, step)
    return { sequences: context.sequences, rows: own, passes: [], own: { objective, context, ...inputsOf(rollouts, own) } }
  }
  const { temperature, recompute, tokensPerMicroBatch } = config
  const seed = new Random(config.seed, step, drawStream).word()
  const engine = { temperature, recompute, tokensPerMicroBatch, constantLength, loops, seed, own: new Set(own) }
  const passes = enginePasses(objective, rollouts, part, step, engine)
  return { sequences: own.map((i) => rollouts.sequences[i]!), rows: own, passes }
}

function customContext(
  rated: RatedBatch,
  rollouts: RatedRollouts,
  { part, own }: OwnPart,
  step: number,
): Omit<ObjectiveContext, 'scores'> {
  const given = rated.batch.advantages !== undefined
  const advantages = given ? rated.rewards : groupAdvantages(rated.rewards, rated.groupSize).advantages
  const pick = <Value>(values: ArrayLike<Value>) => own.map((i) => values[i]!)
  const active = part.filter((i) => rollouts.active[i])
  const normalizers = lengthNormalizers(
    active.map((i) => rollouts.lengths[i]!),
    'response-mean',
  )
  const normalizerOf = new Map(active.map((i, k) => [i, normalizers[k]!]))
  return {
    step,
    sequences: pick(rollouts.sequences),
    promptLengths: pick(rollouts.promptLengths),
    rewards: pick(rated.rewards) as number[],
    advantages: pick(advantages) as number[],
    lengthNormalizers: own.map((i) => normalizerOf.get(i)!),
    oldLogprobs: rollouts.oldLogprobs && pick(rollouts.oldLogprobs),
    mask: rollouts.mask && pick(rollouts.mask),
    columns: rated.batch.columns && pick(rated.batch.columns),
  }
}

/** Accumulates the gradient of a logical batch. */
export async function accumulatePolicyLoss(
  model: LoopLM,
  loss: PolicyLoss,
  objective: Objective,
  config: PolicyConfig,
  loops: TrainedLoops,
  last: () => Promise<void>,
): Promise<Measured> {
  const { passes, own } = loss
  if (own !== undefined) return accumulateCustom(model, loss, own, config, loops, last)
  const measured: LossMetrics[] = []
  for (const [i, { batch, objective: spec }] of passes.entries()) {
    if (i === passes.length - 1) await last()
    measured.push(await model.accumulateLoss(batch, spec))
  }
  const ratio = usesRatio(objective, 'conditional') || usesRatio(objective, 'marginal')
  const metrics = lossMetrics(measured[0]!, { ratio, kl: objective.kl !== undefined })
  for (const more of measured.slice(1)) metrics.loss += more.loss
  loss.vectorGradients = measured[0]!.inputVectors
  if (objective.lazy !== undefined) metrics.lazy_loss = measured[0]!.lazyLoss
  return { metrics, weight: measured[0]!.responseTokens, sums: ['loss', 'policy_loss', 'lazy_loss'] }
}

/** Scores the sequences, calls the caller's function, and runs the backward pass with its coefficients. */
async function accumulateCustom(
  model: LoopLM,
  batch: PolicyLoss,
  { objective, context, ...inputs }: NonNullable<PolicyLoss['own']>,
  { temperature, recompute }: PolicyConfig,
  { scoring, backwardLoops }: TrainedLoops,
  last: () => Promise<void>,
): Promise<Measured> {
  const { sequences, promptLengths } = context
  const scores = await model.score(sequences, { promptLengths, temperature, ...scoring, ...inputs })
  const { loss, coefficients, gateCoefficients } = checkGradient(await objective({ ...context, scores }))
  const gate = gateCoefficients === undefined ? {} : { gateCoefficients }
  await last()
  batch.vectorGradients = (await scores.backward(coefficients, { recompute, backwardLoops, ...gate })).inputVectors
  return { metrics: { loss }, weight: 1, sums: ['loss'] }
}
