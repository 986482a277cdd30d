import { call, type NativeModel, native } from '../native.js'
import { checkLoops, checkNumber, checkTemperature, checkWord, packPerSequence, packSequences, packValues } from './checks.js'
import type { LoopLMConfig } from './config.js'
import type { LossBatch, LossMetrics, LossObjective } from './types.js'

/** Checks a batch and an objective, fills in defaults and hands them to the engine. */
export async function accumulateLoss(
  config: LoopLMConfig,
  model: NativeModel,
  batch: LossBatch,
  objective: LossObjective,
  signal: AbortSignal | undefined,
): Promise<LossMetrics> {
  const operation = 'LoopLM.accumulateLoss'
  const limits = { vocabulary: config.vocab_size, minLength: 2, promptLengths: batch.promptLengths }
  const sequences = packSequences(batch.sequences, limits, operation)
  const count = sequences.lengths.length
  const loops = checkLoops(objective.loops, operation)
  const t = loops || config.total_ut_steps
  const logprobForms = (i: number) => [
    { shape: 'length - 1', length: sequences.lengths[i]! - 1 },
    { shape: 'loops × (length - 1)', length: t * (sequences.lengths[i]! - 1) },
  ]
  const values = {
    advantages: packPerSequence(batch.advantages, 'advantages', count, operation),
    norms: packPerSequence(batch.norms, 'norms', count, operation),
    oldLogprobs: packValues(batch.oldLogprobs, 'oldLogprobs', logprobForms, count, operation),
    referenceLogprobs: packValues(batch.referenceLogprobs, 'referenceLogprobs', logprobForms, count, operation),
  }
  const number = (name: keyof LossObjective, fallback: number, range: Parameters<typeof checkNumber>[2]) =>
    checkNumber(objective[name] ?? fallback, name, range, operation)
  const settings = {
    weights: checkWord(objective.weights ?? 'exit-pdf', 'weights', ['exit-pdf', 'uniform', 'progressive', 'last'], operation),
    alpha: number('alpha', 1, {}),
    detachWeights: objective.detachWeights ?? true,
    surrogate: checkWord(objective.surrogate ?? 'reinforce', 'surrogate', ['reinforce', 'ppo', 'cispo'], operation),
    epsilonLow: number('epsilonLow', 0.2, { min: 0 }),
    epsilonHigh: number('epsilonHigh', 0.2, { min: 0 }),
    dualClip: number('dualClip', 0, { min: 0 }),
    cap: number('cap', 5, { above: 0 }),
    beta: number('beta', 0, { min: 0 }),
    exitEntropy: number('exitEntropy', 0, {}),
    temperature: checkTemperature(objective.temperature, operation),
    loops,
    recompute: checkWord(objective.recompute ?? 'none', 'recompute', ['none', 'loop', 'layer'], operation),
    tokensPerMicroBatch: number('tokensPerMicroBatch', 0, { min: 0, integer: true }),
    sharePrompts: objective.sharePrompts ?? true,
  }
  return call(operation, (cancel) => native().modelAccumulateLoss(model, sequences, values, settings, cancel), signal)
}
