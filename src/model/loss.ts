import { LoopLMError } from '../errors.js'
import type { Architecture } from '../native/architecture.js'
import { call, type NativeCancel, type NativeModel, native } from '../native.js'
import { checkNumber, checkWord } from '../validation/arguments.js'
import {
  checkTemperature,
  packIntegers,
  packOneEach,
  packSequences,
  packValues,
  sequenceLimits,
  splitVectors,
  withStates,
  withVectors,
} from './checks.js'
import type { LoopLMConfig } from './config.js'
import { checkLoopChoice } from './loops.js'
import type { LossBatch, LossMetrics, LossObjective, LossTerm } from './types.js'

const loopSets = ['last', 'uniform', 'weights'] as const
type Check = Parameters<typeof checkNumber>[2]

/** Checks a batch and an objective, fills in defaults and passes them to the engine. */
export async function accumulateLoss(
  { config, architecture }: { readonly config: LoopLMConfig; readonly architecture: Architecture },
  model: NativeModel,
  batch: LossBatch,
  objective: LossObjective,
  signal: AbortSignal | undefined,
): Promise<LossMetrics> {
  const operation = 'LoopLM.accumulateLoss'
  const limits = { ...sequenceLimits(config), minLength: 2, promptLengths: batch.promptLengths }
  const { initialStates } = batch
  const { initialState, stateSeed } = objective
  const states = {
    ...(initialStates === undefined ? {} : { initialStates }),
    ...(initialState === undefined ? {} : { initialState }),
    ...(stateSeed === undefined ? {} : { stateSeed }),
  }
  const stated = withStates(packSequences(batch.sequences, limits, operation), states, architecture, operation)
  const sequences = withVectors(stated, batch.inputVectors, architecture.hidden, operation)
  const count = sequences.lengths.length
  const { native: loops, reads: t } = checkLoopChoice(objective, architecture, operation)
  const width = (i: number) => sequences.lengths[i]! - 1
  const once = (i: number) => [{ shape: 'length - 1', length: width(i) }]
  const byLoop = (i: number) => [{ shape: 'loops × (length - 1)', length: t * width(i) }]
  const either = (i: number) => [...once(i), ...byLoop(i)]
  const values = {
    terms: batch.terms.map(({ advantages, tokenAdvantages, lengthNormalizers }) => ({
      advantages: packOneEach(advantages, 'advantages', advantages?.length === count * t ? count * t : count, operation),
      tokenAdvantages: packValues(tokenAdvantages, 'tokenAdvantages', once, count, operation),
      lengthNormalizers: packOneEach(lengthNormalizers, 'lengthNormalizers', count, operation),
    })),
    lengthNormalizers: packOneEach(batch.lengthNormalizers, 'lengthNormalizers', count, operation),
    oldLogprobs: packValues(batch.oldLogprobs, 'oldLogprobs', either, count, operation),
    referenceLogprobs: packValues(batch.referenceLogprobs, 'referenceLogprobs', either, count, operation),
    lazyLogprobs: packValues(batch.lazyLogprobs, 'lazyLogprobs', either, count, operation),
    lazyNormalizers:
      batch.lazyNormalizers === undefined
        ? new Float64Array(0)
        : packOneEach(batch.lazyNormalizers, 'lazyNormalizers', count, operation),
    referenceEntropy: packValues(batch.referenceEntropy, 'referenceEntropy', once, count, operation),
    referenceExitPdf: packValues(batch.referenceExitPdf, 'referenceExitPdf', byLoop, count, operation),
    numbers: packNumbers(batch.numbers, count, operation),
    exits: packIntegers(batch.exits, 'exits', once, { min: 0, max: t - 1 }, count, operation),
    segments: packIntegers(batch.segments, 'segments', once, {}, count, operation),
    mask: packIntegers(batch.mask, 'mask', once, { min: 0, max: 1 }, count, operation),
  }
  const number = (value: number | undefined, name: string, fallback: number, range: Check) =>
    checkNumber(value ?? fallback, name, range, operation)
  const lazy = objective.lazy && {
    gate: checkWord(objective.lazy.gate, 'lazy.gate', ['token', 'segment', 'response', 'loop'], operation),
    loops: checkWord(objective.lazy.loops, 'lazy.loops', loopSets, operation),
  }
  const settings = {
    terms: objective.terms.map((term) => termSettings(term, t, operation)),
    beta: number(objective.beta, 'beta', 0, { min: 0 }),
    betaLoops: checkWord(objective.betaLoops ?? 'last', 'betaLoops', loopSets, operation),
    tokenEntropy: number(objective.tokenEntropy, 'tokenEntropy', 0, {}),
    exitEntropy: number(objective.exitEntropy, 'exitEntropy', 0, {}),
    lazy,
    temperature: checkTemperature(objective.temperature, operation),
    ...loops,
    recompute: checkWord(objective.recompute ?? 'none', 'recompute', ['none', 'loop', 'layer'], operation),
    tokensPerMicroBatch: number(objective.tokensPerMicroBatch, 'tokensPerMicroBatch', 0, { min: 0, integer: true }),
    sharePrompts: objective.sharePrompts ?? true,
    replayExits: objective.replayExits ?? false,
  }
  const run = (cancel: NativeCancel | undefined) => native().modelAccumulateLoss(model, sequences, values, settings, cancel)
  const metrics = await call(operation, run, signal)
  return { ...metrics, inputVectors: splitVectors(metrics.inputVectors, sequences, architecture.hidden) }
}

function packNumbers(numbers: readonly number[] | undefined, count: number, operation: string): Int32Array {
  return numbers === undefined ? new Int32Array() : Int32Array.from(packOneEach(numbers, 'numbers', count, operation))
}

function termSettings(term: LossTerm, loops: number, operation: string) {
  const number = (name: keyof LossTerm & string, fallback: number, range: Check) =>
    checkNumber(term[name] ?? fallback, name, range, operation)
  const { kind, temperature = 1, alpha = 1, loop = 0, weights, detach = true } = term.weights ?? { kind: 'exit-pdf' as const }
  return {
    channel: checkWord(term.channel ?? 'token', 'channel', ['token', 'exit'], operation),
    weights: {
      kind: checkWord(kind, 'weights', ['exit-pdf', 'uniform', 'progressive', 'one-hot', 'given', 'exit-loop'], operation),
      temperature: checkNumber(temperature, 'weights.temperature', { above: 0 }, operation),
      alpha: checkNumber(alpha, 'alpha', {}, operation),
      loop: checkNumber(loop, 'weights.loop', { min: 0, integer: true }, operation),
      detach,
      ...(kind === 'given' ? { weights: shares(weights, loops, operation) } : {}),
    },
    surrogate: checkWord(term.surrogate ?? 'reinforce', 'surrogate', ['reinforce', 'ppo', 'cispo', 'gspo', 'k15'], operation),
    inner: term.inner ?? false,
    epsilonLow: number('epsilonLow', 0.2, { min: 0 }),
    epsilonHigh: number('epsilonHigh', 0.2, { min: 0 }),
    dualClip: number('dualClip', 0, { min: 0 }),
    cap: number('cap', 5, { above: 0 }),
    tau: number('tau', 0, { min: 0 }),
    belief: term.belief,
    draws: number('draws', 0, { min: 0, integer: true }),
    seed: number('seed', 0, { min: 0, integer: true }),
  }
}

/** The weights of the loops that are read, normalized to a sum of 1. */
function shares(weights: readonly number[] | undefined, loops: number, operation: string): Float64Array {
  const given = packOneEach(weights ?? [], 'weights', loops, operation, 'loops that are read')
  const total = given.reduce((sum, weight) => sum + weight, 0)
  if (given.every((weight) => weight >= 0) && total > 0) return given.map((weight) => weight / total)
  throw new LoopLMError('INVALID_ARGUMENT', 'weights of loops must be at least 0, and at least one must be above 0', {
    operation,
  })
}
