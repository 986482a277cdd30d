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
  /** Arms whose accuracies differ by less than this count as equal (TOST). */
  margin: 0.015,
  /** A byte is hard if the base's entropy at full depth is above so many nats. */
  hardAbove: [0.5, 1, 1.5],
  /** Share of a block's bytes that `hard` arms and LoopRPT learn: those with the highest entropy. */
  hardShare: 0.2,
} as const

/** One way to train a base further; `base` is trained by none of them. */
export interface Arm {
  label: string
  trainer: 'looprpt' | 'pretrain'
  options: LoopRPTOptions & PretrainOptions
  steps: number
  /** Only learns the bytes that are hard for the base. */
  hard?: true
}

const equalCompute = Math.round((settings.steps * settings.forwards.looprpt) / settings.forwards.stage1)
const { entropyCoefficient } = settings.base

/** An arm at a rate other than `settings.learningRate`; its name and label end with the rate. */
function atRate(name: string, rate: '3e-4' | '1e-4' | '3e-5', { label, options, ...arm }: Arm): Record<string, Arm> {
  return { [`${name}-${rate}`]: { ...arm, label: `${label}, ${rate}`, options: { ...options, learningRate: Number(rate) } } }
}

const looprpt: Arm = { label: 'LoopRPT', trainer: 'looprpt', options: {}, steps: settings.steps }
const stage1: Arm = { label: 'Stage I (compute)', trainer: 'pretrain', options: { entropyCoefficient }, steps: equalCompute }
const equalData: Arm = { ...stage1, label: 'Stage I (data)', steps: settings.steps }
const hard: Arm = { ...equalData, label: 'Stage I (hard tokens)', hard: true }
const tokensAlone: Arm = { ...looprpt, label: 'LoopRPT, tokens alone', options: { policyCoefficient: 0 } }
const exitsAlone: Arm = { ...looprpt, label: 'LoopRPT, exits alone', options: { representationCoefficient: 0 } }

export const arms: Readonly<Record<string, Arm>> = {
  looprpt,
  stage1,
  'stage1-equal-data': equalData,
  representation: tokensAlone,
  policy: exitsAlone,
  stage2: { label: 'Stage II', trainer: 'pretrain', options: { stage: 2 }, steps: equalCompute },
  ...atRate('looprpt', '3e-4', looprpt),
  ...atRate('looprpt', '1e-4', looprpt),
  ...atRate('stage1', '3e-4', stage1),
  ...atRate('stage1-equal-data', '3e-4', equalData),
  // Added when the best rates lay at the edges
  ...atRate('looprpt', '3e-5', looprpt),
  ...atRate('stage1', '1e-4', stage1),
  ...atRate('stage1-equal-data', '1e-4', equalData),
  'stage1-hard': hard,
  ...atRate('stage1-hard', '3e-4', hard),
  ...atRate('stage1-hard', '1e-4', hard),
  ...atRate('representation', '1e-4', tokensAlone),
  ...atRate('policy', '1e-4', exitsAlone),
  ...atRate('looprpt-no-noise', '1e-4', { ...looprpt, label: 'LoopRPT, no noise', options: { sigma: 0 } }),
  ...atRate('looprpt-more-noise', '1e-4', { ...looprpt, label: 'LoopRPT, σ 0.3', options: { sigma: 0.3 } }),
}

/** Arms that differ in their learning rate alone. They are compared at the best of their rates. */
export const rates: Readonly<Record<string, readonly string[]>> = {
  looprpt: ['looprpt', 'looprpt-3e-4', 'looprpt-1e-4', 'looprpt-3e-5'],
  stage1: ['stage1', 'stage1-3e-4', 'stage1-1e-4'],
  'stage1-equal-data': ['stage1-equal-data', 'stage1-equal-data-3e-4', 'stage1-equal-data-1e-4'],
  'stage1-hard': ['stage1-hard', 'stage1-hard-3e-4', 'stage1-hard-1e-4'],
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
