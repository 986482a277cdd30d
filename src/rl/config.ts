import { z } from 'zod'
import type { Tool } from '../chat/tools.js'
import { DatasetStream } from '../data/dataset-stream.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { maxLoops } from '../model/config.js'
import { type ExitRule, exitRuleNames, readExit } from '../model/exit-rules.js'
import { LoopLM } from '../model/model.js'
import { checkGrammar } from '../model/request.js'
import type { GenerateOptions } from '../model/types.js'
import type { Logger } from '../monitor/logger.js'
import { loggerNames } from '../monitor/loggers/built-in.js'
import type { Task } from '../tasks/task.js'
import { describe as described } from '../validation/arguments.js'
import { didYouMean } from '../validation/names.js'
import { alsoCalled, type Same } from '../validation/schema.js'
import { callbackNames, type TrainerCallbacks } from './callbacks.js'
import type { DatasetSource } from './dataset-rows.js'
import type { Environment } from './environment.js'
import type { OwnObjective } from './objective/custom-objective.js'
import { type RecipeName, recipes } from './objective/recipes.js'
import { normalizer, objectiveSchema } from './objective/schema.js'
import type {
  GRPOConfig,
  GRPOOptions,
  LoopRPTConfig,
  LoopRPTOptions,
  ObjectiveTrainerConfig,
  ObjectiveTrainerOptions,
  PretrainConfig,
  PretrainOptions,
  Rewards,
  RLTTConfig,
  RLTTOptions,
} from './options.js'
import type { RolloutFunction } from './rollout-function.js'

/*
 * One schema per trainer. Validation and the documentation of the options (registry.ts) are read from here; options.ts has the types.
 */

const natural = z.int().min(0)
const positiveInt = z.int().min(1)
const positive = z.number().positive()
const nonNegative = z.number().min(0)
const share = z.number().min(0).max(1)
const count = (most: number) => z.int().min(1).max(most)

/*
 * Counts whose things are held in memory at the same time have a bound far above what is of use: one more zero must be an error that
 * names the option, not the end of the process.
 */
const mostSequences = 2 ** 20 // of a batch, a step or an evaluation
const mostInGroup = 2 ** 16
const defaultSteps = 100
const mostSteps = 2 ** 32 // as checkpoints count them
const maxTimeout = 2_147_483 // seconds; beyond, a timer of Node fires at once

/** How conversations become text. */
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

/** The run: how long, which seed, what is saved and evaluated. */
const run = {
  steps: count(mostSteps)
    .default(defaultSteps)
    .describe('Steps of `run`. A step is one rollout (or one pre-training batch) with its optimizer steps.'),
  epochs: positive
    .optional()
    .describe(
      'Passes over the rows of a dataset or the packed sequences of a corpus, in place of `steps`; a part of one is possible.',
    ),
  seed: natural.default(0).describe('Seed of prompts, sampling and shuffling. Same seed and threads: same bits.'),
  evalEvery: natural.default(0).describe('Steps between evaluations during `run`; 0: none.'),
  evalOnStart: z
    .boolean()
    .default(true)
    .describe('With `evalEvery`, also evaluate before the first step (step 0). It counts for `metricForBestModel` too.'),
  evalProblems: count(mostSequences).default(256).describe('Held-out problems, or packed sequences of text, per evaluation.'),
  evalLoops: z
    .array(count(maxLoops))
    .min(1)
    .max(maxLoops)
    .optional()
    .describe('Loop counts that are evaluated; default 1 to the number of loops of the model.'),
  evalSamples: count(mostInGroup)
    .default(1)
    .describe('Answers to each problem of an evaluation: more than 1 measure pass@k and the mean over them (avg@k).'),
  evalTemperature: nonNegative
    .optional()
    .describe('Temperature of the answers of an evaluation; 0: greedy. Default 0 for one answer to each problem, 1 for several.'),
  evalMaxNewTokens: positiveInt
    .optional()
    .describe('Longest answer of an evaluation in tokens; default `maxNewTokens`, else what the task says, 256 for a dataset.'),
  saveEvery: natural.default(0).describe('Steps between checkpoints; 0: only when the run ends. Needs `runDir`.'),
  keepCheckpoints: positiveInt.default(3).describe('How many of the newest checkpoints are kept.'),
  metricForBestModel: z
    .string()
    .min(1)
    .optional()
    .describe('Metric of the evaluations that says which checkpoint is best, for example `eval/loop_4/reward`.'),
  greaterIsBetter: z
    .boolean()
    .optional()
    .describe('Whether more of `metricForBestModel` is better; default yes, unless its name ends in `loss`.'),
  saveBest: positiveInt
    .optional()
    .describe('How many of the best checkpoints are written and kept beside the newest; default 1 with `metricForBestModel`.'),
  loadBestModelAtEnd: z
    .boolean()
    .default(false)
    .describe('When the run ends by itself, the model gets the parameters of the best checkpoint. Needs `runDir`.'),
  earlyStoppingPatience: positiveInt
    .optional()
    .describe('The run ends after this many evaluations in a row in which `metricForBestModel` was no better than before.'),
  earlyStoppingThreshold: nonNegative
    .default(0)
    .describe('By how much an evaluation must beat the best one before to count as better for `earlyStoppingPatience`.'),
  chatTemplate,
}

/** The optimizer: AdamW, its schedule and its memory. */
const optimizer = {
  schedule: z
    .enum(['constant', 'linear', 'cosine'])
    .default('constant')
    .describe('Course of the learning rate after the warm-up.'),
  warmupSteps: natural.optional().describe('Steps of linear warm-up.'),
  warmupRatio: share.optional().describe('Warm-up as a share of `steps`; not together with `warmupSteps`.'),
  minLearningRate: nonNegative.default(0).describe('Where `linear` and `cosine` end.'),
  adamEps: positive.default(1e-8).describe('Added to the square root in AdamW.'),
  maxGradNorm: nonNegative.default(1).describe('Gradients are scaled down to this global norm; 0: never.'),
  recompute: z
    .enum(['none', 'loop', 'layer'])
    .default('none')
    .describe('Activations that the backward pass computes again instead of keeping them. Less memory, same numbers.'),
  tokensPerMicroBatch: natural
    .default(0)
    .describe('Tokens per pass through the engine; 0: chosen from the size of the model. Never changes the loss.'),
  lora: z
    .strictObject({
      rank: positiveInt.default(16).describe('Inner dimension of the adapter.'),
      alpha: positive.default(32).describe('The adapter counts alpha / rank times.'),
      dropout: z.literal(0).default(0).describe('There is none.'),
      targetModules: z
        .array(z.string().min(1))
        .min(1)
        .optional()
        .describe('Projections of every layer that get one, by the last part of their names; default all of them.'),
      perLoop: z
        .boolean()
        .default(false)
        .describe('A separate adapter for every loop: as many times the parameters. It cannot be merged into the model.'),
      shiftRank: natural
        .default(0)
        .describe(
          'The MLP also sees the token before (Shift-FFN, arXiv 2505.17153), by matrices of this inner dimension; 0: not.',
        ),
    })
    .optional()
    .describe(
      'Trains a low-rank adapter in place of the model, which stays as it is; checkpoints are those of the adapter, in the format of PEFT.',
    ),
}

/** Which loops are trained, and how they begin. */
const depth = {
  loops: count(maxLoops)
    .optional()
    .describe(
      'Loops of rollouts and of training; default those of the model. Nanbeige and HRM-Text refuse more than the model has.',
    ),
  readLoops: z
    .array(count(maxLoops))
    .min(1)
    .max(maxLoops)
    .optional()
    .describe('Loops, in growing order, that are read and weighted; nothing runs behind the last one. Default all.'),
  backwardLoops: z
    .union([count(maxLoops), z.literal('published')], "must be a number of loops, at least 1, or 'published'")
    .optional()
    .describe(
      'Only the last so many loops carry gradient, and the others keep nothing for it; `published`: as the family was trained. Default all.',
    ),
  initialState: z
    .enum(['drawn', 'zeros'])
    .default('drawn')
    .describe(
      'First state of the loops of families that begin with a random one: drawn from `stateSeed` and the tokens, or zeros.',
    ),
  stateSeed: natural.default(0).describe('Seed of first states.'),
}

const betas = (beta2: number) =>
  z
    .tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)])
    .default([0.9, beta2])
    .describe('Decay rates of the two moments of AdamW.')

/** The exit rule of rollouts; which rule has which field is in one list of the model. */
const exit = z
  .strictObject({
    rule: z.enum(exitRuleNames).describe('When a token leaves the loops.'),
    threshold: z.number().optional().describe('At which value the rule holds; default that of the rule.'),
    minLoops: count(maxLoops).optional().describe('Loops before which no token leaves; default 1.'),
    patience: count(maxLoops).optional().describe('`argmax-stable`: agreements in a row; default 1.'),
  })
  .superRefine((rule, context) => {
    try {
      readExit(rule as ExitRule, 1, '')
    } catch (error) {
      context.addIssue({ code: 'custom', message: (error as Error).message.replace(/^: /, '') })
    }
  }) as unknown as z.ZodType<ExitRule, ExitRule>

type Grammar = NonNullable<GenerateOptions['grammar']>

/** What completions of rollouts must be. */
const grammar = z
  .strictObject({
    jsonSchema: z
      .union([z.boolean(), z.record(z.string(), z.unknown())], 'must be a JSON Schema')
      .optional()
      .describe('JSON in one line that the schema allows; `true`: any JSON value.'),
    regex: z.string().optional().describe('The whole text matches.'),
    ebnf: z.string().optional().describe('Rules in the notation of xgrammar; the first one is `root`.'),
  })
  .superRefine((rules, context) => {
    try {
      checkGrammar(rules as Grammar, '')
    } catch (error) {
      context.addIssue({ code: 'custom', message: (error as Error).message.replace(/^: (grammar:? ?)?/, '') })
    }
  }) as unknown as z.ZodType<Grammar, Grammar>

/** Rollouts and advantages. */
const rollouts = {
  promptsPerStep: positiveInt.default(32).describe('Different prompts per generation call.'),
  groupSize: z.int().min(2).default(8).describe('Completions per prompt; advantages are relative to this group.'),
  gradientAccumulation: count(1024)
    .default(1)
    .describe('Generation calls whose rollouts make one logical batch: prompts per step are `promptsPerStep` times this.'),
  updatesPerRollout: count(1024)
    .default(1)
    .describe('Passes over the rollouts of a step. More than 1 wants the surrogate `ppo` or `cispo`.'),
  minibatches: count(2 ** 16)
    .default(1)
    .describe('Parts, in whole groups, that each pass is cut into; every part is one optimizer step.'),
  maxNewTokens: positiveInt.optional().describe('Longest completion in tokens; default what the task says, 256 for a dataset.'),
  temperature: positive.default(1).describe('Sampling temperature, also of all log-probabilities.'),
  topK: natural
    .default(0)
    .describe('Sample from the k most likely tokens; 0: all. Log-probabilities stay those of the full vocabulary.'),
  topP: positive.max(1).default(1).describe('Sample from the smallest set of tokens with this probability.'),
  minP: nonNegative.lt(1).default(0).describe('Sample from tokens with at least this share of the largest probability; 0: all.'),
  repetitionPenalty: positive
    .default(1)
    .describe(
      'Logits of tokens in the prompt or drawn before: positive ones are divided by it, negative ones multiplied; 1: off.',
    ),
  frequencyPenalty: z
    .number()
    .default(0)
    .describe('Subtracted from the logit of a token once for each time that it was drawn before; 0: off.'),
  presencePenalty: z.number().default(0).describe('Subtracted once from the logit of each token that was drawn before; 0: off.'),
  logitBias: z
    .record(z.string().regex(/^\d+$/, 'must be a token id'), z.number())
    .optional()
    .describe('Added to the logits of these token ids, for example `{ 13: -2 }`.'),
  bannedTokens: z.array(natural).optional().describe('Token ids that are never sampled.'),
  stop: z
    .array(z.union([natural, z.string().min(1)], 'must be a token id or a string that is not empty'))
    .optional()
    .describe('Token ids or strings that end a completion, in place of the end tokens of the task or the model.'),
  grammar: grammar
    .optional()
    .describe(
      'Completions, or the turns of episodes, are texts of a grammar, in evaluations too. Log-probabilities stay those of the full vocabulary.',
    ),
  exit: exit
    .optional()
    .describe('Exit rule of rollouts. Training and its log-probabilities stay at full depth, which is also the default.'),
  speculate: z
    .enum(['wavefront', 'off'])
    .default('off')
    .describe('`wavefront`: several positions of a rollout at once, where that pays. Never changes the rollouts.'),
  skipFlatGroups: z
    .boolean()
    .default(true)
    .describe('Leave sequences without advantage, those of flat groups first, out of the passes. Never changes the loss.'),
  rewardConcurrency: positiveInt.default(64).describe('Calls of one reward function that wait for an answer at the same time.'),
  rewardTimeout: nonNegative
    .max(maxTimeout)
    .default(0)
    .describe('Seconds after which a reward that has not answered is an error; 0: never.'),
  constantNormalizerLength: positiveInt
    .optional()
    .describe(
      'Tokens that the normalizer `constant` divides by; default `maxNewTokens`, for `update` else the longest response of its batch.',
    )
    .meta(alsoCalled('maxCompletionLength')),
  logCompletions: natural.default(4).describe('Completions per step that are written to completions.jsonl of `runDir`.'),
  logprobCheckEvery: natural
    .default(10)
    .describe('Steps between comparisons of the log-probabilities of sampling and of training; 0: never.'),
}

/** Episodes of an environment. */
const episodes = {
  maxTurns: count(2 ** 16)
    .default(8)
    .describe('Most turns of the model in an episode.'),
  branch: z
    .strictObject({ entropy: nonNegative, width: count(mostInGroup).min(2) })
    .optional()
    .describe(
      'Episodes branch once where a turn begins uncertainly (ARPO): the mean entropy of its first tokens, in nats, is at least `entropy`. `width` episodes of the group then share what came before. Default: none.',
    ),
  maxEpisodeTokens: positiveInt
    .optional()
    .describe('Most tokens of an episode, its prompt included; default the `max_position_embeddings` of the model.'),
  toolConcurrency: positiveInt.default(16).describe('Calls of tools that run at the same time.'),
  toolTimeout: nonNegative
    .max(maxTimeout)
    .default(30)
    .describe('Seconds after which a call of a tool is answered with an error message; 0: never.'),
  environmentTimeout: nonNegative
    .max(maxTimeout)
    .default(300)
    .describe('Seconds after which an environment that has not answered is an error; 0: never.'),
  reencode: z
    .boolean()
    .default(false)
    .describe(
      'Where the chat template rewrites earlier turns: encode the conversation again, and train the turns since then alone.',
    ),
}

/** What makes rollouts other than single turns. */
const rolloutResources = {
  rollout: fn<RolloutFunction>().describe('Makes the rollouts of a step; default completions of the prompts.'),
  environment: fn<Environment>().describe(
    'Makes the episode of a problem, with turns, tools and rewards; rollouts are episodes then.',
  ),
  tools: z
    .custom<readonly Tool[]>(
      (value) => Array.isArray(value) && value.every((tool) => has(tool, 'call') && has(tool, 'parameters')),
      'must be a list of tools, as defineTool makes them',
    )
    .optional()
    .describe('Tools that every episode offers.'),
}

/** The objective of math.md §2–§4. */
const objective = {
  advantage: z
    .strictObject({ source: z.enum(['reward', 'turn']).default('reward'), discount: share.default(1) })
    .default({ source: 'reward', discount: 1 })
    .describe(
      'One advantage per sequence, from its reward; or one per turn of an episode, from the rewards of this turn and later ones, each next one times `discount`.',
    ),
  scaleRewards: z
    .enum(['group', 'none'])
    .default('group')
    .describe('Divide advantages by the standard deviation of the group, or not.'),
  beta: nonNegative
    .default(0)
    .describe('Weight of the k3 estimate of the KL divergence to the frozen starting model, at the last loop.'),
  normalizer: normalizer
    .default('response-mean')
    .describe(
      'Mean over tokens of each response and then over responses; mean over all tokens; or division by `constantNormalizerLength`.',
    ),
  epsilon: nonNegative.default(0.2).describe('`ppo`: ratios below 1 - epsilon are clipped.'),
  epsilonHigh: nonNegative.optional().describe('`ppo`: ratios above 1 + epsilonHigh are clipped; default `epsilon`.'),
  dualClip: z
    .number()
    .gt(1)
    .optional()
    .describe('`ppo`: bound of the ratio of sequences with a negative advantage; default none.'),
  cap: positive.optional().describe('`cispo`: cap of the ratio; default 5.'),
}

const surrogates = ['reinforce', 'ppo', 'cispo'] as const

const task = z.custom<Task>((value) => has(value, 'sample'), 'must be a task, for example addition()')

const rows = z
  .custom<DatasetSource>(
    (value) => typeof value === 'string' || Array.isArray(value) || has(value, 'path') || value instanceof DatasetStream,
    'must be an array of rows, a DatasetStream, a path, or { path, … } with the options of loadDataset',
  )
  .optional()

/** What is not plain data, and therefore not part of a configuration file. */
export const resources = {
  runDir: z.string().min(1).optional().describe('Folder of checkpoints, metrics and completions; without it nothing is written.'),
  resume: z
    .union([z.boolean(), z.string().min(1)], 'must be true, false or the path of a checkpoint')
    .default(false)
    .describe(
      'Continue from the newest checkpoint of `runDir` (from the start where there is none), or from the checkpoint at this path.',
    ),
  task: task.optional().describe('Source of prompts, tokenizer, reward and held-out problems.'),
  dataset: rows.describe(
    'Rows with a `prompt`, a text or messages, instead of a task; `pretrain` and `looprpt` also learn rows of `messages` or `text`. An array, a `DatasetStream`, a path, `hub:org/name`, or `{ path, … }` with the options of `loadDataset` and `shuffleBuffer`.',
  ),
  evalDataset: rows.describe('Held-out rows for evaluations of a `dataset`.'),
  evalTasks: z
    .record(z.string().regex(/^[\w.-]+$/, 'a name has letters, digits, "_", "-" and "." only'), task)
    .optional()
    .describe('Further tasks whose held-out problems are answered at each evaluation, by the name that their metrics get.'),
  tokenizer: object<Tokenizer>('a Tokenizer', 'encode').describe('Tokenizer of a `dataset`; default the one of the model.'),
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
      'What records the run, in this order: built-in loggers by name, and your own loggers. Default all built-in ones (`jsonl`, `tensorboard`, `report`) where there is a `runDir`; an empty list records nothing.',
    ),
  onWarning: fn<(message: string) => void>().describe('Receives warnings; default `process.emitWarning`.'),
}

/** Packed text, for the trainers that learn from given tokens. */
const text = {
  contextLength: z.int().min(2).default(1024).describe('Tokens per packed sequence of a `corpus`.'),
  heldOutShare: share
    .lt(1)
    .default(0.05)
    .describe('Share of a `corpus` that is kept back for evaluations; not with `evalCorpus`.'),
}
const paths = z.union(
  [z.string().min(1), z.array(z.string().min(1)).min(1)],
  'must be the path of a file or folder, or a list of them',
)
const corpora = {
  corpus: paths
    .optional()
    .describe('Files or folders of .txt, .md and .jsonl (`text` of each line), instead of a task or dataset.'),
  evalCorpus: paths.optional().describe('Held-out text for evaluations of a `corpus`.'),
}

const rewards = {
  reward: z
    .custom<Rewards>(
      (value) => typeof value === 'function' || (typeof value === 'object' && value !== null),
      'must be a function or functions',
    )
    .optional()
    .describe(
      'Replaces the reward of the task: a function, a list of { name, reward, weight } or functions by name. Several are added.',
    ),
}

/** What the trainers that learn from given tokens measure beside their losses. */
const answered = {
  reward: rewards.reward.describe(
    'Evaluations also answer held-out problems and score the answers with this: a function, a list of { name, reward, weight } or functions by name. Default the reward of the task.',
  ),
}

const policy = { ...run, ...optimizer, ...depth, ...rollouts, ...episodes }
const loopShares = z
  .array(nonNegative)
  .min(1)
  .max(maxLoops)
  .refine((weights) => weights.some((weight) => weight > 0), {
    message: 'one of the weights must be more than 0',
  })
const loopWeights = z.union(
  [z.enum(['exit-pdf', 'uniform', 'progressive', 'last']), loopShares],
  "must be 'exit-pdf', 'uniform', 'progressive', 'last' or a list of numbers, one per loop that is read",
)
const learningRate = (value: number) => positive.default(value).describe('Peak learning rate.')
const weightDecay = (value: number) => nonNegative.default(value).describe('Decoupled weight decay of matrices.')

/** {@link checkTogether} for the trainers that sample. */
function checkPolicy(
  options: RunOptions & {
    exitThreshold?: number | undefined
    exit?: unknown
    readLoops?: readonly number[] | undefined
  },
  context: z.RefinementCtx,
): void {
  checkTogether(options, context)
  if (options.exitThreshold !== undefined && options.exit !== undefined) {
    const message = 'exitThreshold is the exit rule gate, whose exits are trained; omit one of them'
    context.addIssue({ code: 'custom', path: ['exit'], message })
  }
  if (options.exitThreshold !== undefined && options.readLoops !== undefined) {
    const message = 'rollouts that leave early may leave at any loop; omit readLoops or exitThreshold'
    context.addIssue({ code: 'custom', path: ['readLoops'], message })
  }
}

interface RunOptions {
  steps: number
  epochs?: number | undefined
  warmupSteps?: unknown
  warmupRatio?: unknown
  evalEvery: number
  evalSamples: number
  evalTemperature?: number | undefined
  metricForBestModel?: unknown
  saveBest?: unknown
  loadBestModelAtEnd: boolean
  earlyStoppingPatience?: unknown
  runDir?: unknown
  loggers?: unknown
  promptsPerStep?: number
  groupSize?: number
  gradientAccumulation?: number
}

/** Rollouts have one source. */
function checkRolloutResources(
  { rollout, environment, tools }: { rollout?: unknown; environment?: unknown; tools?: unknown },
  context: z.RefinementCtx,
): void {
  const refuse = (field: string, message: string) => context.addIssue({ code: 'custom', path: [field], message })
  if (rollout !== undefined && environment !== undefined) refuse('rollout', 'give a rollout function or an environment, not both')
  if (tools !== undefined && environment === undefined) refuse('tools', 'belong to an environment; give one, or omit tools')
}

/** {@link checkPolicy} for RLTT and GRPO. */
function checkClassic(
  options: Parameters<typeof checkPolicy>[0] & { surrogate: string; epsilonHigh?: unknown },
  context: z.RefinementCtx,
): void {
  checkPolicy(options, context)
  if (options.surrogate !== 'cispo' || options.epsilonHigh === undefined) return
  const message = "belongs to the surrogate 'ppo'; the option cap is the bound of 'cispo'"
  context.addIssue({ code: 'custom', path: ['epsilonHigh'], message })
}

/** Rules between the options that all trainers have. */
function checkTogether(options: RunOptions, context: z.RefinementCtx): void {
  const refuse = (field: keyof RunOptions, message: string) => context.addIssue({ code: 'custom', path: [field], message })
  const { metricForBestModel: metric, saveBest, loadBestModelAtEnd, earlyStoppingPatience } = options
  if (options.warmupSteps !== undefined && options.warmupRatio !== undefined) {
    refuse('warmupRatio', 'give warmupSteps or warmupRatio, not both')
  }
  if (options.epochs !== undefined && options.steps !== defaultSteps) refuse('epochs', 'give steps or epochs, not both')
  const needed = 'needs metricForBestModel, the metric that says what is best, for example eval/loop_4/reward'
  if (metric === undefined && saveBest !== undefined) refuse('saveBest', needed)
  if (metric === undefined && loadBestModelAtEnd) refuse('loadBestModelAtEnd', needed)
  if (metric === undefined && earlyStoppingPatience !== undefined) refuse('earlyStoppingPatience', needed)
  if (options.evalSamples > 1 && options.evalTemperature === 0) {
    refuse('evalTemperature', `${options.evalSamples} greedy answers are all the same; give more than 0, or omit evalSamples`)
  }
  if (metric !== undefined && options.evalEvery === 0) {
    refuse('metricForBestModel', 'needs evalEvery, the steps between evaluations; it is 0 (never)')
  }
  const named = Array.isArray(options.loggers) ? options.loggers.filter((logger) => typeof logger === 'string') : []
  if (named.length > 0 && options.runDir === undefined)
    refuse('loggers', `${named.join(', ')} write into a run folder: give runDir`)
  if (named.includes('report') && !named.includes('jsonl')) refuse('loggers', 'report is made of what jsonl writes: add jsonl')
  const { promptsPerStep = 1, groupSize = 1, gradientAccumulation = 1 } = options
  const completions = promptsPerStep * groupSize * gradientAccumulation
  if (groupSize > mostInGroup) {
    refuse('groupSize', `at most ${mostInGroup} completions have one prompt, got ${groupSize}`)
  } else if (completions > mostSequences) {
    const product = 'promptsPerStep × groupSize × gradientAccumulation'
    refuse('promptsPerStep', `${product} are ${completions} completions per step; at most ${mostSequences} are sampled`)
  }
}

const rltt = z
  .strictObject({
    weights: loopWeights
      .default('exit-pdf')
      .describe(
        'Weights of the loops in the loss: by the probability of exiting at the loop, equal, by t^alpha, only the last, or one number per loop that is read.',
      ),
    alpha: nonNegative.default(1).describe('Exponent of `progressive`.'),
    detachWeights: z
      .boolean()
      .default(true)
      .describe('No gradient through `exit-pdf` weights; false trains the gate as well and wants the surrogate `reinforce`.'),
    surrogate: z
      .enum(surrogates)
      .default('reinforce')
      .describe('`reinforce` has no ratio and wants one optimizer step per rollout.'),
    learningRate: learningRate(1e-6),
    weightDecay: weightDecay(0),
    adamBetas: betas(0.999),
    ...policy,
    ...objective,
  })
  .superRefine(checkClassic)
  .refine((options) => options.weights !== 'exit-pdf' || options.detachWeights || options.surrogate === 'reinforce', {
    path: ['detachWeights'],
    message: "false (a trained gate) is defined for surrogate 'reinforce' alone: use that one, or leave detachWeights out",
  })

const grpo = z
  .strictObject({
    weights: z.literal('last').default('last').describe('GRPO trains the last loop.'),
    surrogate: z.enum(surrogates).default('ppo').describe('`ppo` clips the ratio to the policy that made the rollout.'),
    learningRate: learningRate(1e-6),
    weightDecay: weightDecay(0),
    adamBetas: betas(0.999),
    ...policy,
    ...objective,
  })
  .superRefine(checkClassic)

const recipeName = z.enum(Object.keys(recipes) as [RecipeName, ...RecipeName[]])
const phase = z.strictObject({ until: positiveInt.optional(), objective: z.union([recipeName, objectiveSchema]) })

const objectiveTrainer = {
  objective: z
    .union(
      [recipeName, objectiveSchema, z.array(phase).min(1).readonly()],
      'must be the name of a recipe, an objective of the algebra or a list of { until, objective }',
    )
    .default('rltt')
    .describe(
      `A recipe by name, an objective of the algebra, or a list of { until, objective } by step. Recipes: ${Object.keys(recipes)
        .map((name) => `\`${name}\``)
        .join(', ')}.`,
    ),
  exitThreshold: share
    .optional()
    .describe('Rollouts leave the loops where the exit CDF reaches this, and exit terms train those exits; default full depth.'),
  marginalToken: natural
    .optional()
    .describe(
      'Start token in place of the prompt for terms in the marginal space; default the `bos_token_id` of the model, else 0.',
    ),
  learningRate: learningRate(1e-6),
  weightDecay: weightDecay(0),
  adamBetas: betas(0.999),
  ...policy,
}

const pretrain = z
  .strictObject({
    stage: z
      .union([z.literal(1), z.literal(2)], 'must be 1 or 2')
      .default(1)
      .describe('Stage I trains everything on the expected cross-entropy; Stage II the gate alone, to go on while a loop helps.'),
    weights: loopWeights
      .optional()
      .describe(
        'Stage I: weights of the cross-entropies of the loops. `exit-pdf` trains the gate as well, and is the default of models that have one; without one the default is `last`.',
      ),
    alpha: nonNegative.default(1).describe('Exponent of `progressive`.'),
    entropyCoefficient: nonNegative
      .default(0.1)
      .describe(
        'Weight of the entropy of the exit distribution; keeps the gate from collapsing. Read with `exit-pdf` weights alone.',
      ),
    batchSize: positiveInt.default(32).describe('Sequences per step.'),
    assistantOnly: z
      .boolean()
      .default(false)
      .describe(
        'Of a conversation, learn every message of the assistant: what the template has in `{% generation %}`, else what each adds. Default the last message alone.',
      ),
    ...text,
    learningRate: learningRate(3e-4),
    weightDecay: weightDecay(0.1),
    adamBetas: betas(0.95),
    ...run,
    ...optimizer,
    ...depth,
  })
  .superRefine(checkTogether)
  .refine(({ stage, lora }) => stage === 1 || lora === undefined, {
    path: ['lora'],
    message: 'Stage II trains the gate, which an adapter leaves frozen',
  })

const looprpt = z
  .strictObject({
    rho: positive
      .max(1)
      .default(0.2)
      .describe('Share of the predictions of each sequence that count: those of highest teacher entropy.'),
    tau: share
      .default(0.5)
      .describe('The reference step of a token is the first loop where the exit CDF of the teacher reaches this.'),
    lambdaBase: nonNegative.default(0.02).describe('Price of a loop, in nats.'),
    lambdaScale: nonNegative.default(0.5).describe('How much more a loop costs where the teacher is certain.'),
    rollouts: z.int().min(2).max(1024).default(8).describe('Noisy passes per sequence.'),
    sigma: nonNegative.default(0.1).describe('Standard deviation of the noise on the latent states.'),
    noiseSite: z
      .enum(['state', 'residual', 'embedding'])
      .default('state')
      .describe(
        'Where the noise is added: the normed state of every loop, the residual stream before that norm, or the embedded tokens once. Behind `state` the passes share their first loop, which saves time.',
      ),
    antithetic: z
      .boolean()
      .default(false)
      .describe(
        'Rollouts come in pairs with opposite noise, which halves the draws and cancels odd errors. Wants even `rollouts`.',
      ),
    rewardFrom: z
      .enum(['rollout', 'clean'])
      .default('rollout')
      .describe('Whose log-probability a rollout earns at its exit: its own, or that of the pass without noise.'),
    policyCoefficient: nonNegative.default(1).describe('Weight of the policy gradient of the exits.'),
    representationCoefficient: nonNegative
      .default(1)
      .describe('Weight of the cross-entropy of the loops, by exit probability and reward.'),
    entropyCoefficient: nonNegative.default(0.01).describe('Weight of the entropy of the exit distribution.'),
    klCoefficient: nonNegative.default(1e-4).describe('Weight of the k3 estimate of the KL divergence to the teacher.'),
    klReduction: z
      .enum(['mean', 'weighted', 'last'])
      .default('mean')
      .describe('Over which loops that estimate is taken: their mean, by the (detached) exit distribution, or the last alone.'),
    teacherDecay: share
      .default(0.995)
      .describe('The teacher becomes this share of itself and the rest of the model after every step; 1: frozen.'),
    batchSize: positiveInt.default(32).describe('Sequences per step.'),
    ...text,
    learningRate: learningRate(5e-6),
    weightDecay: weightDecay(0.01),
    adamBetas: betas(0.999),
    ...run,
    ...optimizer,
  })
  .superRefine(checkTogether)
  .refine(({ antithetic, rollouts }) => !antithetic || rollouts % 2 === 0, {
    path: ['rollouts'],
    message: 'antithetic noise comes in pairs: rollouts must be even',
  })

const rlttWhole = rltt.safeExtend({ ...resources, ...rewards, ...rolloutResources }).superRefine(checkRolloutResources)
const grpoWhole = grpo.safeExtend({ ...resources, ...rewards, ...rolloutResources }).superRefine(checkRolloutResources)
const objectiveWhole = z
  .strictObject({
    ...objectiveTrainer,
    ...resources,
    ...rewards,
    ...rolloutResources,
    objective: z
      .union(
        [objectiveTrainer.objective, z.custom<OwnObjective>((value) => typeof value === 'function')],
        'must be the name of a recipe, an objective of the algebra, a list of { until, objective }, or a function',
      )
      .default('rltt')
      .describe('As in the configuration, or a function that returns coefficients.'),
    answerOf: fn<(completion: string, columns: Record<string, unknown>) => string | null>().describe(
      'Label-free rewards compare these; default the content of the last box, or the whole completion.',
    ),
  })
  .superRefine(checkPolicy)
  .superRefine(checkRolloutResources)
const pretrainWhole = pretrain.safeExtend({ ...resources, ...corpora, ...answered })
const looprptWhole = looprpt.safeExtend({
  ...resources,
  ...corpora,
  ...answered,
  teacher: z
    .custom<LoopLM>((value) => value instanceof LoopLM, 'must be a LoopLM')
    .optional()
    .describe('The model that is followed and compared with, of the same configuration; default a copy of the model.'),
})

/** A schema by what it gives and takes. */
export type OptionSchema<Config, Options> = z.ZodType<Config, Options> & { readonly shape: Readonly<Record<string, z.ZodType>> }

// Options that are plain data, as files have them.
export const rlttSchema: z.ZodObject = rltt
export const grpoSchema: z.ZodObject = grpo
export const objectiveTrainerSchema: z.ZodObject = z.strictObject(objectiveTrainer).superRefine(checkPolicy)
export const pretrainSchema: z.ZodObject = pretrain
export const looprptSchema: z.ZodObject = looprpt

// The same with the task, the rewards and the callbacks: all that a trainer takes.
export const rlttOptions: OptionSchema<RLTTConfig, RLTTOptions> = rlttWhole
export const grpoOptions: OptionSchema<GRPOConfig, GRPOOptions> = grpoWhole
export const objectiveTrainerOptions: OptionSchema<ObjectiveTrainerConfig, ObjectiveTrainerOptions> = objectiveWhole
export const pretrainOptions: OptionSchema<PretrainConfig, PretrainOptions> = pretrainWhole
export const looprptOptions: OptionSchema<LoopRPTConfig, LoopRPTOptions> = looprptWhole

/** The types of options.ts are what the schemas take and give; a line that does not compile names the trainer that differs. */
type Agreed<Schema extends z.ZodType, Config, Options> = readonly [Same<z.output<Schema>, Config>, Same<z.input<Schema>, Options>]
const agreed: readonly [true, true] = [true, true]
agreed satisfies Agreed<typeof rlttWhole, RLTTConfig, RLTTOptions>
agreed satisfies Agreed<typeof grpoWhole, GRPOConfig, GRPOOptions>
agreed satisfies Agreed<typeof objectiveWhole, ObjectiveTrainerConfig, ObjectiveTrainerOptions>
agreed satisfies Agreed<typeof pretrainWhole, PretrainConfig, PretrainOptions>
agreed satisfies Agreed<typeof looprptWhole, LoopRPTConfig, LoopRPTOptions>

const notData = new Set(['teacher'])

/** The part of a trainer's configuration that is plain data, as stored in files. */
export function plainConfig(config: object): Record<string, unknown> {
  const entries = Object.entries(config).filter(
    ([key, value]) =>
      ![resources, corpora, rewards, rolloutResources].some((group) => key in group) &&
      !notData.has(key) &&
      typeof value !== 'function' &&
      value !== undefined,
  )
  return Object.fromEntries(entries)
}

function object<T>(what: string, member: string) {
  return z.custom<T>((value) => has(value, member), `must be ${what}`).optional()
}

function has(value: unknown, member: string): boolean {
  return typeof value === 'object' && value !== null && member in value
}

function fn<T>() {
  return z.custom<T>((value) => typeof value === 'function', 'must be a function').optional()
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Refuses a misspelt callback, which would never be called. */
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
