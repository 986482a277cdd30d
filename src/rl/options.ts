// The types of all trainer options. The schemas in config-*.ts check them at run time, and the compiler checks that both agree.
// test/rl/trainer-config.test.ts compares the comments with the descriptions of the schemas.

import type { Tool } from '../chat/tools.js'
import type { ChatSettings } from '../data/chat-format.js'
import type { Tokenizer } from '../data/tokenizer.js'
import type { LoRAModule } from '../model/adapter.js'
import type { ExitRule } from '../model/exit-rules.js'
import type { LoopLM } from '../model/model.js'
import type { BackwardLoops, GenerateOptions, LoopWeights, Recompute, Surrogate } from '../model/types.js'
import type { Logger } from '../monitor/logger.js'
import type { LoggerName } from '../monitor/loggers/built-in.js'
import type { RewardFunction, WeightedReward } from '../tasks/rewards.js'
import type { Task } from '../tasks/task.js'
import type { TrainerCallbacks } from './callbacks.js'
import type { DatasetSource } from './dataset-rows.js'
import type { Environment } from './environment.js'
import type { OwnObjective } from './objective/custom-objective.js'
import type { RecipeName } from './objective/recipes.js'
import type { Normalizer, Objective, ObjectiveInput } from './objective/schema.js'
import type { RolloutFunction } from './rollout-function.js'

/** A reward function, a list with names and weights, or functions by name. */
export type Rewards = RewardFunction | readonly WeightedReward[] | Readonly<Record<string, RewardFunction>>

/** The run: its length, its seed, what is saved and evaluated. */
export interface RunConfig {
  /**
   * Number of steps of `run`. A step samples rollouts, or takes a batch of sequences, and makes its optimizer updates. Default
   * `100`.
   */
  steps: number
  /** Passes over the rows of a dataset or the packed sequences of a corpus, instead of `steps`. Fractions are allowed. */
  epochs?: number | undefined
  /** Seed of prompts, sampling and shuffling. The same seed and number of threads give the same bits. Default `0`. */
  seed: number
  /** Steps between evaluations during `run`; 0 turns them off. Default `0`. */
  evalEvery: number
  /**
   * With `evalEvery`, also evaluate before the first step (step 0). This evaluation counts for `metricForBestModel`. Default
   * `true`.
   */
  evalOnStart: boolean
  /** Held-out problems, or packed sequences of text, per evaluation. Default `256`. */
  evalProblems: number
  /** Loop counts to evaluate. Default: 1 to the loops of the model. */
  evalLoops?: number[] | undefined
  /**
   * Answers per problem of an evaluation. More than 1 also measures pass@k, and rewards are means over the answers (avg@k).
   * Default `1`.
   */
  evalSamples: number
  /** Sampling temperature of evaluations; 0 is greedy. Default: 0 with one answer per problem, 1 with several. */
  evalTemperature?: number | undefined
  /** Most tokens of an answer in an evaluation. Default: `maxNewTokens`, else the limit of the task, or 256 for a dataset. */
  evalMaxNewTokens?: number | undefined
  /** Steps between checkpoints; 0 saves only when the run ends. Needs `runDir`. Default `0`. */
  saveEvery: number
  /** How many of the newest checkpoints to keep. Default `3`. */
  keepCheckpoints: number
  /** Evaluation metric that decides which checkpoint is best, for example `eval/loop_4/reward`. */
  metricForBestModel?: string | undefined
  /** Whether a larger `metricForBestModel` is better. Default: true, unless its name ends in `loss`. */
  greaterIsBetter?: boolean | undefined
  /** How many of the best checkpoints to keep, in addition to the newest ones. Default: 1 with `metricForBestModel`. */
  saveBest?: number | undefined
  /** Load the parameters of the best checkpoint when the run is complete. Needs `runDir`. Default `false`. */
  loadBestModelAtEnd: boolean
  /** Stop the run after this many evaluations in a row without a better `metricForBestModel`. */
  earlyStoppingPatience?: number | undefined
  /** Smallest improvement of `metricForBestModel` that counts as better for `earlyStoppingPatience`. Default `0`. */
  earlyStoppingThreshold: number
  /**
   * How to render conversations: `template` (Jinja, or a .jinja file) instead of the tokenizer's, `tools` to show, a `system`
   * message for conversations without one. With `wrapPrompts: true` a string prompt becomes a user message. Every other field
   * is a variable of the template, for example `enable_thinking: false`.
   */
  chatTemplate?: ChatSettings | undefined
}

/** A low-rank adapter that is trained instead of the model. */
export interface LoRAConfig {
  /** Rank of the adapter's matrices. Default `16`. */
  rank: number
  /** The adapter is scaled by alpha / rank. Default `32`. */
  alpha: number
  /** Must be 0: dropout is not supported. Default `0`. */
  dropout: 0
  /** Projections of every layer that get an adapter, by the last part of their names, for example `q_proj`. Default: all. */
  targetModules?: LoRAModule[] | undefined
  /**
   * Train a separate adapter for every loop. The adapter has that many times the parameters and cannot be merged into the model.
   * Default `false`.
   */
  perLoop: boolean
  /**
   * Rank of matrices through which the MLP also sees the previous token (Shift-FFN, arXiv 2505.17153); 0 turns it off. Default
   * `0`.
   */
  shiftRank: number
}

/** The optimizer: AdamW, its schedule and its memory. */
export interface OptimizerConfig {
  /** Learning rate schedule after the warm-up. Default `"constant"`. */
  schedule: 'constant' | 'linear' | 'cosine'
  /** Steps of linear warm-up. */
  warmupSteps?: number | undefined
  /** Warm-up as a share of `steps`. Cannot be combined with `warmupSteps`. */
  warmupRatio?: number | undefined
  /** Learning rate at the end of `linear` and `cosine`. Default `0`. */
  minLearningRate: number
  /** Epsilon of AdamW, added to the square root of the second moment. Default `1e-8`. */
  adamEps: number
  /** Gradients with a larger global norm are scaled down to this norm; 0 turns clipping off. Default `1`. */
  maxGradNorm: number
  /**
   * Recompute activations in the backward pass, by `loop` or by `layer`, instead of storing them. Needs less memory and more
   * time; the numbers are the same. Default `"none"`.
   */
  recompute: Recompute
  /** Tokens per forward and backward pass; 0 chooses it from the size of the model. Does not change the loss. Default `0`. */
  tokensPerMicroBatch: number
  /**
   * Train a low-rank adapter (LoRA) and leave the model unchanged. `dropout` must be 0. Checkpoints then hold the adapter, in the
   * format of PEFT.
   */
  lora?: LoRAConfig | undefined
  /** Peak learning rate. */
  learningRate: number
  /** Decoupled weight decay of matrices. */
  weightDecay: number
  /** Decay rates of the two moments of AdamW. */
  adamBetas: [number, number]
}

/** Which loops are trained, and their initial states. */
export interface LoopConfig {
  /** Loops per token, in rollouts and in training. Default: those of the model. Nanbeige and HRM-Text allow no more. */
  loops?: number | undefined
  /** Loops whose predictions enter the loss, in ascending order. Loops after the last of them do not run. Default: all. */
  readLoops?: number[] | undefined
  /**
   * Backpropagate through this many of the last loops; earlier loops store no activations. `published`: as the model family was
   * trained. Default: all.
   */
  backwardLoops?: BackwardLoops | undefined
  /**
   * Initial state of families whose loops start from a random one: `drawn` from `stateSeed` and the tokens, or `zeros`. Default
   * `"drawn"`.
   */
  initialState: 'drawn' | 'zeros'
  /** Seed of drawn initial states. Default `0`. */
  stateSeed: number
}

/** Options that are not plain data, and therefore not part of a configuration file. */
export interface Resources {
  /** Folder for checkpoints, metrics and completions. Nothing is written without it. */
  runDir?: string | undefined
  /**
   * `true` continues from the newest checkpoint of `runDir`, or starts anew if there is none. A string continues from the
   * checkpoint at this path. Default `false`.
   */
  resume: boolean | string
  /** Source of prompts, tokenizer, reward and held-out problems. */
  task?: Task | undefined
  /**
   * Rows with a `prompt` (a string or messages), instead of a task. `pretrain` and `looprpt` also learn rows of `messages` or
   * `text`. An array, a `DatasetStream`, a path, `hub:org/name`, or `{ path, … }` with the options of `loadDataset` and
   * `shuffleBuffer`.
   */
  dataset?: DatasetSource | undefined
  /** Held-out rows for evaluations of a `dataset`. */
  evalDataset?: DatasetSource | undefined
  /** More tasks whose held-out problems are answered at each evaluation. The keys name their metrics. */
  evalTasks?: Record<string, Task> | undefined
  /** Tokenizer of a `dataset` or a `corpus`. Default: that of the model. A `task` has its own. */
  tokenizer?: Tokenizer | undefined
  /** Functions that the run calls: `onRunBegin`, `onRollouts`, `onStep`, `onEvaluate`, `onLog`, `onSave`, `onRunEnd`. */
  callbacks?: TrainerCallbacks | undefined
  /**
   * Loggers that record the run, called in this order: built-in ones by name, and your own. Default: `jsonl`, `tensorboard` and
   * `report` if `runDir` is set. An empty list records nothing.
   */
  loggers?: readonly (LoggerName | Logger)[] | undefined
  /** Function that receives warnings. Default: `process.emitWarning`. */
  onWarning?: ((message: string) => void) | undefined
}

/** Options that all trainers share. */
export interface TrainerConfig extends RunConfig, OptimizerConfig, Resources {}

/** Rollouts and advantages. */
export interface RolloutConfig extends LoopConfig {
  /** Prompts per generation call. A dataset with fewer rows is repeated. Default `32`. */
  promptsPerStep: number
  /** Completions per prompt; advantages are relative to this group. Default `8`. */
  groupSize: number
  /**
   * Generation calls per step. Their rollouts form one batch of `promptsPerStep` × `gradientAccumulation` prompts. Default `1`.
   */
  gradientAccumulation: number
  /**
   * Passes over the rollouts of a step. More than 1 needs a surrogate with an importance ratio, such as `ppo` or `cispo`. Default
   * `1`.
   */
  updatesPerRollout: number
  /** Parts that each pass is split into, without splitting groups. Every part is one optimizer step. Default `1`. */
  minibatches: number
  /** Most tokens of a completion. Default: the limit of the task, or 256 for a dataset. */
  maxNewTokens?: number | undefined
  /** Sampling temperature. All log-probabilities use it as well. Default `1`. */
  temperature: number
  /**
   * Sample from the k most likely tokens; 0 allows all. Log-probabilities are still those of the full vocabulary. Default `0`.
   */
  topK: number
  /** Sample from the smallest set of most likely tokens that together have this probability (nucleus sampling). Default `1`. */
  topP: number
  /** Sample from tokens with at least this share of the largest probability; 0 allows all. Default `0`. */
  minP: number
  /**
   * Penalty of tokens that occurred before, in prompt or completion: positive logits are divided by it, negative ones
   * multiplied. 1 turns it off. Default `1`.
   */
  repetitionPenalty: number
  /** Subtracted from the logit of a token for each time that it was sampled before; 0 turns it off. Default `0`. */
  frequencyPenalty: number
  /** Subtracted once from the logit of each token that was sampled before; 0 turns it off. Default `0`. */
  presencePenalty: number
  /** Added to the logits of these token ids, for example `{ 13: -2 }`. */
  logitBias?: Record<string, number> | undefined
  /** Token ids that are never sampled. */
  bannedTokens?: number[] | undefined
  /** Token ids or strings that end a completion, in place of the end tokens of the task or the model. */
  stop?: (number | string)[] | undefined
  /**
   * Grammar that completions, or turns of episodes, must follow, also in evaluations. Log-probabilities are still those of the
   * full vocabulary.
   */
  grammar?: GenerateOptions['grammar'] | undefined
  /**
   * Early-exit rule of rollouts. Training and its log-probabilities still use full depth. To train at the exits, use the recipe
   * `exit-sampled` instead. Default: no early exit.
   */
  exit?: ExitRule | undefined
  /**
   * `wavefront` computes several positions of a rollout at once where that saves time. Does not change the rollouts. Default
   * `"off"`.
   */
  speculate: 'wavefront' | 'off'
  /** Skip sequences whose advantage is 0, such as groups with equal rewards. Does not change the loss. Default `true`. */
  skipFlatGroups: boolean
  /** Most calls of one reward function that run at the same time. Default `64`. */
  rewardConcurrency: number
  /** Seconds that a reward may take before the run fails; 0 sets no limit. Default `0`. */
  rewardTimeout: number
  /**
   * Tokens that the normalizer `constant` divides by. Default: `maxNewTokens`; where that is not set, `update` uses the longest
   * response of its batch.
   */
  constantNormalizerLength?: number | undefined
  /** Completions per step to write to completions.jsonl in `runDir`. Default `4`. */
  logCompletions: number
  /** Steps between checks that sampling and training give the same log-probabilities; 0 turns them off. Default `10`. */
  logprobCheckEvery: number
  /**
   * Replaces the reward of the task: a function, a list of { name, reward, weight }, or functions by name. Several rewards are
   * added.
   */
  reward?: Rewards | undefined
}

/** Options of the episodes of an `environment`. */
export interface EpisodeConfig {
  /** Most turns of the model in an episode. Default `8`. */
  maxTurns: number
  /**
   * Branch an episode once, at a turn whose first tokens have a mean entropy of at least `entropy` nats (ARPO). `width` episodes
   * of the group then share the turns before it. Default: no branches.
   */
  branch?:
    | {
        /** Least mean entropy of the first tokens of a turn, in nats. */
        entropy: number
        /** Episodes that continue from the branch. */
        width: number
      }
    | undefined
  /** Most tokens of an episode, prompt included. Default: `max_position_embeddings` of the model. */
  maxEpisodeTokens?: number | undefined
  /** Most tool calls that run at the same time. Default `16`. */
  toolConcurrency: number
  /** Seconds that a tool call may take before the model gets an error message instead; 0 sets no limit. Default `30`. */
  toolTimeout: number
  /** Seconds that an environment may take before the run fails; 0 sets no limit. Default `300`. */
  environmentTimeout: number
  /**
   * For chat templates that rewrite earlier turns: encode the conversation again, and train only the turns after the last
   * rewrite. Default `false`.
   */
  reencode: boolean
}

/** Options that replace single-turn rollouts. They are not plain data. */
export interface RolloutResources {
  /** Function that makes the rollouts of a step. Default: the model completes the prompts. */
  rollout?: RolloutFunction | undefined
  /** Function that makes an episode for a problem, with turns, tools and rewards. Rollouts are then episodes. */
  environment?: Environment | undefined
  /** Tools that every episode offers. */
  tools?: readonly Tool[] | undefined
}

/** Options that all policy-gradient trainers share. Trainers without the last three options leave them undefined. */
export interface PolicyConfig extends TrainerConfig, RolloutConfig, EpisodeConfig, RolloutResources {
  /**
   * Tokens of rollouts exit at the first loop whose cumulative exit probability reaches this. Terms of channel `exit` train these
   * exits. Default: full depth.
   */
  exitThreshold?: number | undefined
  /** Start token that replaces the prompt in terms of the marginal space. Default: `bos_token_id` of the model, else 0. */
  marginalToken?: number | undefined
  /**
   * Function that extracts the answer that label-free rewards compare. Default: the content of the last box, or the whole
   * completion.
   */
  answerOf?: ((completion: string, columns: Record<string, unknown>) => string | null) | undefined
}

/** Where the advantages of `RLTTTrainer` and `GRPOTrainer` come from. */
export interface AdvantageConfig {
  /** `reward`: one per sequence, from its reward. `turn`: one per turn, from the rewards of the turns. Default `"reward"`. */
  source: 'reward' | 'turn'
  /** Factor per turn: the reward of the turn k turns later is multiplied by discount^k. Default `1`. */
  discount: number
}

/** The objective of math.md §2–§4, as options of RLTT and GRPO. */
export interface ClassicObjectiveConfig {
  /**
   * `reward`: one advantage per sequence, from its reward. `turn`: one per turn of an episode, from its reward and those of
   * later turns, discounted by `discount` per turn. Default `{"source":"reward","discount":1}`.
   */
  advantage: AdvantageConfig
  /** Whether advantages are divided by the standard deviation of the `group`. Default `"group"`. */
  scaleRewards: 'group' | 'none'
  /** Weight of the KL divergence to the frozen starting model, estimated by k3 at the last loop. Default `0`. */
  beta: number
  /**
   * How the losses of tokens are averaged. `response-mean`: over the tokens of each response, then over responses. `token-mean`:
   * over all tokens. `constant`: divided by `constantNormalizerLength`. Default `"response-mean"`.
   */
  normalizer: Normalizer
  /** `ppo`: ratios below 1 - epsilon are clipped. Default `0.2`. */
  epsilon: number
  /** `ppo`: ratios above 1 + epsilonHigh are clipped. Default: `epsilon`. */
  epsilonHigh?: number | undefined
  /** `ppo`: upper bound of the ratio where the advantage is negative. Default: none. */
  dualClip?: number | undefined
  /** `cispo`: largest ratio. Default: 5. */
  cap?: number | undefined
}

/** Checked options of `RLTTTrainer`. */
export interface RLTTConfig extends TrainerConfig, RolloutConfig, EpisodeConfig, RolloutResources, ClassicObjectiveConfig {
  /**
   * Weights of the loops in the loss: `exit-pdf` (their exit probabilities), `uniform`, `progressive` (t^alpha for loop t),
   * `last`, or one number per loop that is read. Default `"exit-pdf"`.
   */
  weights: LoopWeights | number[]
  /** Exponent of `progressive`. Default `1`. */
  alpha: number
  /**
   * Stop the gradient at `exit-pdf` weights. `false` also trains the gate, and needs the surrogate `reinforce`. Default `true`.
   */
  detachWeights: boolean
  /** Loss of a token. `reinforce` has no importance ratio: make one optimizer step per rollout with it. Default `"reinforce"`. */
  surrogate: Surrogate
  /** Peak learning rate. Default `0.000001`. */
  learningRate: number
  /** Decoupled weight decay of matrices. Default `0`. */
  weightDecay: number
  /** Decay rates of the two moments of AdamW. Default `[0.9,0.999]`. */
  adamBetas: [number, number]
}

/** Checked options of `GRPOTrainer`. */
export interface GRPOConfig extends TrainerConfig, RolloutConfig, EpisodeConfig, RolloutResources, ClassicObjectiveConfig {
  /** GRPO trains the last loop. Default `"last"`. */
  weights: 'last'
  /** Loss of a token. `ppo` clips the ratio to the policy that sampled the rollout. Default `"ppo"`. */
  surrogate: Surrogate
  /** Peak learning rate. Default `0.000001`. */
  learningRate: number
  /** Decoupled weight decay of matrices. Default `0`. */
  weightDecay: number
  /** Decay rates of the two moments of AdamW. Default `[0.9,0.999]`. */
  adamBetas: [number, number]
}

/** Checked options of a trainer whose objective follows from its options. */
export type ClassicConfig = RLTTConfig | GRPOConfig

/** Checked options of `ObjectiveTrainer`. */
export interface ObjectiveTrainerConfig extends PolicyConfig {
  /**
   * A recipe by name, an objective, a list of { until, objective } by step, or a function that returns coefficients. Default
   * `"rltt"`.
   */
  objective: ObjectiveOption<Objective>
  /** Peak learning rate. Default `0.000001`. */
  learningRate: number
  /** Decoupled weight decay of matrices. Default `0`. */
  weightDecay: number
  /** Decay rates of the two moments of AdamW. Default `[0.9,0.999]`. */
  adamBetas: [number, number]
}

/** A recipe, an objective of the algebra, a list of them by step, or a function that returns coefficients. */
type ObjectiveOption<Algebra> =
  | RecipeName
  | Algebra
  | readonly {
      /** The first step after the phase. Absent: to the end of the run. */
      until?: number | undefined
      /** A recipe by name, or an objective of the algebra. */
      objective: RecipeName | Algebra
    }[]
  | OwnObjective

/** Options that the trainers on given tokens share. */
export interface SequenceConfig extends TrainerConfig {
  /** Sequences per step. Default `32`. */
  batchSize: number
  /** Tokens per packed sequence of a `corpus`. Default `1024`. */
  contextLength: number
  /** Share of a `corpus` that is held out for evaluations. Not used with `evalCorpus`. Default `0.05`. */
  heldOutShare: number
  /** Files or folders of .txt, .md and .jsonl (`text` of each line), instead of a task or dataset. */
  corpus?: string | string[] | undefined
  /** Held-out text for evaluations of a `corpus`. */
  evalCorpus?: string | string[] | undefined
  /**
   * Reward for the answers to held-out problems in evaluations: a function, a list of { name, reward, weight }, or functions by
   * name. Default: the reward of the task.
   */
  reward?: Rewards | undefined
}

/** Checked options of `PretrainTrainer`. */
export interface PretrainConfig extends SequenceConfig, LoopConfig {
  /**
   * Learn every assistant message of a conversation, not only the last one. The template marks them with `{% generation %}`;
   * without marks, each message is the text that it adds. Default `false`.
   */
  assistantOnly: boolean
  /**
   * `1` (Stage I) trains all parameters on the expected cross-entropy over the exits. `2` (Stage II) trains only the exit gate,
   * to continue while another loop helps. Default `1`.
   */
  stage: 1 | 2
  /**
   * Stage I: weights of the loops in the loss. `exit-pdf` also trains the gate. Default: `exit-pdf` for models with an exit
   * gate, else `last`.
   */
  weights?: LoopWeights | number[] | undefined
  /** Exponent of `progressive`. Default `1`. */
  alpha: number
  /**
   * Weight of the entropy of the exit distribution, which keeps the gate from collapsing. Used only with `exit-pdf` weights.
   * Default `0.1`.
   */
  entropyCoefficient: number
  /** Peak learning rate. Default `0.0003`. */
  learningRate: number
  /** Decoupled weight decay of matrices. Default `0.1`. */
  weightDecay: number
  /** Decay rates of the two moments of AdamW. Default `[0.9,0.95]`. */
  adamBetas: [number, number]
}

/** Checked options of `LoopRPTTrainer`. */
export interface LoopRPTConfig extends SequenceConfig {
  /** Share of the predictions of each sequence that are trained: those with the highest teacher entropy. Default `0.2`. */
  rho: number
  /**
   * The reference loop of a token is the first one where the teacher's cumulative exit probability reaches this. Default `0.5`.
   */
  tau: number
  /** Cost of a loop, in nats. Default `0.02`. */
  lambdaBase: number
  /** How much more a loop costs where the teacher is certain. Default `0.5`. */
  lambdaScale: number
  /** Noisy passes per sequence. Default `8`. */
  rollouts: number
  /** Standard deviation of the noise on the latent states. Default `0.1`. */
  sigma: number
  /**
   * Where the noise is added. `state`: to the normed state of every loop; the passes then share their first loop, which saves
   * time. `residual`: to the residual stream before that norm. `embedding`: once to the embedded tokens. Default `"state"`.
   */
  noiseSite: 'state' | 'residual' | 'embedding'
  /**
   * Rollouts come in pairs with opposite noise, which halves the draws and cancels odd errors. Needs an even number of
   * `rollouts`. Default `false`.
   */
  antithetic: boolean
  /**
   * Log-probability that rewards an exit: that of the noisy `rollout` itself, or of the `clean` pass without noise. Default
   * `"rollout"`.
   */
  rewardFrom: 'rollout' | 'clean'
  /** Weight of the policy gradient of the exits. Default `1`. */
  policyCoefficient: number
  /** Weight of the loops' cross-entropy, where each loop counts by its exit probability and reward. Default `1`. */
  representationCoefficient: number
  /** Weight of the entropy of the exit distribution. Default `0.01`. */
  entropyCoefficient: number
  /** Weight of the k3 estimate of the KL divergence to the teacher. Default `0.0001`. */
  klCoefficient: number
  /**
   * How the KL estimates of the loops are combined: their `mean`, `weighted` by the (detached) exit distribution, or the `last`
   * loop only. Default `"mean"`.
   */
  klReduction: 'mean' | 'weighted' | 'last'
  /**
   * Decay of the teacher, a moving average of the model: after every step it is decay × teacher + (1 - decay) × model. 1 freezes
   * it. Default `0.995`.
   */
  teacherDecay: number
  /** Teacher, a model of the same configuration. Default: a copy of the model. */
  teacher?: LoopLM | undefined
  /** Peak learning rate. Default `0.000005`. */
  learningRate: number
  /** Decoupled weight decay of matrices. Default `0.01`. */
  weightDecay: number
  /** Decay rates of the two moments of AdamW. Default `[0.9,0.999]`. */
  adamBetas: [number, number]
}

/** A configuration in the form that callers write. Every field is optional, as are those of `lora` and `advantage`. */
type Options<Config extends TrainerConfig> = {
  [Key in keyof Config]?: Key extends 'lora'
    ? { [Field in keyof LoRAConfig]?: LoRAConfig[Field] | undefined } | undefined
    : Key extends 'advantage'
      ? { [Field in keyof AdvantageConfig]?: AdvantageConfig[Field] | undefined } | undefined
      : Config[Key] | undefined
}

/** Options of `RLTTTrainer`; `looplm options rltt` lists them with their defaults. */
export interface RLTTOptions extends Options<RLTTConfig> {}
/** Options of `GRPOTrainer`; `looplm options grpo` lists them with their defaults. */
export interface GRPOOptions extends Options<GRPOConfig> {}
/** Options of `ObjectiveTrainer`; `looplm options objective` lists them with their defaults. */
export interface ObjectiveTrainerOptions extends Options<Omit<ObjectiveTrainerConfig, 'objective'>> {
  /**
   * A recipe by name, an objective, a list of { until, objective } by step, or a function that returns coefficients. Default
   * `"rltt"`.
   */
  objective?: ObjectiveOption<ObjectiveInput> | undefined
}
/** Options of `PretrainTrainer`; `looplm options pretrain` lists them with their defaults. */
export interface PretrainOptions extends Options<PretrainConfig> {}
/** Options of `LoopRPTTrainer`; `looplm options looprpt` lists them with their defaults. */
export interface LoopRPTOptions extends Options<LoopRPTConfig> {}
