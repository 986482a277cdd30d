// The runs of Study I: settings, methods, and which runs are due given the results so far.
import type { GRPOOptions, LoopRPTOptions, PretrainOptions, RecipeName, RLTTOptions } from '../../src/index.js'
import { mean } from '../statistics.js'
import type { Result, TrainingResult } from './results.js'

export const settings = {
  task: { digits: 4 },
  model: {
    vocab_size: 12,
    hidden_size: 64,
    intermediate_size: 176,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    total_ut_steps: 4,
    max_position_embeddings: 64,
    initializer_range: 0.125, // 1 / sqrt(hidden_size)
  },
  /** Stage I on sums of 1 to 4 digits ends when greedy accuracy at full depth on `problems` 4-digit sums reaches `accuracy`. */
  base: {
    training: { batchSize: 192, learningRate: 2e-3, entropyCoefficient: 0.2, weightDecay: 0, steps: 1500 },
    accuracy: 0.25,
    firstCheck: 100,
    checkEvery: 10,
    problems: 512,
  },
  /** The unit of the study is a base: its seed determines initial weights and data. */
  bases: [0, 1, 2, 3, 4, 5, 6, 7],
  /** How many bases each part uses. */
  partBases: { a: 8, b: 8, c: 5 },
  /** Only used to choose learning rates. */
  tuningBases: [101],
  /** Reinforcement: the same prompts, rollouts and steps for every method. */
  policy: {
    promptsPerStep: 32,
    groupSize: 8,
    temperature: 1,
    schedule: 'linear',
    warmupSteps: 20,
    maxGradNorm: 1,
    steps: 400,
    logprobCheckEvery: 0,
  },
  /** Training on written-out answers, as for the bases. */
  labels: { batchSize: 64, weightDecay: 0, schedule: 'cosine', warmupRatio: 0.03, maxGradNorm: 1 },
  labelSteps: 200,
  /** Number of points of a training curve. Each is the mean of the steps since the last point. */
  curvePoints: 25,
  /** Number of evaluations during a run, each on `problems` held-out problems. */
  checkpoints: 5,
  checkpointProblems: 512,
  finalProblems: 3000,
  gateProblems: 1500,
  tokenProblems: 1000,
  thresholds: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
  timing: { warmup: 20, steps: 100, labelSteps: 20 },
} as const

export type Part = 'a' | 'b' | 'c'

/** One way to train a base further. */
export interface Method {
  part: Part
  /** The name in tables and legends. */
  label: string
  trainer: 'grpo' | 'rltt' | 'objective' | 'looprpt' | 'pretrain'
  steps: number
  /** For `objective`. */
  recipe?: RecipeName
  options: GRPOOptions & RLTTOptions & LoopRPTOptions & PretrainOptions
  learningRates: readonly number[]
  /** false: shown in tables, but not in figures. */
  drawn?: false
}

const rates = [1e-4, 2e-4, 4e-4]

function policy(part: Part, label: string, trainer: 'grpo' | 'rltt' | 'objective', options: RLTTOptions = {}): Method {
  const { steps, ...shared } = settings.policy
  return { part, label, trainer, steps, options: { ...shared, ...options } as Method['options'], learningRates: rates }
}

function option(label: string, recipe: RecipeName, more: Partial<Method> = {}): Method {
  return { ...policy('c', label, 'objective'), recipe, ...more }
}

/** Costs relative to a forward pass: a forward pass over a batch counts 1, a backward pass 2 (math.md's cost model). */
const forwardEquivalents = { stage1: 3, looprpt: 1 + 3 + 8 * 3 } // teacher, clean pass and 8 rollouts, both forward and backward

function labels(label: string, trainer: 'looprpt' | 'pretrain', steps: number, learningRates: readonly number[]): Method {
  const own = trainer === 'looprpt' ? {} : { entropyCoefficient: settings.base.training.entropyCoefficient }
  return { part: 'b', label, trainer, steps, options: { ...settings.labels, ...own } as Method['options'], learningRates }
}

export const methods: Readonly<Record<string, Method>> = {
  grpo: policy('a', 'GRPO', 'grpo'),
  'rltt-exit-pdf': policy('a', 'RLTT exit-pdf', 'rltt', { weights: 'exit-pdf' }),
  'rltt-uniform': policy('a', 'RLTT uniform', 'rltt', { weights: 'uniform' }),
  'rltt-progressive': policy('a', 'RLTT progressive', 'rltt', { weights: 'progressive' }),
  looprpt: labels('LoopRPT', 'looprpt', settings.labelSteps, [3e-4, 6e-4, 1.2e-3]),
  stage1: labels(
    'Stage I (compute)',
    'pretrain',
    Math.round((settings.labelSteps * forwardEquivalents.looprpt) / forwardEquivalents.stage1),
    [5e-4, 1e-3, 2e-3],
  ),
  'stage1-equal-data': labels('Stage I (data)', 'pretrain', settings.labelSteps, [5e-4, 1e-3, 2e-3]),
  'bupo-loop': option('BuPO-loop', 'bupo-loop'),
  san: option('SAN by exit loop', 'san', { drawn: false }), // it hardly differs from RLTT
  nsr: option('negatives only', 'nsr', { drawn: false }), // it collapses
  dsrl: option('DSRL', 'dsrl'),
  llds: option('LLDS', 'llds'),
  'capo-loop': option('CAPO-loop', 'capo-loop'),
  'igpo-loop': option('IGPO-loop', 'igpo-loop'),
}

/** One run: creating a base, training a base with a method, or timing a method's steps. */
export type RunSpec =
  | { id: string; kind: 'base'; base: number }
  | { id: string; kind: 'training'; method: string; base: number; learningRate: number; tuning: boolean }
  | { id: string; kind: 'timing'; method: string; base: number; learningRate: number }

export const baseId = (base: number) => `base/${base}`
export const trainingId = (method: string, base: number, learningRate: number) => `${method}/${base}@${learningRate}`
export const timingId = (method: string) => `timing/${method}`

/** The bases that a part of the study uses. */
export const basesOf = (part: Part): readonly number[] => settings.bases.slice(0, settings.partBases[part])

/**
 * The runs that can start. A base comes before the runs that train it, and a method's tuning before its other runs.
 *
 * @param results by id
 */
export function dueRuns(results: ReadonlyMap<string, Result>): RunSpec[] {
  const all: RunSpec[] = []
  const training = (method: string, base: number, learningRate: number, tuning: boolean): RunSpec => {
    return { id: trainingId(method, base, learningRate), kind: 'training', method, base, learningRate, tuning }
  }
  for (const base of settings.tuningBases) all.push({ id: baseId(base), kind: 'base', base })
  for (const [method, { learningRates }] of Object.entries(methods))
    for (const base of settings.tuningBases) for (const rate of learningRates) all.push(training(method, base, rate, true))
  for (const base of settings.bases) all.push({ id: baseId(base), kind: 'base', base })
  for (const part of ['a', 'b', 'c'] as const)
    for (const base of basesOf(part))
      for (const method of Object.keys(methods).filter((name) => methods[name]!.part === part)) {
        const rate = chosenRate(method, results)
        if (rate !== undefined) all.push(training(method, base, rate, false))
      }
  return all.filter((spec) => !results.has(spec.id) && (spec.kind === 'base' || results.has(baseId(spec.base))))
}

/** The runs that measure time and memory. They need a quiet machine and run one at a time, after all others. */
export function dueTimings(results: ReadonlyMap<string, Result>): RunSpec[] {
  const base = settings.tuningBases[0]
  return Object.keys(methods)
    .map((method): RunSpec => {
      return { id: timingId(method), kind: 'timing', method, base, learningRate: chosenRate(method, results) ?? 1e-4 }
    })
    .filter(({ id }) => !results.has(id))
}

/**
 * The score by which a learning rate is chosen: for reinforcement accuracy at full depth, for training on labels accuracy on
 * hard tokens over all loops.
 */
export function tuningScore(method: string, { final }: TrainingResult): number {
  return methods[method]!.part === 'b' ? mean(final.tokens.hard) : final.accuracy.at(-1)!
}

/** The learning rate with the best mean score over the tuning bases. undefined until all their runs exist. */
export function chosenRate(method: string, results: ReadonlyMap<string, Result>): number | undefined {
  let best: { rate: number; score: number } | undefined
  for (const rate of methods[method]!.learningRates) {
    const runs = settings.tuningBases.map((base) => results.get(trainingId(method, base, rate)) as TrainingResult | undefined)
    if (runs.includes(undefined)) return undefined
    const score = mean(runs.map((run) => tuningScore(method, run!)))
    if (best === undefined || score > best.score) best = { rate, score }
  }
  return best?.rate
}
