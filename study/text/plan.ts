// LoopRPT on text: what is run, and which runs are due. docs/study-2.md has the plan in words.
import type { LoopRPTOptions, PretrainOptions } from '../../src/index.js'
import type { Result } from './results.js'

export const settings = {
  bases: [0, 1, 2, 3],
  model: {
    vocab_size: 256,
    hidden_size: 64,
    intermediate_size: 176,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    total_ut_steps: 4,
    max_position_embeddings: 128,
    initializer_range: 0.125, // 1 / sqrt(hidden_size)
  },
  /** Bytes of a block. */
  contextLength: 64,
  batchSize: 32,
  /** One block of so many is held out. */
  heldOutEvery: 20,
  /** Held-out blocks of a measurement. */
  blocks: 256,
  /** Stage I makes the base, until the held-out loss fell by less than this share over the last quarter of training, or at `most`. */
  base: { learningRate: 2e-3, entropyCoefficient: 0.1, checkEvery: 100, fewest: 800, most: 4000, fall: 0.01 },
  /** Steps of LoopRPT; a step of it costs as many forwards as `forwards` says, one of Stage I costs 3 (docs/study.md). */
  steps: 100,
  forwards: { looprpt: 22, stage1: 3 },
  learningRate: 1e-3,
  warmupSteps: 20,
  thresholds: { gate: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], entropy: [0, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6] },
  /** Curves are compared between these mean loops. */
  range: [1.5, 3.5],
} as const

/** One way to train a base further; `base` is trained by none of them. */
export interface Arm {
  label: string
  trainer: 'looprpt' | 'pretrain'
  options: LoopRPTOptions & PretrainOptions
  steps: number
}

const equalCompute = Math.round((settings.steps * settings.forwards.looprpt) / settings.forwards.stage1)
const { entropyCoefficient } = settings.base

export const arms: Readonly<Record<string, Arm>> = {
  looprpt: { label: 'LoopRPT', trainer: 'looprpt', options: {}, steps: settings.steps },
  stage1: { label: 'Stage I (compute)', trainer: 'pretrain', options: { entropyCoefficient }, steps: equalCompute },
  'stage1-equal-data': { label: 'Stage I (data)', trainer: 'pretrain', options: { entropyCoefficient }, steps: settings.steps },
  representation: {
    ...{ label: 'LoopRPT, tokens alone', trainer: 'looprpt', options: { policyCoefficient: 0 }, steps: settings.steps },
  },
  policy: {
    ...{ label: 'LoopRPT, exits alone', trainer: 'looprpt', options: { representationCoefficient: 0 }, steps: settings.steps },
  },
  stage2: { label: 'Stage II', trainer: 'pretrain', options: { stage: 2 }, steps: equalCompute },
  // Other rates than `settings.learningRate`
  'looprpt-3e-4': { label: 'LoopRPT, 3e-4', trainer: 'looprpt', options: { learningRate: 3e-4 }, steps: settings.steps },
  'looprpt-1e-4': { label: 'LoopRPT, 1e-4', trainer: 'looprpt', options: { learningRate: 1e-4 }, steps: settings.steps },
  'stage1-3e-4': {
    ...{ label: 'Stage I (compute), 3e-4', trainer: 'pretrain', steps: equalCompute },
    options: { entropyCoefficient, learningRate: 3e-4 },
  },
  'stage1-equal-data-3e-4': {
    ...{ label: 'Stage I (data), 3e-4', trainer: 'pretrain', steps: settings.steps },
    options: { entropyCoefficient, learningRate: 3e-4 },
  },
}

/** Arms that differ in their learning rate alone. They are compared at the best of their rates. */
export const rates: Readonly<Record<string, readonly string[]>> = {
  looprpt: ['looprpt', 'looprpt-3e-4', 'looprpt-1e-4'],
  stage1: ['stage1', 'stage1-3e-4'],
  'stage1-equal-data': ['stage1-equal-data', 'stage1-equal-data-3e-4'],
}

/** One run: a base that is made, or a base that an arm trains further. */
export interface RunSpec {
  id: string
  kind: 'base' | 'training'
  arm: string
  base: number
}

export const runId = (arm: string, base: number) => `text/${arm}/${base}`

/** The runs that can start now: base after base, each before what is trained from it. */
export function dueRuns(results: ReadonlyMap<string, Result>): RunSpec[] {
  const all = settings.bases.flatMap((base) => [
    { id: runId('base', base), kind: 'base' as const, arm: 'base', base },
    ...Object.keys(arms).map((arm) => ({ id: runId(arm, base), kind: 'training' as const, arm, base })),
  ])
  return all.filter(({ id, kind, base }) => !results.has(id) && (kind === 'base' || results.has(runId('base', base))))
}
