import { z } from 'zod'
import { LoopLM } from '../model/model.js'
import {
  type Agreed,
  agreed,
  betas,
  checkTogether,
  depth,
  learningRate,
  loopWeights,
  nonNegative,
  type OptionSchema,
  optimizer,
  positive,
  positiveInt,
  type Reader,
  refuseUnread,
  resources,
  rewards,
  run,
  share,
  sourceReaders,
  weightDecay,
} from './config-common.js'
import type { LoopRPTConfig, LoopRPTOptions, PretrainConfig, PretrainOptions } from './options.js'

/* The trainers on given tokens: one schema each, for validation and for the documentation of the options (registry.ts). */

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

export const corpora = {
  corpus: paths
    .optional()
    .describe('Files or folders of .txt, .md and .jsonl (`text` of each line), instead of a task or dataset.'),
  evalCorpus: paths.optional().describe('Held-out text for evaluations of a `corpus`.'),
}

/** What the trainers on given tokens measure besides their losses. */
const answered = {
  reward: rewards.reward.describe(
    'Reward for the answers to held-out problems in evaluations: a function, a list of { name, reward, weight }, or functions by name. Default: the reward of the task.',
  ),
}

/** The loss of pre-training. */
const pretraining = {
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
}

/** Refuses what the stage and the weights do not read. */
function checkStage(options: { stage: number; weights?: unknown; entropyCoefficient: number }, context: z.RefinementCtx): void {
  const { stage, weights = 'exit-pdf', entropyCoefficient } = options
  const ofStage1 = ['weights', 'alpha', 'entropyCoefficient', 'recompute', ...Object.keys(depth)]
  const readers: Reader[] = [
    [stage === 1, ofStage1, 'stage 1 (stage 2 trains only the exit gate, at every loop)'],
    [stage === 2 || weights === 'progressive', ['alpha'], "the weights 'progressive'"],
    [stage === 2 || weights === 'exit-pdf' || entropyCoefficient === 0, ['entropyCoefficient'], "the weights 'exit-pdf'"],
  ]
  refuseUnread({ ...pretraining, ...optimizer, ...depth }, options, readers, context)
}

const pretrain = z
  .strictObject({
    ...pretraining,
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
  .superRefine(checkStage)
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

const pretrainWhole = pretrain
  .safeExtend({ ...resources, ...corpora, ...answered })
  .superRefine((options, context) => refuseUnread(pretrain.shape, options, sourceReaders(options), context))

const looprptWhole = looprpt
  .safeExtend({
    ...resources,
    ...corpora,
    ...answered,
    teacher: z
      .custom<LoopLM>((value) => value instanceof LoopLM, 'must be a LoopLM')
      .optional()
      .describe('Teacher, a model of the same configuration. Default: a copy of the model.'),
  })
  .superRefine((options, context) => refuseUnread(looprpt.shape, options, sourceReaders(options), context))

// The options that are plain data, as in configuration files.
export const pretrainSchema: z.ZodObject = pretrain
export const looprptSchema: z.ZodObject = looprpt

// The same with the task, the rewards and the callbacks: all options of the trainer.
export const pretrainOptions: OptionSchema<PretrainConfig, PretrainOptions> = pretrainWhole
export const looprptOptions: OptionSchema<LoopRPTConfig, LoopRPTOptions> = looprptWhole

agreed satisfies Agreed<typeof pretrainWhole, PretrainConfig, PretrainOptions>
agreed satisfies Agreed<typeof looprptWhole, LoopRPTConfig, LoopRPTOptions>
