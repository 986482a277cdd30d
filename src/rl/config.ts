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

/* One schema per trainer. Validation and the documentation of the options (registry.ts) use them. options.ts has the types. */

const natural = z.int().min(0)
const positiveInt = z.int().min(1)
const positive = z.number().positive()
const nonNegative = z.number().min(0)
const share = z.number().min(0).max(1)
const count = (most: number) => z.int().min(1).max(most)

/*
 * Bounds for options that determine how many things are in memory at once. They are far above useful values: an extra zero must
 * give an error that names the option instead of killing the process.
 */
const mostSequences = 2 ** 20 // sequences of a batch, a step or an evaluation
const mostInGroup = 2 ** 16
const defaultSteps = 100
const mostSteps = 2 ** 32 // limit of step numbers in checkpoints
const maxTimeout = 2_147_483 // seconds; longer timers of Node fire immediately

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
const run = {
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
const optimizer = {
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
const depth = {
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

const betas = (beta2: number) =>
  z
    .tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)])
    .default([0.9, beta2])
    .describe('Decay rates of the two moments of AdamW.')

/** The exit rule of rollouts. exit-rules.ts lists the fields of each rule. */
const exit = z
  .strictObject({
    rule: z.enum(exitRuleNames).describe('Rule that decides after which loop a token exits.'),
    threshold: z.number().optional().describe('Value at which the rule lets a token exit. Every rule has its own default.'),
    minLoops: count(maxLoops).optional().describe('Fewest loops of a token. Default: 1.'),
    patience: count(maxLoops)
      .optional()
      .describe('`argmax-stable`: how often in a row the most likely token must stay the same. Default: 1.'),
  })
  .superRefine((rule, context) => {
    try {
      readExit(rule as ExitRule, 1, '')
    } catch (error) {
      context.addIssue({ code: 'custom', message: (error as Error).message.replace(/^: /, '') })
    }
  }) as unknown as z.ZodType<ExitRule, ExitRule>

type Grammar = NonNullable<GenerateOptions['grammar']>

/** The grammar that completions of rollouts must match. */
const grammar = z
  .strictObject({
    jsonSchema: z
      .union([z.boolean(), z.record(z.string(), z.unknown())], 'must be a JSON Schema')
      .optional()
      .describe('JSON Schema that the text must satisfy, as JSON in one line; `true` allows any JSON value.'),
    regex: z.string().optional().describe('Regular expression that the whole text must match.'),
    ebnf: z.string().optional().describe('Rules in the EBNF notation of xgrammar. The rule `root` comes first.'),
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
  promptsPerStep: positiveInt.default(32).describe('Prompts per generation call. A dataset with fewer rows is repeated.'),
  groupSize: z.int().min(2).default(8).describe('Completions per prompt; advantages are relative to this group.'),
  gradientAccumulation: count(1024)
    .default(1)
    .describe('Generation calls per step. Their rollouts form one batch of `promptsPerStep` × `gradientAccumulation` prompts.'),
  updatesPerRollout: count(1024)
    .default(1)
    .describe(
      'Passes over the rollouts of a step. More than 1 needs a surrogate with an importance ratio, such as `ppo` or `cispo`.',
    ),
  minibatches: count(2 ** 16)
    .default(1)
    .describe('Parts that each pass is split into, without splitting groups. Every part is one optimizer step.'),
  maxNewTokens: positiveInt
    .optional()
    .describe('Most tokens of a completion. Default: the limit of the task, or 256 for a dataset.'),
  temperature: positive.default(1).describe('Sampling temperature. All log-probabilities use it as well.'),
  topK: natural
    .default(0)
    .describe('Sample from the k most likely tokens; 0 allows all. Log-probabilities are still those of the full vocabulary.'),
  topP: positive
    .max(1)
    .default(1)
    .describe('Sample from the smallest set of most likely tokens that together have this probability (nucleus sampling).'),
  minP: nonNegative
    .lt(1)
    .default(0)
    .describe('Sample from tokens with at least this share of the largest probability; 0 allows all.'),
  repetitionPenalty: positive
    .default(1)
    .describe(
      'Penalty of tokens that occurred before, in prompt or completion: positive logits are divided by it, negative ones multiplied. 1 turns it off.',
    ),
  frequencyPenalty: z
    .number()
    .default(0)
    .describe('Subtracted from the logit of a token for each time that it was sampled before; 0 turns it off.'),
  presencePenalty: z
    .number()
    .default(0)
    .describe('Subtracted once from the logit of each token that was sampled before; 0 turns it off.'),
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
      'Grammar that completions, or turns of episodes, must follow, also in evaluations. Log-probabilities are still those of the full vocabulary.',
    ),
  exit: exit
    .optional()
    .describe(
      'Early-exit rule of rollouts. Training and its log-probabilities still use full depth. To train at the exits, use the recipe `exit-sampled` instead. Default: no early exit.',
    ),
  speculate: z
    .enum(['wavefront', 'off'])
    .default('off')
    .describe('`wavefront` computes several positions of a rollout at once where that saves time. Does not change the rollouts.'),
  skipFlatGroups: z
    .boolean()
    .default(true)
    .describe('Skip sequences whose advantage is 0, such as groups with equal rewards. Does not change the loss.'),
  rewardConcurrency: positiveInt.default(64).describe('Most calls of one reward function that run at the same time.'),
  rewardTimeout: nonNegative
    .max(maxTimeout)
    .default(0)
    .describe('Seconds that a reward may take before the run fails; 0 sets no limit.'),
  constantNormalizerLength: positiveInt
    .optional()
    .describe(
      'Tokens that the normalizer `constant` divides by. Default: `maxNewTokens`; where that is not set, `update` uses the longest response of its batch.',
    )
    .meta(alsoCalled('maxCompletionLength')),
  logCompletions: natural.default(4).describe('Completions per step to write to completions.jsonl in `runDir`.'),
  logprobCheckEvery: natural
    .default(10)
    .describe('Steps between checks that sampling and training give the same log-probabilities; 0 turns them off.'),
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
      'Branch an episode once, at a turn whose first tokens have a mean entropy of at least `entropy` nats (ARPO). `width` episodes of the group then share the turns before it. Default: no branches.',
    ),
  maxEpisodeTokens: positiveInt
    .optional()
    .describe('Most tokens of an episode, prompt included. Default: `max_position_embeddings` of the model.'),
  toolConcurrency: positiveInt.default(16).describe('Most tool calls that run at the same time.'),
  toolTimeout: nonNegative
    .max(maxTimeout)
    .default(30)
    .describe('Seconds that a tool call may take before the model gets an error message instead; 0 sets no limit.'),
  environmentTimeout: nonNegative
    .max(maxTimeout)
    .default(300)
    .describe('Seconds that an environment may take before the run fails; 0 sets no limit.'),
  reencode: z
    .boolean()
    .default(false)
    .describe(
      'For chat templates that rewrite earlier turns: encode the conversation again, and train only the turns after the last rewrite.',
    ),
}

/** What replaces single-turn rollouts. */
const rolloutResources = {
  rollout: fn<RolloutFunction>().describe(
    'Function that makes the rollouts of a step. Default: the model completes the prompts.',
  ),
  environment: fn<Environment>().describe(
    'Function that makes an episode for a problem, with turns, tools and rewards. Rollouts are then episodes.',
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
      '`reward`: one advantage per sequence, from its reward. `turn`: one per turn of an episode, from its reward and those of later turns, discounted by `discount` per turn.',
    ),
  scaleRewards: z
    .enum(['group', 'none'])
    .default('group')
    .describe('Whether advantages are divided by the standard deviation of the `group`.'),
  beta: nonNegative
    .default(0)
    .describe('Weight of the KL divergence to the frozen starting model, estimated by k3 at the last loop.'),
  normalizer: normalizer
    .default('response-mean')
    .describe(
      'How the losses of tokens are averaged. `response-mean`: over the tokens of each response, then over responses. `token-mean`: over all tokens. `constant`: divided by `constantNormalizerLength`.',
    ),
  epsilon: nonNegative.default(0.2).describe('`ppo`: ratios below 1 - epsilon are clipped.'),
  epsilonHigh: nonNegative.optional().describe('`ppo`: ratios above 1 + epsilonHigh are clipped. Default: `epsilon`.'),
  dualClip: z
    .number()
    .gt(1)
    .optional()
    .describe('`ppo`: upper bound of the ratio where the advantage is negative. Default: none.'),
  cap: positive.optional().describe('`cispo`: largest ratio. Default: 5.'),
}

const surrogates = ['reinforce', 'ppo', 'cispo'] as const

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
  tokenizer: object<Tokenizer>('a Tokenizer', 'encode').describe('Tokenizer of a `dataset`. Default: that of the model.'),
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

/** Packed text, for the trainers that learn from given tokens. */
const text = {
  contextLength: z.int().min(2).default(1024).describe('Tokens per packed sequence of a `corpus`.'),
  heldOutShare: share
    .lt(1)
    .default(0.05)
    .describe('Share of a `corpus` that is held out for evaluations. Not used with `evalCorpus`.'),
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
      'Replaces the reward of the task: a function, a list of { name, reward, weight }, or functions by name. Several rewards are added.',
    ),
}

/** What the trainers on given tokens measure besides their losses. */
const answered = {
  reward: rewards.reward.describe(
    'Reward for the answers to held-out problems in evaluations: a function, a list of { name, reward, weight }, or functions by name. Default: the reward of the task.',
  ),
}

const policy = { ...run, ...optimizer, ...depth, ...rollouts, ...episodes }
const loopShares = z
  .array(nonNegative)
  .min(1)
  .max(maxLoops)
  .refine((weights) => weights.some((weight) => weight > 0), {
    message: 'at least one weight must be above 0',
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
    const message = 'exitThreshold already sets an exit rule, gate, whose exits are trained; omit exit or exitThreshold'
    context.addIssue({ code: 'custom', path: ['exit'], message })
  }
  if (options.exitThreshold !== undefined && options.readLoops !== undefined) {
    const message = 'rollouts with exitThreshold may exit at any loop; omit readLoops or exitThreshold'
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

/** Checks that rollouts have only one source. */
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

/** Checks rules between the options that all trainers share. */
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

const rltt = z
  .strictObject({
    weights: loopWeights
      .default('exit-pdf')
      .describe(
        'Weights of the loops in the loss: `exit-pdf` (their exit probabilities), `uniform`, `progressive` (t^alpha for loop t), `last`, or one number per loop that is read.',
      ),
    alpha: nonNegative.default(1).describe('Exponent of `progressive`.'),
    detachWeights: z
      .boolean()
      .default(true)
      .describe('Stop the gradient at `exit-pdf` weights. `false` also trains the gate, and needs the surrogate `reinforce`.'),
    surrogate: z
      .enum(surrogates)
      .default('reinforce')
      .describe('Loss of a token. `reinforce` has no importance ratio: make one optimizer step per rollout with it.'),
    learningRate: learningRate(1e-6),
    weightDecay: weightDecay(0),
    adamBetas: betas(0.999),
    ...policy,
    ...objective,
  })
  .superRefine(checkClassic)
  .refine((options) => options.weights !== 'exit-pdf' || options.detachWeights || options.surrogate === 'reinforce', {
    path: ['detachWeights'],
    message: "false (a trained gate) needs the surrogate 'reinforce': set it, or omit detachWeights",
  })

const grpo = z
  .strictObject({
    weights: z.literal('last').default('last').describe('GRPO trains the last loop.'),
    surrogate: z
      .enum(surrogates)
      .default('ppo')
      .describe('Loss of a token. `ppo` clips the ratio to the policy that sampled the rollout.'),
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
    .describe(
      'Tokens of rollouts exit at the first loop whose cumulative exit probability reaches this. Terms of channel `exit` train these exits. Default: full depth.',
    ),
  marginalToken: natural
    .optional()
    .describe(
      'Start token that replaces the prompt in terms of the marginal space. Default: `bos_token_id` of the model, else 0.',
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
      .describe(
        '`1` (Stage I) trains all parameters on the expected cross-entropy over the exits. `2` (Stage II) trains only the exit gate, to continue while another loop helps.',
      ),
    weights: loopWeights
      .optional()
      .describe(
        'Stage I: weights of the loops in the loss. `exit-pdf` also trains the gate. Default: `exit-pdf` for models with an exit gate, else `last`.',
      ),
    alpha: nonNegative.default(1).describe('Exponent of `progressive`.'),
    entropyCoefficient: nonNegative
      .default(0.1)
      .describe(
        'Weight of the entropy of the exit distribution, which keeps the gate from collapsing. Used only with `exit-pdf` weights.',
      ),
    batchSize: positiveInt.default(32).describe('Sequences per step.'),
    assistantOnly: z
      .boolean()
      .default(false)
      .describe(
        'Learn every assistant message of a conversation, not only the last one. The template marks them with `{% generation %}`; without marks, each message is the text that it adds.',
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
    message: 'stage 2 trains the exit gate, but an adapter keeps it frozen: omit lora',
  })

const looprpt = z
  .strictObject({
    rho: positive
      .max(1)
      .default(0.2)
      .describe('Share of the predictions of each sequence that are trained: those with the highest teacher entropy.'),
    tau: share
      .default(0.5)
      .describe("The reference loop of a token is the first one where the teacher's cumulative exit probability reaches this."),
    lambdaBase: nonNegative.default(0.02).describe('Cost of a loop, in nats.'),
    lambdaScale: nonNegative.default(0.5).describe('How much more a loop costs where the teacher is certain.'),
    rollouts: z.int().min(2).max(1024).default(8).describe('Noisy passes per sequence.'),
    sigma: nonNegative.default(0.1).describe('Standard deviation of the noise on the latent states.'),
    noiseSite: z
      .enum(['state', 'residual', 'embedding'])
      .default('state')
      .describe(
        'Where the noise is added. `state`: to the normed state of every loop; the passes then share their first loop, which saves time. `residual`: to the residual stream before that norm. `embedding`: once to the embedded tokens.',
      ),
    antithetic: z
      .boolean()
      .default(false)
      .describe(
        'Rollouts come in pairs with opposite noise, which halves the draws and cancels odd errors. Needs an even number of `rollouts`.',
      ),
    rewardFrom: z
      .enum(['rollout', 'clean'])
      .default('rollout')
      .describe(
        'Log-probability that rewards an exit: that of the noisy `rollout` itself, or of the `clean` pass without noise.',
      ),
    policyCoefficient: nonNegative.default(1).describe('Weight of the policy gradient of the exits.'),
    representationCoefficient: nonNegative
      .default(1)
      .describe("Weight of the loops' cross-entropy, where each loop counts by its exit probability and reward."),
    entropyCoefficient: nonNegative.default(0.01).describe('Weight of the entropy of the exit distribution.'),
    klCoefficient: nonNegative.default(1e-4).describe('Weight of the k3 estimate of the KL divergence to the teacher.'),
    klReduction: z
      .enum(['mean', 'weighted', 'last'])
      .default('mean')
      .describe(
        'How the KL estimates of the loops are combined: their `mean`, `weighted` by the (detached) exit distribution, or the `last` loop only.',
      ),
    teacherDecay: share
      .default(0.995)
      .describe(
        'Decay of the teacher, a moving average of the model: after every step it is decay × teacher + (1 - decay) × model. 1 freezes it.',
      ),
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
      .describe(
        'A recipe by name, an objective, a list of { until, objective } by step, or a function that returns coefficients.',
      ),
    answerOf: fn<(completion: string, columns: Record<string, unknown>) => string | null>().describe(
      'Function that extracts the answer that label-free rewards compare. Default: the content of the last box, or the whole completion.',
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
    .describe('Teacher, a model of the same configuration. Default: a copy of the model.'),
})

/** A schema, by its output and input types. */
export type OptionSchema<Config, Options> = z.ZodType<Config, Options> & { readonly shape: Readonly<Record<string, z.ZodType>> }

// The options that are plain data, as in configuration files.
export const rlttSchema: z.ZodObject = rltt
export const grpoSchema: z.ZodObject = grpo
export const objectiveTrainerSchema: z.ZodObject = z.strictObject(objectiveTrainer).superRefine(checkPolicy)
export const pretrainSchema: z.ZodObject = pretrain
export const looprptSchema: z.ZodObject = looprpt

// The same with the task, the rewards and the callbacks: all options of the trainer.
export const rlttOptions: OptionSchema<RLTTConfig, RLTTOptions> = rlttWhole
export const grpoOptions: OptionSchema<GRPOConfig, GRPOOptions> = grpoWhole
export const objectiveTrainerOptions: OptionSchema<ObjectiveTrainerConfig, ObjectiveTrainerOptions> = objectiveWhole
export const pretrainOptions: OptionSchema<PretrainConfig, PretrainOptions> = pretrainWhole
export const looprptOptions: OptionSchema<LoopRPTConfig, LoopRPTOptions> = looprptWhole

/** Checks that the types of options.ts match the schemas. A line that does not compile names the trainer that differs. */
type Agreed<Schema extends z.ZodType, Config, Options> = readonly [Same<z.output<Schema>, Config>, Same<z.input<Schema>, Options>]
const agreed: readonly [true, true] = [true, true]
agreed satisfies Agreed<typeof rlttWhole, RLTTConfig, RLTTOptions>
agreed satisfies Agreed<typeof grpoWhole, GRPOConfig, GRPOOptions>
agreed satisfies Agreed<typeof objectiveWhole, ObjectiveTrainerConfig, ObjectiveTrainerOptions>
agreed satisfies Agreed<typeof pretrainWhole, PretrainConfig, PretrainOptions>
agreed satisfies Agreed<typeof looprptWhole, LoopRPTConfig, LoopRPTOptions>

const notData = new Set(['teacher'])

/** The part of a trainer's configuration that is plain data, for files. */
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
