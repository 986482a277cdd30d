import { z } from 'zod'
import type { Tool } from '../chat/tools.js'
import { maxTimeout } from '../chat/within.js'
import { maxLoops } from '../model/config.js'
import { type ExitRule, exitRuleNames, readExit } from '../model/exit-rules.js'
import { checkGrammar } from '../model/request.js'
import type { GenerateOptions } from '../model/types.js'
import { alsoCalled } from '../validation/schema.js'
import {
  type Agreed,
  agreed,
  betas,
  checkTogether,
  count,
  depth,
  fn,
  learningRate,
  loopWeights,
  mostInGroup,
  natural,
  nonNegative,
  type OptionSchema,
  optimizer,
  positive,
  positiveInt,
  type Reader,
  type RunOptions,
  refuseUnread,
  resources,
  rewards,
  run,
  share,
  sourceReaders,
  weightDecay,
} from './config-common.js'
import { areTools, type Environment } from './environment.js'
import type { OwnObjective } from './objective/custom-objective.js'
import { type RecipeName, recipes } from './objective/recipes.js'
import { normalizer, objectiveSchema } from './objective/schema.js'
import type {
  GRPOConfig,
  GRPOOptions,
  ObjectiveTrainerConfig,
  ObjectiveTrainerOptions,
  RLTTConfig,
  RLTTOptions,
} from './options.js'
import type { RolloutFunction } from './rollout-function.js'

/* The trainers that sample rollouts: one schema each, for validation and for the documentation of the options (registry.ts). */

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
export const rolloutResources = {
  rollout: fn<RolloutFunction>().describe(
    'Function that makes the rollouts of a step. Default: the model completes the prompts.',
  ),
  environment: fn<Environment>().describe(
    'Function that makes an episode for a problem, with turns, tools and rewards. Rollouts are then episodes.',
  ),
  tools: z
    .custom<readonly Tool[]>(areTools, 'must be a list of tools, as defineTool makes them')
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

/** What the trainers here have in common. */
const policy = {
  learningRate: learningRate(1e-6),
  weightDecay: weightDecay(0),
  adamBetas: betas(0.999),
  ...run,
  ...optimizer,
  ...depth,
  ...rollouts,
  ...episodes,
}

/** {@link checkTogether} for the trainers that sample. */
function checkPolicy(
  options: RunOptions & {
    exitThreshold?: number | undefined
    exit?: unknown
    readLoops?: readonly number[] | undefined
    environment?: unknown
  },
  context: z.RefinementCtx,
): void {
  checkTogether(options, context)
  const ofEpisodes: Reader = [options.environment !== undefined, ['tools', ...Object.keys(episodes)], 'an environment']
  refuseUnread(episodes, options, [ofEpisodes], context)
  if (options.exitThreshold !== undefined && options.exit !== undefined) {
    const message = 'exitThreshold already sets an exit rule, gate, whose exits are trained; omit exit or exitThreshold'
    context.addIssue({ code: 'custom', path: ['exit'], message })
  }
  if (options.exitThreshold !== undefined && options.readLoops !== undefined) {
    const message = 'rollouts with exitThreshold may exit at any loop; omit readLoops or exitThreshold'
    context.addIssue({ code: 'custom', path: ['readLoops'], message })
  }
}

/** Checks that rollouts have only one source, and that something reads what belongs to it. */
function checkRolloutResources(
  options: Parameters<typeof sourceReaders>[0] & { rollout?: unknown; environment?: unknown },
  context: z.RefinementCtx,
): void {
  refuseUnread({}, options, sourceReaders(options), context)
  if (options.rollout === undefined || options.environment === undefined) return
  context.addIssue({ code: 'custom', path: ['rollout'], message: 'give a rollout function or an environment, not both' })
}

const rlttOwn = {
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
}

/** {@link checkPolicy} for RLTT and GRPO. */
function checkClassic(
  options: Parameters<typeof checkPolicy>[0] & {
    surrogate: string
    weights: unknown
    normalizer: string
    advantage: { source: string; discount: number }
  },
  context: z.RefinementCtx,
): void {
  checkPolicy(options, context)
  const { surrogate, weights, normalizer, advantage } = options
  const readers: Reader[] = [
    [surrogate === 'ppo', ['epsilon', 'epsilonHigh', 'dualClip'], "the surrogate 'ppo' (the bound of 'cispo' is cap)"],
    [surrogate === 'cispo', ['cap'], "the surrogate 'cispo'"],
    [weights === 'progressive', ['alpha'], "the weights 'progressive'"],
    [weights === 'exit-pdf', ['detachWeights'], "the weights 'exit-pdf'"],
    [normalizer === 'constant', ['constantNormalizerLength'], "the normalizer 'constant'"],
  ]
  refuseUnread({ ...policy, ...objective, ...rlttOwn }, options, readers, context)
  if (advantage.source === 'turn' || advantage.discount === 1) return
  const message = "needs the source 'turn'; set it, or omit discount"
  context.addIssue({ code: 'custom', path: ['advantage', 'discount'], message })
}

const rltt = z
  .strictObject({
    ...rlttOwn,
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
  ...policy,
}

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

// The options that are plain data, as in configuration files.
export const rlttSchema: z.ZodObject = rltt
export const grpoSchema: z.ZodObject = grpo
export const objectiveTrainerSchema: z.ZodObject = z.strictObject(objectiveTrainer).superRefine(checkPolicy)

// The same with the task, the rewards and the callbacks: all options of the trainer.
export const rlttOptions: OptionSchema<RLTTConfig, RLTTOptions> = rlttWhole
export const grpoOptions: OptionSchema<GRPOConfig, GRPOOptions> = grpoWhole
export const objectiveTrainerOptions: OptionSchema<ObjectiveTrainerConfig, ObjectiveTrainerOptions> = objectiveWhole

agreed satisfies Agreed<typeof rlttWhole, RLTTConfig, RLTTOptions>
agreed satisfies Agreed<typeof grpoWhole, GRPOConfig, GRPOOptions>
agreed satisfies Agreed<typeof objectiveWhole, ObjectiveTrainerConfig, ObjectiveTrainerOptions>
