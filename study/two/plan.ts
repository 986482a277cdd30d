// The runs of Study II (docs/study-2.md): tasks, arms, and which runs are due given the results so far.
import { type ObjectiveTrainerOptions, type RLTTOptions, recipes } from '../../src/index.js'
import { mean } from '../statistics.js'
import type { Result, TrainingResult } from './results.js'

export const settings = {
  loops: 4,
  /** Bases of the comparisons, and those for choosing learning rates. The first six were read before the others ran. */
  bases: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
  /** How many of them are used for arms other than GRPO, RLTT and the exit-sampled gradient. */
  secondaryBases: 4,
  tuningBases: [101, 102],
  policy: {
    promptsPerStep: 32,
    groupSize: 8,
    temperature: 1,
    schedule: 'constant',
    warmupSteps: 20,
    maxGradNorm: 1,
    logprobCheckEvery: 0,
  },
  /** Number of points of a run, at equal numbers of sampled tokens. The last `finalPoints` make the result. */
  points: 12,
  finalPoints: 3,
  pointProblems: 512,
  finalProblems: 2000,
  gateProblems: 1000,
  passProblems: 200,
  /** Loop counts above those of training with which a model is also evaluated. */
  deeper: [6, 8],
  thresholds: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
  /** Stage II after reinforcement, which only trains the gate. */
  gateSteps: 100,
  rates: [2e-4, 4e-4, 8e-4],
  /** A grid of rates grows by factors of 2 while its best value is at an edge, up to these limits. */
  rateLimits: [2.5e-5, 2.6e-2],
  /** Methods whose accuracies differ by less than this count as equal (TOST). */
  margin: 0.015,
} as const

/** A task and its base models: when a base is good enough, and how much an arm may sample. */
export interface StudyTask {
  label: string
  name: 'addition' | 'chain' | 'parity'
  hidden: number
  training: { batchSize: number; learningRate: number; steps: number }
  /** The base is done when greedy accuracy with this many loops reaches `accuracy`. */
  until: { loops: number; accuracy: number; checkEvery: number; firstCheck: number }
  /** Number of sampled tokens of a run, and the number of steps that take about half of them. */
  tokens: number
  halfSteps: number
  /** Token budgets per answer. */
  budgets: readonly number[]
  /** Use another task's rates without tuning, and only `secondaryBases`. */
  ratesOf?: TaskName
}

const addition: StudyTask = {
  label: 'A: addition of 4 digits',
  name: 'addition',
  hidden: 64,
  training: { batchSize: 192, learningRate: 2e-3, steps: 1500 },
  until: { loops: 4, accuracy: 0.25, checkEvery: 10, firstCheck: 100 },
  tokens: 640_000, // 500 steps of 256 answers with 5 tokens
  halfSteps: 250,
  budgets: [5],
}
export const studyTasks = {
  addition,
  chain: {
    label: 'C: chain modulo 5',
    name: 'chain',
    hidden: 64,
    training: { batchSize: 96, learningRate: 3e-3, steps: 6000 },
    until: { loops: 4, accuracy: 0.4, checkEvery: 100, firstCheck: 300 },
    tokens: 480_000,
    halfSteps: 145, // answers had 6.5 tokens at the end of a pilot
    budgets: [2, 4, 6, 11],
  },
  parity: {
    label: 'P: parity of 16 bits',
    name: 'parity',
    hidden: 64,
    training: { batchSize: 96, learningRate: 2e-3, steps: 1500 },
    until: { loops: 4, accuracy: 0.45, checkEvery: 50, firstCheck: 600 },
    tokens: 480_000,
    halfSteps: 120,
    budgets: [2, 4, 8, 17],
  },
  'addition-loop-2': {
    ...addition,
    label: 'A2: addition, from bases that are right in 25 % at two loops',
    until: { loops: 2, accuracy: 0.25, checkEvery: 10, firstCheck: 100 },
    ratesOf: 'addition',
  },
  'addition-60': {
    ...addition,
    label: 'A60: addition, from bases that are right in 60 %',
    until: { loops: 4, accuracy: 0.6, checkEvery: 10, firstCheck: 100 },
    ratesOf: 'addition',
  },
} as const satisfies Record<string, Omit<StudyTask, 'ratesOf'> & { ratesOf?: string }>
export type TaskName = 'addition' | 'chain' | 'parity' | 'addition-loop-2' | 'addition-60'
export const taskOf = (name: TaskName): StudyTask => studyTasks[name] as StudyTask

/** One way to train a base further. */
export interface Arm {
  label: string
  trainer: 'grpo' | 'rltt' | 'objective'
  options: RLTTOptions
  /** For `objective`. Phases change after `halfSteps`. */
  objective?: 'grpo-released' | 'rltt-released' | ((halfSteps: number) => ObjectiveTrainerOptions['objective'])
  tasks: readonly TaskName[]
  /** Use another arm's rates without tuning. */
  ratesOf?: string
  /** Compare gradients of single loops at the start, in the middle and at the end. */
  gradients?: true
  /** Run on all bases, not only on `secondaryBases`. */
  allBases?: true
}

const main: readonly TaskName[] = ['addition', 'chain', 'parity']
const grpo = { trainer: 'grpo', options: {} } as const
const rltt = { trainer: 'rltt', options: { weights: 'exit-pdf' } } as const
/** A recipe of two phases that change after this many steps. */
const halved = (name: 'anneal-to-last' | 'anneal-to-rltt', steps: number) =>
  recipes[name].map((phase) => ('until' in phase ? { ...phase, until: steps } : phase))

export const arms: Readonly<Record<string, Arm>> = {
  grpo: { ...grpo, label: 'GRPO', tasks: [...main, 'addition-loop-2', 'addition-60'], gradients: true },
  rltt: { ...rltt, label: 'RLTT exit-pdf', tasks: [...main, 'addition-loop-2', 'addition-60'], gradients: true },
  // Explains the results of Study I
  'rltt-uniform': { trainer: 'rltt', options: { weights: 'uniform' }, label: 'RLTT uniform', tasks: ['addition'] },
  ...Object.fromEntries(
    [1, 2, 4, 8].map((alpha): [string, Arm] => [
      `rltt-progressive-${alpha}`,
      {
        ...{ trainer: 'rltt', options: { weights: 'progressive', alpha }, label: `RLTT t^${alpha}` },
        ...{ tasks: ['addition'], ratesOf: 'rltt-uniform' },
      },
    ]),
  ),
  'grpo-released': {
    ...{ trainer: 'objective', options: { skipFlatGroups: false }, objective: 'grpo-released' },
    ...{ label: 'GRPO as released', tasks: ['addition', 'chain'] },
  },
  'rltt-released': {
    ...{ trainer: 'objective', options: { skipFlatGroups: false }, objective: 'rltt-released' },
    ...{ label: 'RLTT as released', tasks: ['chain'], ratesOf: 'grpo-released' },
  },
  'grpo-minibatches': {
    ...{ trainer: 'grpo', options: { surrogate: 'reinforce', minibatches: 4 }, label: 'GRPO, 4 minibatches, no ratio' },
    ...{ tasks: ['addition'], ratesOf: 'grpo' },
  },
  'rltt-minibatches': {
    ...{ trainer: 'rltt', options: { weights: 'exit-pdf', minibatches: 4 }, label: 'RLTT, 4 minibatches, no ratio' },
    ...{ tasks: ['addition'], ratesOf: 'rltt' },
  },
  'rltt-attached': {
    ...{ trainer: 'rltt', options: { weights: 'exit-pdf', detachWeights: false }, label: 'RLTT, gate attached' },
    ...{ tasks: ['addition'], ratesOf: 'rltt' },
  },
  // Added after the results of the arms above: does the chosen rate explain what happens on P?
  'grpo-rate-of-rltt': { ...grpo, label: 'GRPO at the rate of RLTT', tasks: ['parity'], ratesOf: 'rltt', allBases: true },
  // How responses are averaged
  ...Object.fromEntries(
    (['token-mean', 'constant'] as const).flatMap((normalizer) =>
      (['grpo', 'rltt'] as const).map((name): [string, Arm] => {
        const { trainer, options } = name === 'grpo' ? grpo : rltt
        const label = `${name.toUpperCase()}, ${normalizer}`
        return [`${name}-${normalizer}`, { trainer, options: { ...options, normalizer }, label, tasks: ['chain'], ratesOf: name }]
      }),
    ),
  ),
  // New objectives
  'exit-sampled': {
    ...{ trainer: 'objective', options: {}, label: 'exit-sampled', tasks: ['addition', 'chain'] },
    objective: () => 'exit-sampled',
  },
  'rltt-then-last': {
    ...{ trainer: 'objective', options: {}, label: 'RLTT, then the last loop', tasks: ['addition', 'chain'], ratesOf: 'rltt' },
    objective: (half) => halved('anneal-to-last', half),
  },
  'last-then-rltt': {
    ...{ trainer: 'objective', options: {}, label: 'the last loop, then RLTT', tasks: ['addition', 'chain'], ratesOf: 'grpo' },
    objective: (half) => halved('anneal-to-rltt', half),
  },
  imitation: {
    ...{
      trainer: 'objective',
      options: {},
      label: 'last loop, all loops imitate',
      tasks: ['addition', 'chain'],
      ratesOf: 'grpo',
    },
    objective: () => 'imitation',
  },
  'backward-2': {
    ...{ ...grpo, options: { backwardLoops: 2 }, label: 'GRPO, gradient through 2 loops' },
    ...{ tasks: ['addition', 'chain'], ratesOf: 'grpo' },
  },
  'backward-1': {
    ...{ ...grpo, options: { backwardLoops: 1 }, label: 'GRPO, gradient through 1 loop' },
    ...{ tasks: ['addition', 'chain'], ratesOf: 'grpo' },
  },
}

/** One run: creating a base, or training a base with an arm. */
export type RunSpec =
  | { id: string; kind: 'base'; task: TaskName; base: number }
  | { id: string; kind: 'training'; task: TaskName; arm: string; base: number; learningRate: number }

export const baseId = (task: TaskName, base: number) => `base/${task}/${base}`
export const trainingId = (task: TaskName, arm: string, base: number, learningRate: number) =>
  `${task}/${arm}/${base}@${learningRate}`

/** The bases on which an arm is compared. */
export function basesOf(task: TaskName, arm: string): readonly number[] {
  const primary = tunes(task) && first.some(([, names]) => names.includes(arm))
  return primary || arms[arm]!.allBases ? settings.bases : settings.bases.slice(0, settings.secondaryBases)
}

type Results = ReadonlyMap<string, Result>

/** Area under the curve of greedy accuracy at full depth by sampled tokens: a mean over the points of a run. */
export const area = ({ course }: TrainingResult): number => mean(course.slice(1).map(({ accuracy }) => accuracy.at(-1)!))

/** The mean area of a rate over the tuning bases. undefined until their runs exist. */
export function rateScore(results: Results, task: TaskName, arm: string, rate: number): number | undefined {
  const runs = settings.tuningBases.map((base) => results.get(trainingId(task, arm, base, rate)))
  if (runs.includes(undefined)) return undefined
  return mean(runs.map((run) => area(run as TrainingResult)))
}

/** The rates to try for an arm, and the best one once it is not at the edge of the grid. */
export function rateSearch(results: Results, task: TaskName, arm: string): { grid: number[]; chosen: number | undefined } {
  const grid: number[] = [...settings.rates]
  const [lowest, highest] = settings.rateLimits
  for (;;) {
    const scores = grid.map((rate) => rateScore(results, task, arm, rate))
    if (scores.includes(undefined)) return { grid, chosen: undefined }
    const best = scores.indexOf(Math.max(...(scores as number[])))
    const below = grid[0]! / 2
    const above = grid.at(-1)! * 2
    if (best === 0 && below >= lowest) grid.unshift(below)
    else if (best === grid.length - 1 && above <= highest) grid.push(above)
    else return { grid, chosen: grid[best]! }
  }
}

/** The rate that an arm uses on a task. undefined until it is known. */
export function rateOf(results: Results, task: TaskName, arm: string): number | undefined {
  return rateSearch(results, taskOf(task).ratesOf ?? task, arms[arm]!.ratesOf ?? arm).chosen
}

/**
 * The runs that come first, so that a study that is stopped early is complete on fewer bases. All others follow in the order of
 * `arms`.
 */
const first: readonly (readonly [TaskName, readonly string[]])[] = [
  ['addition', ['grpo', 'rltt']],
  ['parity', ['grpo', 'rltt']],
  ['chain', ['grpo', 'rltt']],
  ['addition', ['exit-sampled']],
  ['chain', ['exit-sampled']],
]

/** Tasks and the arms that run on them together, the most important ones first. */
function stages(): (readonly [TaskName, readonly string[]])[] {
  const early = new Set(first.flatMap(([task, names]) => names.map((name) => `${task}/${name}`)))
  const rest = Object.entries(arms).flatMap(([name, { tasks }]) =>
    tasks.filter((task) => !early.has(`${task}/${name}`)).map((task) => [task, [name]] as const),
  )
  return [...first, ...rest]
}

/** Whether a task chooses its own rates. */
const tunes = (task: TaskName) => taskOf(task).ratesOf === undefined

/** The runs of a stage in order: rates are chosen, then base by base is created and trained with every arm. */
function stageRuns(results: Results, task: TaskName, names: readonly string[]): RunSpec[] {
  const base = (seed: number): RunSpec => ({ id: baseId(task, seed), kind: 'base', task, base: seed })
  const training = (arm: string, seed: number, learningRate: number): RunSpec => {
    return { id: trainingId(task, arm, seed, learningRate), kind: 'training', task, arm, base: seed, learningRate }
  }
  const tuned = tunes(task) ? names.filter((arm) => arms[arm]!.ratesOf === undefined) : []
  const tuning = settings.tuningBases.flatMap((seed) =>
    tuned.flatMap((arm) => rateSearch(results, task, arm).grid.map((rate) => training(arm, seed, rate))),
  )
  const comparison = settings.bases.flatMap((seed) =>
    names.flatMap((arm) => {
      const rate = rateOf(results, task, arm)
      return rate === undefined || !basesOf(task, arm).includes(seed) ? [] : [training(arm, seed, rate)]
    }),
  )
  const prepared = tuned.length > 0 ? settings.tuningBases.map(base) : []
  const bases = settings.bases.filter((seed) => names.some((arm) => basesOf(task, arm).includes(seed)))
  const compared = bases.flatMap((seed) => [base(seed), ...comparison.filter((run) => run.base === seed)])
  return [...prepared, ...tuning, ...compared]
}

/** The runs that can start. A base comes before the runs that train it, and the choice of a rate before its other runs. */
export function dueRuns(results: Results): RunSpec[] {
  const all = new Map(stages().flatMap(([task, names]) => stageRuns(results, task, names).map((run) => [run.id, run] as const)))
  return [...all.values()].filter(
    (spec) => !results.has(spec.id) && (spec.kind === 'base' || results.has(baseId(spec.task, spec.base))),
  )
}
