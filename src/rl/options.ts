// The options of every trainer as types. The schemas in config.ts check them at run time, and the compiler that both agree;
// test/rl/trainer-config.test.ts holds the comments against the descriptions of the schemas.

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

/** A reward function, several with names and weights, or several by name. */
export type Rewards = RewardFunction | readonly WeightedReward[] | Readonly<Record<string, RewardFunction>>

/** The run: how long, which seed, what is saved and evaluated. */
export interface RunConfig {
  /** Steps of `run`. A step is one rollout (or one pre-training batch) with its optimizer steps. Default `100`. */
  steps: number
  /**
   * Passes over the rows of a dataset or the packed sequences of a corpus, in place of `steps`; a part of one is possible.
   */
  epochs?: number | undefined
  /** Seed of prompts, sampling and shuffling. Same seed and threads: same bits. Default `0`. */
  seed: number
  /** Steps between evaluations during `run`; 0: none. Default `0`. */
  evalEvery: number
  /** With `evalEvery`, also evaluate before the first step (step 0). It counts for `metricForBestModel` too. Default `true`. */
  evalOnStart: boolean
  /** Held-out problems, or packed sequences of text, per evaluation. Default `256`. */
  evalProblems: number
  /** Loop counts that are evaluated; default 1 to the number of loops of the model. */
  evalLoops?: number[] | undefined
  /** Answers to each problem of an evaluation: more than 1 measure pass@k and the mean over them (avg@k). Default `1`. */
  evalSamples: number
  /**
   * Temperature of the answers of an evaluation; 0: greedy. Default 0 for one answer to each problem, 1 for several.
   */
  evalTemperature?: number | undefined
  /**
   * Longest answer of an evaluation in tokens; default `maxNewTokens`, else what the task says, 256 for a dataset.
   */
  evalMaxNewTokens?: number | undefined
  /** Steps between checkpoints; 0: only when the run ends. Needs `runDir`. Default `0`. */
  saveEvery: number
  /** How many of the newest checkpoints are kept. Default `3`. */
  keepCheckpoints: number
  /** Metric of the evaluations that says which checkpoint is best, for example `eval/loop_4/reward`. */
  metricForBestModel?: string | undefined
  /** Whether more of `metricForBestModel` is better; default yes, unless its name ends in `loss`. */
  greaterIsBetter?: boolean | undefined
  /** How many of the best checkpoints are written and kept beside the newest; default 1 with `metricForBestModel`. */
  saveBest?: number | undefined
  /** When the run ends by itself, the model gets the parameters of the best checkpoint. Needs `runDir`. Default `false`. */
  loadBestModelAtEnd: boolean
  /** The run ends after this many evaluations in a row in which `metricForBestModel` was no better than before. */
  earlyStoppingPatience?: number | undefined
  /** By how much an evaluation must beat the best one before to count as better for `earlyStoppingPatience`. Default `0`. */
  earlyStoppingThreshold: number
  /**
   * How to render conversations: `template` (Jinja, or a .jinja file) instead of the tokenizer's, `tools` to show, a `system`
   * message for conversations without one. With `wrapPrompts: true` a string prompt becomes a user message. Every other field
   * is a variable of the template, for example `enable_thinking: false`.
   */
  chatTemplate?: ChatSettings | undefined
}

/** A low-rank adapter that is trained in place of the model. */
export interface LoRAConfig {
  /** Inner dimension of the adapter. Default `16`. */
  rank: number
  /** The adapter counts alpha / rank times. Default `32`. */
  alpha: number
  /** There is none. Default `0`. */
  dropout: 0
  /** Projections of every layer that get one, by the last part of their names; default all of them. */
  targetModules?: LoRAModule[] | undefined
  /** A separate adapter for every loop: as many times the parameters. It cannot be merged into the model. Default `false`. */
  perLoop: boolean
  /** The MLP also sees the token before (Shift-FFN, arXiv 2505.17153), by matrices of this inner dimension; 0: not. Default `0`. */
  shiftRank: number
}

/** The optimizer: AdamW, its schedule and its memory. */
export interface OptimizerConfig {
  /** Course of the learning rate after the warm-up. Default `"constant"`. */
  schedule: 'constant' | 'linear' | 'cosine'
  /** Steps of linear warm-up. */
  warmupSteps?: number | undefined
  /** Warm-up as a share of `steps`; not together with `warmupSteps`. */
  warmupRatio?: number | undefined
  /** Where `linear` and `cosine` end. Default `0`. */
  minLearningRate: number
  /** Added to the square root in AdamW. Default `1e-8`. */
  adamEps: number
  /** Gradients are scaled down to this global norm; 0: never. Default `1`. */
  maxGradNorm: number
  /** Activations that the backward pass computes again instead of keeping them. Less memory, same numbers. Default `"none"`. */
  recompute: Recompute
  /** Tokens per pass through the engine; 0: chosen from the size of the model. Never changes the loss. Default `0`. */
  tokensPerMicroBatch: number
  /**
   * Trains a low-rank adapter in place of the model, which stays as it is; checkpoints are those of the adapter, in the
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

/** Which loops are trained, and how they begin. */
export interface LoopConfig {
  /**
   * Loops of rollouts and of training; default those of the model. Nanbeige and HRM-Text refuse more than the model has.
   */
  loops?: number | undefined
  /**
   * Loops, in growing order, that are read and weighted; nothing runs behind the last one. Default all.
   */
  readLoops?: number[] | undefined
  /**
   * Only the last so many loops carry gradient, and the others keep nothing for it; `published`: as the family was trained.
   * Default all.
   */
  backwardLoops?: BackwardLoops | undefined
  /**
   * First state of the loops of families that begin with a random one: drawn from `stateSeed` and the tokens, or zeros.
   * Default `"drawn"`.
   */
  initialState: 'drawn' | 'zeros'
  /** Seed of first states. Default `0`. */
  stateSeed: number
}

/** What is not plain data, and therefore not part of a configuration file. */
export interface Resources {
  /** Folder of checkpoints, metrics and completions; without it nothing is written. */
  runDir?: string | undefined
  /**
   * Continue from the newest checkpoint of `runDir` (from the start where there is none), or from the checkpoint at this
   * path. Default `false`.
   */
  resume: boolean | string
  /** Source of prompts, tokenizer, reward and held-out problems. */
  task?: Task | undefined
  /**
   * Rows with a `prompt`, a text or messages, instead of a task; `pretrain` and `looprpt` also learn rows of `messages` or
   * `text`. An array, a `DatasetStream`, a path, `hub:org/name`, or `{ path, … }` with the options of `loadDataset` and
   * `shuffleBuffer`.
   */
  dataset?: DatasetSource | undefined
  /** Held-out rows for evaluations of a `dataset`. */
  evalDataset?: DatasetSource | undefined
  /** Further tasks whose held-out problems are answered at each evaluation, by the name that their metrics get. */
  evalTasks?: Record<string, Task> | undefined
  /** Tokenizer of a `dataset`; default the one of the model. */
  tokenizer?: Tokenizer | undefined
  /** Functions that the run calls: `onRunBegin`, `onRollouts`, `onStep`, `onEvaluate`, `onLog`, `onSave`, `onRunEnd`. */
  callbacks?: TrainerCallbacks | undefined
  /**
   * What records the run, in this order: built-in loggers by name, and your own loggers. Default all built-in ones
   * (`jsonl`, `tensorboard`, `report`) where there is a `runDir`; an empty list records nothing.
   */
  loggers?: readonly (LoggerName | Logger)[] | undefined
  /** Receives warnings; default `process.emitWarning`. */
  onWarning?: ((message: string) => void) | undefined
}

/** What all trainers have in common. */
export interface TrainerConfig extends RunConfig, OptimizerConfig, Resources {}

/** Rollouts and advantages. */
export interface RolloutConfig extends LoopConfig {
  /** Different prompts per generation call. Default `32`. */
  promptsPerStep: number
  /** Completions per prompt; advantages are relative to this group. Default `8`. */
  groupSize: number
  /** Generation calls whose rollouts make one logical batch: prompts per step are `promptsPerStep` times this. Default `1`. */
  gradientAccumulation: number
  /** Passes over the rollouts of a step. More than 1 wants the surrogate `ppo` or `cispo`. Default `1`. */
  updatesPerRollout: number
  /** Parts, in whole groups, that each pass is cut into; every part is one optimizer step. Default `1`. */
  minibatches: number
  /** Longest completion in tokens; default what the task says, 256 for a dataset. */
  maxNewTokens?: number | undefined
  /** Sampling temperature, also of all log-probabilities. Default `1`. */
  temperature: number
  /** Sample from the k most likely tokens; 0: all. Log-probabilities stay those of the full vocabulary. Default `0`. */
  topK: number
  /** Sample from the smallest set of tokens with this probability. Default `1`. */
  topP: number
  /** Sample from tokens with at least this share of the largest probability; 0: all. Default `0`. */
  minP: number
  /**
   * Logits of tokens in the prompt or drawn before: positive ones are divided by it, negative ones multiplied; 1: off.
   * Default `1`.
   */
  repetitionPenalty: number
  /** Subtracted from the logit of a token once for each time that it was drawn before; 0: off. Default `0`. */
  frequencyPenalty: number
  /** Subtracted once from the logit of each token that was drawn before; 0: off. Default `0`. */
  presencePenalty: number
  /** Added to the logits of these token ids, for example `{ 13: -2 }`. */
  logitBias?: Record<string, number> | undefined
  /** Token ids that are never sampled. */
  bannedTokens?: number[] | undefined
  /** Token ids or strings that end a completion, in place of the end tokens of the task or the model. */
  stop?: (number | string)[] | undefined
  /**
   * Completions, or the turns of episodes, are texts of a grammar, in evaluations too. Log-probabilities stay those of the full
   * vocabulary.
   */
  grammar?: GenerateOptions['grammar'] | undefined
  /** Exit rule of rollouts. Training and its log-probabilities stay at full depth, which is also the default. */
  exit?: ExitRule | undefined
  /** `wavefront`: several positions of a rollout at once, where that pays. Never changes the rollouts. Default `"off"`. */
  speculate: 'wavefront' | 'off'
  /** Leave sequences without advantage, those of flat groups first, out of the passes. Never changes the loss. Default `true`. */
  skipFlatGroups: boolean
  /** Calls of one reward function that wait for an answer at the same time. Default `64`. */
  rewardConcurrency: number
  /** Seconds after which a reward that has not answered is an error; 0: never. Default `0`. */
  rewardTimeout: number
  /**
   * Tokens that the normalizer `constant` divides by; default `maxNewTokens`, for `update` else the longest response of its
   * batch.
   */
  constantNormalizerLength?: number | undefined
  /** Completions per step that are written to completions.jsonl of `runDir`. Default `4`. */
  logCompletions: number
  /** Steps between comparisons of the log-probabilities of sampling and of training; 0: never. Default `10`. */
  logprobCheckEvery: number
  /** Replaces the reward of the task: a function, a list of { name, reward, weight } or functions by name. Several are added. */
  reward?: Rewards | undefined
}

/** Episodes of an `environment`, and what is no data of rollouts. */
export interface EpisodeConfig {
  /** Most turns of the model in an episode. Default `8`. */
  maxTurns: number
  /**
   * Episodes branch once where a turn begins uncertainly (ARPO): the mean entropy of its first tokens, in nats, is at least
   * `entropy`. `width` episodes of the group then share what came before. Default: none.
   */
  branch?:
    | {
        /** Least mean entropy of the first tokens of a turn, in nats. */
        entropy: number
        /** Episodes that go on from the branch. */
        width: number
      }
    | undefined
  /** Most tokens of an episode, its prompt included; default the `max_position_embeddings` of the model. */
  maxEpisodeTokens?: number | undefined
  /** Calls of tools that run at the same time. Default `16`. */
  toolConcurrency: number
  /** Seconds after which a call of a tool is answered with an error message; 0: never. Default `30`. */
  toolTimeout: number
  /** Seconds after which an environment that has not answered is an error; 0: never. Default `300`. */
  environmentTimeout: number
  /**
   * Where the chat template rewrites earlier turns: encode the conversation again, and train the turns since then alone.
   * Default `false`.
   */
  reencode: boolean
}

/** What makes rollouts other than single turns; none of it is data. */
export interface RolloutResources {
  /** Makes the rollouts of a step; default completions of the prompts. */
  rollout?: RolloutFunction | undefined
  /** Makes the episode of a problem, with turns, tools and rewards; rollouts are episodes then. */
  environment?: Environment | undefined
  /** Tools that every episode offers. */
  tools?: readonly Tool[] | undefined
}

/** What all policy-gradient trainers have in common. Those whose options lack the last three leave them undefined. */
export interface PolicyConfig extends TrainerConfig, RolloutConfig, EpisodeConfig, RolloutResources {
  /** Rollouts leave the loops where the exit CDF reaches this, and exit terms train those exits; default full depth. */
  exitThreshold?: number | undefined
  /** Start token in place of the prompt for terms in the marginal space; default the `bos_token_id` of the model, else 0. */
  marginalToken?: number | undefined
  /** Label-free rewards compare these; default the content of the last box, or the whole completion. */
  answerOf?: ((completion: string, columns: Record<string, unknown>) => string | null) | undefined
}

/** Where the advantages of `RLTTTrainer` and `GRPOTrainer` come from. */
export interface AdvantageConfig {
  /** One per sequence from its reward, or one per turn from the rewards of the turns. Default `"reward"`. */
  source: 'reward' | 'turn'
  /** Of later turns: the reward of the turn k turns later counts discount^k times. Default `1`. */
  discount: number
}

/** The objective of math.md §2–§4, as RLTT and GRPO spell it. */
export interface ClassicObjectiveConfig {
  /**
   * One advantage per sequence, from its reward; or one per turn of an episode, from the rewards of this turn and later ones, each
   * next one times `discount`. Default `{"source":"reward","discount":1}`.
   */
  advantage: AdvantageConfig
  /** Divide advantages by the standard deviation of the group, or not. Default `"group"`. */
  scaleRewards: 'group' | 'none'
  /** Weight of the k3 estimate of the KL divergence to the frozen starting model, at the last loop. Default `0`. */
  beta: number
  /**
   * Mean over tokens of each response and then over responses; mean over all tokens; or division by `constantNormalizerLength`.
   * Default `"response-mean"`.
   */
  normalizer: Normalizer
  /** `ppo`: ratios below 1 - epsilon are clipped. Default `0.2`. */
  epsilon: number
  /** `ppo`: ratios above 1 + epsilonHigh are clipped; default `epsilon`. */
  epsilonHigh?: number | undefined
  /** `ppo`: bound of the ratio of sequences with a negative advantage; default none. */
  dualClip?: number | undefined
  /** `cispo`: cap of the ratio; default 5. */
  cap?: number | undefined
}

/** Checked options of `RLTTTrainer`. */
export interface RLTTConfig extends TrainerConfig, RolloutConfig, EpisodeConfig, RolloutResources, ClassicObjectiveConfig {
  /**
   * Weights of the loops in the loss: by the probability of exiting at the loop, equal, by t^alpha, only the last, or
   * one number per loop that is read. Default `"exit-pdf"`.
   */
  weights: LoopWeights | number[]
  /** Exponent of `progressive`. Default `1`. */
  alpha: number
  /**
   * No gradient through `exit-pdf` weights; false trains the gate as well and wants the surrogate `reinforce`. Default
   * `true`.
   */
  detachWeights: boolean
  /** `reinforce` has no ratio and wants one optimizer step per rollout. Default `"reinforce"`. */
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
  /** `ppo` clips the ratio to the policy that made the rollout. Default `"ppo"`. */
  surrogate: Surrogate
  /** Peak learning rate. Default `0.000001`. */
  learningRate: number
  /** Decoupled weight decay of matrices. Default `0`. */
  weightDecay: number
  /** Decay rates of the two moments of AdamW. Default `[0.9,0.999]`. */
  adamBetas: [number, number]
}

/** Checked options of a trainer whose objective is made of its options. */
export type ClassicConfig = RLTTConfig | GRPOConfig

/** Checked options of `ObjectiveTrainer`. */
export interface ObjectiveTrainerConfig extends PolicyConfig {
  /** As in the configuration, or a function that returns coefficients. Default `"rltt"`. */
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
      /** The step, not included, until which it holds; absent: to the end. */
      until?: number | undefined
      /** A recipe by name, or an objective of the algebra. */
      objective: RecipeName | Algebra
    }[]
  | OwnObjective

/** What the trainers that learn from given tokens have in common. */
export interface SequenceConfig extends TrainerConfig {
  /** Sequences per step. Default `32`. */
  batchSize: number
  /** Tokens per packed sequence of a `corpus`. Default `1024`. */
  contextLength: number
  /** Share of a `corpus` that is kept back for evaluations; not with `evalCorpus`. Default `0.05`. */
  heldOutShare: number
  /** Files or folders of .txt, .md and .jsonl (`text` of each line), instead of a task or dataset. */
  corpus?: string | string[] | undefined
  /** Held-out text for evaluations of a `corpus`. */
  evalCorpus?: string | string[] | undefined
  /**
   * Evaluations also answer held-out problems and score the answers with this: a function, a list of { name, reward, weight }
   * or functions by name. Default the reward of the task.
   */
  reward?: Rewards | undefined
}

/** Checked options of `PretrainTrainer`. */
export interface PretrainConfig extends SequenceConfig, LoopConfig {
  /**
   * Of a conversation, learn every message of the assistant: what the template has in `{% generation %}`, else what each
   * adds. Default the last message alone. Default `false`.
   */
  assistantOnly: boolean
  /**
   * Stage I trains everything on the expected cross-entropy; Stage II the gate alone, to go on while a loop helps. Default
   * `1`.
   */
  stage: 1 | 2
  /**
   * Stage I: weights of the cross-entropies of the loops. `exit-pdf` trains the gate as well, and is the default of models
   * that have one; without one the default is `last`.
   */
  weights?: LoopWeights | number[] | undefined
  /** Exponent of `progressive`. Default `1`. */
  alpha: number
  /**
   * Weight of the entropy of the exit distribution; keeps the gate from collapsing. Read with `exit-pdf` weights alone.
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
  /** Share of the predictions of each sequence that count: those of highest teacher entropy. Default `0.2`. */
  rho: number
  /** The reference step of a token is the first loop where the exit CDF of the teacher reaches this. Default `0.5`. */
  tau: number
  /** Price of a loop, in nats. Default `0.02`. */
  lambdaBase: number
  /** How much more a loop costs where the teacher is certain. Default `0.5`. */
  lambdaScale: number
  /** Noisy passes per sequence. Default `8`. */
  rollouts: number
  /** Standard deviation of the noise on the latent states. Default `0.1`. */
  sigma: number
  /**
   * Where the noise is added: the normed state of every loop, the residual stream before that norm, or the embedded tokens
   * once. Behind `state` the passes share their first loop, which saves time. Default `"state"`.
   */
  noiseSite: 'state' | 'residual' | 'embedding'
  /**
   * Rollouts come in pairs with opposite noise, which halves the draws and cancels odd errors. Wants even `rollouts`.
   * Default `false`.
   */
  antithetic: boolean
  /** Whose log-probability a rollout earns at its exit: its own, or that of the pass without noise. Default `"rollout"`. */
  rewardFrom: 'rollout' | 'clean'
  /** Weight of the policy gradient of the exits. Default `1`. */
  policyCoefficient: number
  /** Weight of the cross-entropy of the loops, by exit probability and reward. Default `1`. */
  representationCoefficient: number
  /** Weight of the entropy of the exit distribution. Default `0.01`. */
  entropyCoefficient: number
  /** Weight of the k3 estimate of the KL divergence to the teacher. Default `0.0001`. */
  klCoefficient: number
  /**
   * Over which loops that estimate is taken: their mean, by the (detached) exit distribution, or the last alone. Default
   * `"mean"`.
   */
  klReduction: 'mean' | 'weighted' | 'last'
  /** The teacher becomes this share of itself and the rest of the model after every step; 1: frozen. Default `0.995`. */
  teacherDecay: number
  /** The model that is followed and compared with, of the same configuration; default a copy of the model. */
  teacher?: LoopLM | undefined
  /** Peak learning rate. Default `0.000005`. */
  learningRate: number
  /** Decoupled weight decay of matrices. Default `0.01`. */
  weightDecay: number
  /** Decay rates of the two moments of AdamW. Default `[0.9,0.999]`. */
  adamBetas: [number, number]
}

/** A configuration as a caller writes it: every field may be absent, as may those of `lora` and `advantage`. */
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
  /** As in the configuration, or a function that returns coefficients. Default `"rltt"`. */
  objective?: ObjectiveOption<ObjectiveInput> | undefined
}
/** Options of `PretrainTrainer`; `looplm options pretrain` lists them with their defaults. */
export interface PretrainOptions extends Options<PretrainConfig> {}
/** Options of `LoopRPTTrainer`; `looplm options looprpt` lists them with their defaults. */
export interface LoopRPTOptions extends Options<LoopRPTConfig> {}
