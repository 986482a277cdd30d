import { isDeepStrictEqual } from 'node:util'
import { z } from 'zod'
import { DatasetStream } from '../data/dataset-stream.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { maxLoops } from '../model/config.js'
import type { Logger } from '../monitor/logger.js'
import { loggerNames } from '../monitor/loggers/built-in.js'
import type { Task } from '../tasks/task.js'
import { describe as described } from '../validation/arguments.js'
import { didYouMean } from '../validation/names.js'
import type { Same } from '../validation/schema.js'
import { callbackNames, type TrainerCallbacks } from './callbacks.js'
import type { DatasetSource } from './dataset-rows.js'
import type { Rewards } from './options.js'

/* What the schemas of all trainers share. config-rollouts.ts and config-tokens.ts have the trainers, options.ts the types. */

export const natural = z.int().min(0)
export const positiveInt = z.int().min(1)
export const positive = z.number().positive()
export const nonNegative = z.number().min(0)
export const share = z.number().min(0).max(1)
export const count = (most: number) => z.int().min(1).max(most)

/*
 * Bounds for options that determine how many things are in memory at once. They are far above useful values: an extra zero must
 * give an error that names the option instead of killing the process.
 */
export const mostSequences = 2 ** 20 // sequences of a batch, a step or an evaluation
export const mostInGroup = 2 ** 16
export const defaultSteps = 100
export const mostSteps = 2 ** 32 // limit of step numbers in checkpoints

/** How conversations are turned into text. */
const chatTemplate = z
  .object({
    template: z.string().min(1).optional(),
    tools: z.array(z.record(z.string(), z.unknown())).optional(),
    system: z.string().optional(),
    wrapPrompts: z.boolean().optional(),
  })
  .catchall(z.unknown())
  .optional()
  .describe(
    "How to render conversations: `template` (Jinja, or a .jinja file) instead of the tokenizer's, `tools` to show, a `system` message for conversations without one. With `wrapPrompts: true` a string prompt becomes a user message. Every other field is a variable of the template, for example `enable_thinking: false`.",
  )

/** The run: its length, its seed, what is saved and evaluated. */
export const run = {
  steps: count(mostSteps)
    .default(defaultSteps)
    .describe(
      'Number of steps of `run`. A step samples rollouts, or takes a batch of sequences, and makes its optimizer updates.',
    ),
  epochs: positive
    .optional()
    .describe(
      'Passes over the rows of a dataset or the packed sequences of a corpus, instead of `steps`. Fractions are allowed.',
    ),
  seed: natural
    .default(0)
    .describe('Seed of prompts, sampling and shuffling. The same seed and number of threads give the same bits.'),
  evalEvery: natural.default(0).describe('Steps between evaluations during `run`; 0 turns them off.'),
  evalOnStart: z
    .boolean()
    .default(true)
    .describe('With `evalEvery`, also evaluate before the first step (step 0). This evaluation counts for `metricForBestModel`.'),
  evalProblems: count(mostSequences).default(256).describe('Held-out problems, or packed sequences of text, per evaluation.'),
  evalLoops: z
    .array(count(maxLoops))
    .min(1)
    .max(maxLoops)
    .optional()
    .describe('Loop counts to evaluate. Default: 1 to the loops of the model.'),
  evalSamples: count(mostInGroup)
    .default(1)
    .describe(
      'Answers per problem of an evaluation. More than 1 also measures pass@k, and rewards are means over the answers (avg@k).',
    ),
  evalTemperature: nonNegative
    .optional()
    .describe('Sampling temperature of evaluations; 0 is greedy. Default: 0 with one answer per problem, 1 with several.'),
  evalMaxNewTokens: positiveInt
    .optional()
    .describe(
      'Most tokens of an answer in an evaluation. Default: `maxNewTokens`, else the limit of the task, or 256 for a dataset.',
    ),
  saveEvery: natural.default(0).describe('Steps between checkpoints; 0 saves only when the run ends. Needs `runDir`.'),
  keepCheckpoints: positiveInt.default(3).describe('How many of the newest checkpoints to keep.'),
  metricForBestModel: z
    .string()
    .min(1)
    .optional()
    .describe('Evaluation metric that decides which checkpoint is best, for example `eval/loop_4/reward`.'),
  greaterIsBetter: z
    .boolean()
    .optional()
    .describe('Whether a larger `metricForBestModel` is better. Default: true, unless its name ends in `loss`.'),
  saveBest: positiveInt
    .optional()
    .describe('How many of the best checkpoints to keep, in addition to the newest ones. Default: 1 with `metricForBestModel`.'),
  loadBestModelAtEnd: z
    .boolean()
    .default(false)
    .describe('Load the parameters of the best checkpoint when the run is complete. Needs `runDir`.'),
  earlyStoppingPatience: positiveInt
    .optional()
    .describe('Stop the run after this many evaluations in a row without a better `metricForBestModel`.'),
  earlyStoppingThreshold: nonNegative
    .default(0)
    .describe('Smallest improvement of `metricForBestModel` that counts as better for `earlyStoppingPatience`.'),
  chatTemplate,
}

/** The optimizer: AdamW, its schedule and its memory. */
export const optimizer = {
  schedule: z.enum(['constant', 'linear', 'cosine']).default('constant').describe('Learning rate schedule after the warm-up.'),
  warmupSteps: natural.optional().describe('Steps of linear warm-up.'),
  warmupRatio: share.optional().describe('Warm-up as a share of `steps`. Cannot be combined with `warmupSteps`.'),
  minLearningRate: nonNegative.default(0).describe('Learning rate at the end of `linear` and `cosine`.'),
  adamEps: positive.default(1e-8).describe('Epsilon of AdamW, added to the square root of the second moment.'),
  maxGradNorm: nonNegative
    .default(1)
    .describe('Gradients with a larger global norm are scaled down to this norm; 0 turns clipping off.'),
  recompute: z
    .enum(['none', 'loop', 'layer'])
    .default('none')
    .describe(
      'Recompute activations in the backward pass, by `loop` or by `layer`, instead of storing them. Needs less memory and more time; the numbers are the same.',
    ),
  tokensPerMicroBatch: natural
    .default(0)
    .describe('Tokens per forward and backward pass; 0 chooses it from the size of the model. Does not change the loss.'),
  lora: z
    .strictObject({
      rank: positiveInt.default(16).describe("Rank of the adapter's matrices."),
      alpha: positive.default(32).describe('The adapter is scaled by alpha / rank.'),
      dropout: z.literal(0).default(0).describe('Must be 0: dropout is not supported.'),
      targetModules: z
        .array(z.string().min(1))
        .min(1)
        .optional()
        .describe(
          'Projections of every layer that get an adapter, by the last part of their names, for example `q_proj`. Default: all.',
        ),
      perLoop: z
        .boolean()
        .default(false)
        .describe(
          'Train a separate adapter for every loop. The adapter has that many times the parameters and cannot be merged into the model.',
        ),
      shiftRank: natural
        .default(0)
        .describe(
          'Rank of matrices through which the MLP also sees the previous token (Shift-FFN, arXiv 2505.17153); 0 turns it off.',
        ),
    })
    .optional()
    .describe(
      'Train a low-rank adapter (LoRA) and leave the model unchanged. `dropout` must be 0. Checkpoints then hold the adapter, in the format of PEFT.',
    ),
}

/** Which loops are trained, and their initial states. */
export const depth = {
  loops: count(maxLoops)
    .optional()
    .describe('Loops per token, in rollouts and in training. Default: those of the model. Nanbeige and HRM-Text allow no more.'),
  readLoops: z
    .array(count(maxLoops))
    .min(1)
    .max(maxLoops)
    .optional()
    .describe(
      'Loops whose predictions enter the loss, in ascending order. Loops after the last of them do not run. Default: all.',
    ),
  backwardLoops: z
    .union([count(maxLoops), z.literal('published')], "must be a number of loops, at least 1, or 'published'")
    .optional()
    .describe(
      'Backpropagate through this many of the last loops; earlier loops store no activations. `published`: as the model family was trained. Default: all.',
    ),
  initialState: z
    .enum(['drawn', 'zeros'])
    .default('drawn')
    .describe(
      'Initial state of families whose loops start from a random one: `drawn` from `stateSeed` and the tokens, or `zeros`.',
    ),
  stateSeed: natural.default(0).describe('Seed of drawn initial states.'),
}

export const betas = (beta2: number) =>
  z
    .tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)])
    .default([0.9, beta2])
    .describe('Decay rates of the two moments of AdamW.')

const task = z.custom<Task>((value) => has(value, 'sample'), 'must be a task, for example addition()')

const rows = z
  .custom<DatasetSource>(
    (value) => typeof value === 'string' || Array.isArray(value) || has(value, 'path') || value instanceof DatasetStream,
    'must be an array of rows, a DatasetStream, a path, or { path, … } with the options of loadDataset',
  )
  .optional()

/** Options that are not plain data, and therefore not part of a configuration file. */
export const resources = {
  runDir: z
    .string()
    .min(1)
    .optional()
    .describe('Folder for checkpoints, metrics and completions. Nothing is written without it.'),
  resume: z
    .union([z.boolean(), z.string().min(1)], 'must be true, false or the path of a checkpoint')
    .default(false)
    .describe(
      '`true` continues from the newest checkpoint of `runDir`, or starts anew if there is none. A string continues from the checkpoint at this path.',
    ),
  task: task.optional().describe('Source of prompts, tokenizer, reward and held-out problems.'),
  dataset: rows.describe(
    'Rows with a `prompt` (a string or messages), instead of a task. `pretrain` and `looprpt` also learn rows of `messages` or `text`. An array, a `DatasetStream`, a path, `hub:org/name`, or `{ path, … }` with the options of `loadDataset` and `shuffleBuffer`.',
  ),
  evalDataset: rows.describe('Held-out rows for evaluations of a `dataset`.'),
  evalTasks: z
    .record(z.string().regex(/^[\w.-]+$/, 'a name has letters, digits, "_", "-" and "." only'), task)
    .optional()
    .describe('More tasks whose held-out problems are answered at each evaluation. The keys name their metrics.'),
  tokenizer: object<Tokenizer>('a Tokenizer', 'encode').describe(
    'Tokenizer of a `dataset` or a `corpus`. Default: that of the model. A `task` has its own.',
  ),
  callbacks: z
    .custom<TrainerCallbacks>(isObject, 'must be an object with functions such as onStep')
    .superRefine(checkCallbacks)
    .optional()
    .describe('Functions that the run calls: `onRunBegin`, `onRollouts`, `onStep`, `onEvaluate`, `onLog`, `onSave`, `onRunEnd`.'),
  loggers: z
    .array(
      z.union(
        [z.enum(loggerNames), z.custom<Logger>((value) => isObject(value) && typeof (value as Logger).log === 'function')],
        `must be ${loggerNames.join(', ')}, or a logger: an object with a function log(step, metrics)`,
      ),
    )
    .readonly()
    .optional()
    .describe(
      'Loggers that record the run, called in this order: built-in ones by name, and your own. Default: `jsonl`, `tensorboard` and `report` if `runDir` is set. An empty list records nothing.',
    ),
  onWarning: fn<(message: string) => void>().describe('Function that receives warnings. Default: `process.emitWarning`.'),
}

export const rewards = {
  reward: z
    .custom<Rewards>(
      (value) => typeof value === 'function' || (typeof value === 'object' && value !== null),
      'must be a function or functions',
    )
    .optional()
    .describe(
      'Replaces the reward of the task: a function, a list of { name, reward, weight }, or functions by name. Several rewards are added.',
    ),
}

const loopShares = z
  .array(nonNegative)
  .min(1)
  .max(maxLoops)
  .refine((weights) => weights.some((weight) => weight > 0), {
    message: 'at least one weight must be above 0',
  })

export const loopWeights = z.union(
  [z.enum(['exit-pdf', 'uniform', 'progressive', 'last']), loopShares],
  "must be 'exit-pdf', 'uniform', 'progressive', 'last' or a list of numbers, one per loop that is read",
)

export const learningRate = (value: number) => positive.default(value).describe('Peak learning rate.')

export const weightDecay = (value: number) => nonNegative.default(value).describe('Decoupled weight decay of matrices.')

/** Whether something reads some options, and what they need for that. */
export type Reader = readonly [reads: boolean, options: readonly string[], needs: string]

/** The options that nothing reads, with the error. A default passes, since config.yaml of a run holds all of them. */
export function unreadOptions(
  fields: Readonly<Record<string, z.ZodType>>,
  options: object,
  readers: readonly Reader[],
): { name: string; message: string }[] {
  const given = new Map(Object.entries(options))
  const isDefault = (name: string) => isDeepStrictEqual(given.get(name), fields[name]?.safeParse(undefined).data)
  return readers.flatMap(([reads, names, needs]) => {
    const unread = reads ? [] : names.filter((name) => given.get(name) !== undefined && !isDefault(name))
    return unread.map((name) => ({ name, message: `needs ${needs}; set it, or omit ${name}` }))
  })
}

/** Refuses {@link unreadOptions}. */
export function refuseUnread(
  fields: Parameters<typeof unreadOptions>[0],
  options: object,
  readers: readonly Reader[],
  context: z.RefinementCtx,
): void {
  for (const { name, message } of unreadOptions(fields, options, readers))
    context.addIssue({ code: 'custom', path: [name], message })
}

/** What reads the options that belong to a source of data. Without a source, a trainer serves `update` and `gradients`. */
export function sourceReaders({ task, dataset, corpus }: { task?: unknown; dataset?: unknown; corpus?: unknown }): Reader[] {
  if (task === undefined && dataset === undefined && corpus === undefined) return []
  return [
    [dataset !== undefined, ['evalDataset', 'chatTemplate', 'assistantOnly'], 'a dataset'],
    [corpus !== undefined, ['evalCorpus', 'contextLength', 'heldOutShare'], 'a corpus'],
    [corpus === undefined, ['reward'], 'a task or a dataset'],
    [dataset !== undefined || corpus !== undefined, ['tokenizer'], 'a dataset or a corpus (a task has its own tokenizer)'],
  ]
}

export interface RunOptions {
  steps: number
  epochs?: number | undefined
  warmupSteps?: unknown
  warmupRatio?: unknown
  evalEvery: number
  evalSamples: number
  evalTemperature?: number | undefined
  metricForBestModel?: unknown
  earlyStoppingPatience?: unknown
  schedule: string
  learningRate: number
  minLearningRate: number
  runDir?: unknown
  loggers?: unknown
  promptsPerStep?: number
  groupSize?: number
  gradientAccumulation?: number
}

/** Checks rules between the options that all trainers share. */
export function checkTogether(options: RunOptions, context: z.RefinementCtx): void {
  const refuse = (field: keyof RunOptions, message: string) => context.addIssue({ code: 'custom', path: [field], message })
  const { metricForBestModel: metric, earlyStoppingPatience } = options
  if (options.warmupSteps !== undefined && options.warmupRatio !== undefined) {
    refuse('warmupRatio', 'give warmupSteps or warmupRatio, not both')
  }
  if (options.epochs !== undefined && options.steps !== defaultSteps) refuse('epochs', 'give steps or epochs, not both')
  const ranked = 'metricForBestModel, the metric that says what is best, for example eval/loop_4/reward'
  const ranking = ['saveBest', 'loadBestModelAtEnd', 'earlyStoppingPatience', 'greaterIsBetter']
  const readers: Reader[] = [
    [metric !== undefined, ranking, ranked],
    [earlyStoppingPatience !== undefined, ['earlyStoppingThreshold'], 'earlyStoppingPatience'],
    [options.schedule !== 'constant', ['minLearningRate'], "the schedule 'linear' or 'cosine'"],
  ]
  refuseUnread({ ...run, ...optimizer }, options, readers, context)
  const { learningRate, minLearningRate } = options
  if (minLearningRate > learningRate) {
    refuse('minLearningRate', `is ${minLearningRate}, more than learningRate ${learningRate}; lower it, or raise learningRate`)
  }
  if (options.evalSamples > 1 && options.evalTemperature === 0) {
    refuse(
      'evalTemperature',
      `${options.evalSamples} greedy answers are all the same; set a temperature above 0, or omit evalSamples`,
    )
  }
  if (metric !== undefined && options.evalEvery === 0) {
    refuse('metricForBestModel', 'needs evalEvery, the steps between evaluations; it is 0 (never)')
  }
  const named = Array.isArray(options.loggers) ? options.loggers.filter((logger) => typeof logger === 'string') : []
  if (named.length > 0 && options.runDir === undefined)
    refuse('loggers', `${named.join(', ')} write into a run folder: set runDir`)
  if (named.includes('report') && !named.includes('jsonl'))
    refuse('loggers', 'the logger report reads what jsonl writes: add jsonl')
  const { promptsPerStep = 1, groupSize = 1, gradientAccumulation = 1 } = options
  const completions = promptsPerStep * groupSize * gradientAccumulation
  if (groupSize > mostInGroup) {
    refuse('groupSize', `at most ${mostInGroup} completions have one prompt, got ${groupSize}`)
  } else if (completions > mostSequences) {
    const product = 'promptsPerStep × groupSize × gradientAccumulation'
    refuse('promptsPerStep', `${product} are ${completions} completions per step; at most ${mostSequences} are sampled`)
  }
}

/** A schema, by its output and input types. */
export type OptionSchema<Config, Options> = z.ZodType<Config, Options> & { readonly shape: Readonly<Record<string, z.ZodType>> }

/** Checks that the types of options.ts match the schemas. A line that does not compile names the trainer that differs. */
export type Agreed<Schema extends z.ZodType, Config, Options> = readonly [
  Same<z.output<Schema>, Config>,
  Same<z.input<Schema>, Options>,
]
export const agreed: readonly [true, true] = [true, true]

export function object<T>(what: string, member: string) {
  return z.custom<T>((value) => has(value, member), `must be ${what}`).optional()
}

export function has(value: unknown, member: string): boolean {
  return typeof value === 'object' && value !== null && member in value
}

export function fn<T>() {
  return z.custom<T>((value) => typeof value === 'function', 'must be a function').optional()
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Rejects misspelt callbacks, which would never be called. */
function checkCallbacks(callbacks: TrainerCallbacks, context: z.RefinementCtx): void {
  const refuse = (name: string, message: string) => context.addIssue({ code: 'custom', path: [name], message })
  for (const name of Object.keys(callbacks ?? {})) {
    const known = callbackNames.find((other) => other === name)
    if (known === undefined && /^on[A-Z_]/.test(name)) {
      const remedy = didYouMean(name, callbackNames, `the callbacks are ${callbackNames.join(', ')}`)
      refuse(name, `unknown callback; ${remedy}`)
    }
    const value = known && callbacks[known]
    if (value !== undefined && typeof value !== 'function') refuse(name, `must be a function, got ${described(value)}`)
  }
}
