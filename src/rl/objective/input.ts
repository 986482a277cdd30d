// An objective as types. The schema checks it at run time, and the compiler that both agree.

/** An objective as callers write it. Omitted fields have defaults (docs/objectives.md). */
export interface ObjectiveInput {
  /** Changes to the rewards of a group, in this order. Default `[]`. */
  rewards?: readonly RewardShaperInput[] | undefined
  /** Which rollouts to train on. Default `{}`. */
  filter?: FilterInput | undefined
  /** Rollouts draw the loop of each token from its exit distribution, and training replays these exits. */
  exits?: 'sampled' | undefined
  /** The policy gradient, a sum of terms. */
  terms: readonly ObjectiveTermInput[]
  /** KL divergence (k3 estimate) to the starting model or to the moving average. */
  kl?: KLInput | undefined
  /**
   * LLDS: penalty on responses with A >= 0 whose likelihood fell since the rollout, or is lower than under the moving average.
   */
  lazy?: LazyInput | undefined
  /** Weights of the entropy of the tokens and of the entropy of the exit distribution. Default `{}`. */
  entropy?: EntropyInput | undefined
  /** Decay of the moving average, if one is used. Default `0.995`. */
  emaDecay?: number | undefined
}

/** A change to the rewards of a group. */
export type RewardShaperInput =
  | {
      /** TTRL: the reward is 1 for the most frequent answer of the group, else 0. */
      kind: 'majority'
    }
  | {
      /** EVOL-RL: majority answers earn 0.5 to 1, the others -1 to -0.5. A response earns more the less it resembles the rest. */
      kind: 'novelty'
    }
  | {
      /** Kimi k1.5: adds λ = 0.5 - (length - min) / (max - min) to right answers and min(λ, 0) to wrong ones. */
      kind: 'length'
      /** Factor of the added amount. Default `1`. */
      weight?: AnnealedInput | undefined
    }
  | {
      /** DAPO: the penalty grows from 0 to 1 over the last `cache` tokens before `maxLength` and stays 1 beyond. */
      kind: 'overlong'
      /** Length in tokens at which the penalty reaches 1. */
      maxLength: number
      /** Tokens before `maxLength` over which the penalty grows. */
      cache: number
      /** Factor of the penalty. Default `1`. */
      weight?: AnnealedInput | undefined
    }
  | {
      /**
       * IKEA: a right answer earns 0.6, 0.4, 0.2 or 0 more with 1, 2, 3 or more loops (mean exit, rounded). A wrong answer earns
       * 0.05 more beyond one loop.
       */
      kind: 'frugal'
      /** Factor of the added amount. Default `1`. */
      weight?: AnnealedInput | undefined
    }

/** A number, or a value that changes linearly from `from` to `to` over the first `steps` steps and then stays. */
export type AnnealedInput =
  | number
  | {
      /** The value at step 0. */
      from: number
      /** The value from step `steps` on. */
      to: number
      /** How many steps the change takes. */
      steps: number
    }

/** Which rollouts to train on. */
export interface FilterInput {
  /** Drop groups whose rewards have a smaller standard deviation. Default `0`. */
  minGroupStd?: number | undefined
  /** Drop completions that were cut off at the length limit from their group. Default `false`. */
  dropTruncated?: boolean | undefined
  /** Train only this many completions of each group, the first ones. All of them vote; the baseline is that of the kept ones. */
  keepPerGroup?: number | undefined
  /**
   * DAPO dynamic sampling: sample at most this many more rounds of prompts, until a step has enough groups whose rewards differ.
   * Default `0`.
   */
  resample?: number | undefined
}

/** How the losses of tokens are averaged: over each response, over all tokens, or by a constant length. */
export type Normalizer = 'response-mean' | 'token-mean' | 'constant'

/** One term of the policy gradient. */
export interface ObjectiveTermInput {
  /**
   * What is credited. `token`: the log-probability of the token at every loop. `exit`: the log-probability of the loop at which
   * it exited. Default `"token"`.
   */
  channel?: 'token' | 'exit' | undefined
  /**
   * What the response is conditioned on. `conditional`: the prompt. `marginal`: only a start token in place of the prompt
   * (PreRL). Default `"conditional"`.
   */
  space?: 'conditional' | 'marginal' | undefined
  /** Advantages A. Default `{}`. */
  advantage?: AdvantageInput | undefined
  /** Weights of the loops in the loss of a token; they sum to 1. Default `"exit-pdf"`. */
  weights?: LoopWeightsInput | undefined
  /** Loss of a token, from its log-probability, ratio and advantage. Default `"reinforce"`. */
  surrogate?: SurrogateInput | undefined
  /**
   * `outer`: the weighted sum of the surrogates of the loops. `inner`: the surrogate of the weighted sum of their log ratios.
   * Default `"outer"`.
   */
  combine?: 'outer' | 'inner' | undefined
  /** How the losses of tokens are averaged. Default `"response-mean"`. */
  normalizer?: Normalizer | undefined
  /** Exit channel: exits to draw per token if the rollouts have none. Default: 8. */
  draws?: number | undefined
  /** Weight of the term. Default `1`. */
  weight?: AnnealedInput | undefined
}

/** How rewards become advantages. */
export interface AdvantageInput {
  /**
   * Source of the advantage. `reward`: the reward of the sequence. `turn`: one advantage per turn of an episode, from the rewards
   * of its turns. `one`: 1 for every sequence (imitation). `zero`: 0, so that only `loops` counts. Default `"reward"`.
   */
  source?: 'reward' | 'turn' | 'one' | 'zero' | undefined
  /**
   * Source `turn`: discount γ of the return of turn k, G_k = Σ_{m>=k} γ^(m-k) r_m. The last turn also gets the reward that no
   * turn earned. Default `1`.
   */
  discount?: number | undefined
  /**
   * IGPO: adds the gain of a turn to its reward. The gain is the rise of φ(b) during the turn. b is the probability of the gold
   * answer, the geometric mean over its tokens.
   */
  gain?: GainInput | undefined
  /** Whether the mean of the `group` is subtracted. Default `"group"`. */
  baseline?: 'group' | 'none' | undefined
  /**
   * Divisor of the advantages. `group`: the sample standard deviation of the group (default with baseline `group`). `population`:
   * the population standard deviation. `none`: 1.
   */
  scale?: 'group' | 'population' | 'none' | undefined
  /** SAN: z-scores within strata of the group. */
  strata?: StrataInput | undefined
  /** CAPO: cheap right answers gain and expensive ones lose, but a right answer keeps at least .001. */
  cost?: CostInput | undefined
  /** BN-GSPO: take the z-score over the batch as well. Default `false`. */
  batch?: boolean | undefined
  /** Keep `all` advantages, or only those of one sign. Default `"all"`. */
  sign?: 'all' | 'negative' | 'positive' | undefined
  /** Positive advantages are multiplied by this (weighted NSR). Default `1`. */
  positiveWeight?: number | undefined
  /** Rewards of single loops. They are added to the advantage. */
  loops?: LoopRewardsInput | undefined
}

/** IGPO: the gain of a turn. */
export interface GainInput {
  /** Weight of the gain. Default `1`. */
  weight?: number | undefined
  /** φ(b): `probability` is b, `log` is log b. Default `"probability"`. */
  value?: 'probability' | 'log' | undefined
  /** Text before the gold answer when its probability is measured. Default `""`. */
  prefix?: string | undefined
}

/** SAN: z-scores within strata of the group. */
export interface StrataInput {
  /**
   * How responses are sorted into strata. `given`: by `strata` of the batch. `truncated`: cut off or finished. `length`: by
   * eighths of the longest response. `exit-loop`: by the mean exit loop, rounded.
   */
  by: 'given' | 'truncated' | 'length' | 'exit-loop'
  /** Share of the z-score of the stratum; the rest comes from the z-score of the group. Default `0.5`. */
  blend?: number | undefined
}

/** CAPO: what a response costs. */
export interface CostInput {
  /** Cost of a response, in [0, 1]. Default `"exit-loop"`. */
  by?: 'given' | 'exit-loop' | 'length' | undefined
  /** Weight λ_e of the saving after the sigmoid. Default `0.25`. */
  shape?: number | undefined
  /** Weight λ_g of the plain cost. Default `0.05`. */
  price?: number | undefined
  /** Expected cost c0. Default `0.4`. */
  pivot?: number | undefined
  /** Share α of the mean cost of the group in the pivot. Default `0.5`. */
  pivotShare?: number | undefined
  /** Temperature τ of the sigmoid. Default `0.15`. */
  temperature?: number | undefined
  /** A reward above this counts as right. Default `0.35`. */
  rightAbove?: number | undefined
}

/** Rewards of single loops from a belief curve b_0..b_T, the probability of being right when stopping at loop t. */
export interface LoopRewardsInput {
  /**
   * Source of b_t. `token`: the probability of the token. `gold-answer`: the probability of the gold answer, the geometric mean
   * over its tokens. `forced-exit`: the reward of a greedy answer with t loops.
   */
  belief: 'token' | 'gold-answer' | 'forced-exit'
  /** φ(b): `probability` is b, `log` is log b, `best-of` is 1 - (1 - b)^attempts. Default `"log"`. */
  value?: 'probability' | 'log' | 'best-of' | undefined
  /** `best-of`: number of attempts. Default `4`. */
  attempts?: number | undefined
  /**
   * Baseline of φ(b_t). `previous`: the value at the loop before. `teacher`: the value of the reference model at its reference
   * loop (belief `token` only). `group`: the mean of the group at the same loop. `none`: 0. Default `"previous"`.
   */
  base?: 'previous' | 'teacher' | 'group' | 'none' | undefined
  /** η: r_t becomes min(r_t - η, 0). */
  clip?: number | undefined
  /** Use r_t - r_{t+1} instead of r_t. The last loop but one keeps its r_t, and the last loop gets 0. Default `false`. */
  delta?: boolean | undefined
  /** Discount γ of the return of loop t: G_t = Σ_{k>=t} γ^(k-t) r_k. Default `0`. */
  discount?: number | undefined
  /** Cost of a loop: r_t falls by cost · (t - 1), or with base `teacher` by cost · (t - its reference loop). Default `0`. */
  cost?: number | undefined
  /** Base `teacher`: how much more a loop costs where the reference is certain. Default `0`. */
  costScale?: number | undefined
  /** Base `teacher`: the reference loop is the first one where the cumulative exit probability reaches this. Default `0.5`. */
  threshold?: number | undefined
  /**
   * How G_t is normalized. `none`: not at all. `loops`: z-score over the loops. `gain`: the same, with negative values set to 0.
   * `group`: z-score over the group at each loop (not with belief `token`). Default `"none"`.
   */
  normalize?: 'none' | 'loops' | 'gain' | 'group' | undefined
  /** Factor α: the advantage of loop t grows by α times the normalized G_t. Default `1`. */
  scale?: number | undefined
}

/** Weights of the loops in the loss of a token. */
export type LoopWeightsInput =
  | 'last'
  | 'uniform'
  | 'progressive'
  | 'exit-pdf'
  /** All weight on the loop at which the token exited; for `exits: 'sampled'`. */
  | 'exit-loop'
  | {
      /** The weight of loop t is proportional to t^alpha. */
      kind: 'progressive'
      /** Exponent. */
      alpha: number
    }
  | {
      /** All weight on one loop. */
      kind: 'one-hot'
      /** The loop, counted from 1. */
      loop: number
    }
  | {
      /** The weights are proportional to the given numbers. */
      kind: 'given'
      /** One number per loop that is read, at least 0, not all 0. */
      weights: readonly number[]
    }
  | {
      /** The weight of a loop is the probability of exiting there. */
      kind: 'exit-pdf'
      /** Stop the gradient at the weights. Default `true`. */
      detach?: boolean | undefined
      /** Temperature of the exit distribution. Default `1`. */
      temperature?: number | undefined
    }

/** Loss of a token, from its log-probability, ratio and advantage. */
export type SurrogateInput =
  | 'reinforce'
  | 'ppo'
  | 'cispo'
  | 'gspo'
  | 'k15'
  | {
      /** PPO: clips the ratio of each token. */
      kind: 'ppo'
      /** Ratios below 1 - epsilonLow are clipped. Default `0.2`. */
      epsilonLow?: number | undefined
      /** Ratios above 1 + epsilonHigh are clipped. Default `0.2`. */
      epsilonHigh?: number | undefined
      /** Upper bound of the ratio where the advantage is negative; above 1. Default: none. */
      dualClip?: number | undefined
    }
  | {
      /** CISPO: weights the log-probability by the capped ratio, which gets no gradient. */
      kind: 'cispo'
      /** Largest ratio. Default `5`. */
      cap?: number | undefined
    }
  | {
      /** GSPO: clips one ratio per response. */
      kind: 'gspo'
      /** Ratios below 1 - epsilonLow are clipped. Default `0.2`. */
      epsilonLow?: number | undefined
      /** Ratios above 1 + epsilonHigh are clipped. Default `0.2`. */
      epsilonHigh?: number | undefined
    }
  | {
      /** Kimi k1.5: squared error between the advantage and `tau` times the log ratio of a response. */
      kind: 'k15'
      /** Weight of the log ratio. Default `0.1`. */
      tau?: number | undefined
    }

/** k3 estimate of a KL divergence. */
export interface KLInput {
  /** Weight of the estimate. */
  beta: number
  /**
   * Loops that are compared: the last, all with equal weights, or all with the weights of the first token term. Default `"last"`.
   */
  loops?: 'last' | 'uniform' | 'weights' | undefined
  /** Reference model: the starting model, or the moving average. Default `"frozen"`. */
  reference?: 'frozen' | 'ema' | undefined
}

/** LLDS: penalizes responses with A >= 0 whose likelihood fell. */
export interface LazyInput {
  /** Weight of the penalty. Default `0.2`. */
  weight?: number | undefined
  /**
   * The penalty applies where this became less likely: a token, a segment, the response, or the response at each loop. Default
   * `"response"`.
   */
  gate?: 'token' | 'segment' | 'response' | 'loop' | undefined
  /**
   * Loops that are compared: the last, all with equal weights, or all with the weights of the first token term. Default
   * `"weights"`.
   */
  loops?: 'last' | 'uniform' | 'weights' | undefined
  /** The penalty is divided by the tokens of all responses, or of those with A >= 0. Default `"all"`. */
  normalizer?: 'all' | 'preserving' | undefined
  /** Likelihood to compare with: at the rollout, or under the moving average. Default `"rollout"`. */
  old?: 'rollout' | 'ema' | undefined
}

/** Weights of entropies. */
export interface EntropyInput {
  /** Weight of the entropy of the tokens. Default `0`. */
  token?: AnnealedInput | undefined
  /** Weight of the entropy of the exit distribution. Default `0`. */
  exit?: AnnealedInput | undefined
}

/** `Input` with its defaults filled in. The fields of `Open` have no default and may be absent. */
type Filled<Input, Open extends PropertyKey = never> = Input extends string
  ? Input
  : {
      [Field in keyof Input as Field extends Open ? never : Field]-?: Exclude<Input[Field], undefined>
    } & { [Field in keyof Input as Field extends Open ? Field : never]: Input[Field] }

/** A number, or a value that changes linearly. */
export type Annealed = AnnealedInput

/** A {@link RewardShaperInput} with its defaults. */
export type RewardShaper = Filled<RewardShaperInput>

/** Rewards of single loops with their defaults. */
export type BeliefSpec = Filled<LoopRewardsInput, 'clip'>

/** An {@link AdvantageInput} with its defaults. */
export interface AdvantageSpec extends Filled<Omit<AdvantageInput, 'gain' | 'strata' | 'cost' | 'loops'>, 'scale'> {
  /** IGPO: the gain of a turn in the probability of the gold answer; absent: none. */
  gain?: Filled<GainInput> | undefined
  /** SAN: z-scores within strata of the group; absent: none. */
  strata?: Filled<StrataInput> | undefined
  /** CAPO: what a response costs; absent: no cost. */
  cost?: Filled<CostInput> | undefined
  /** Rewards of single loops that are added; absent: none. */
  loops?: BeliefSpec | undefined
}

/** An {@link ObjectiveTermInput} with its defaults. */
export interface ObjectiveTerm extends Filled<Omit<ObjectiveTermInput, 'advantage' | 'weights' | 'surrogate'>, 'draws'> {
  /** How rewards become advantages. */
  advantage: AdvantageSpec
  /** Weights of the loops in the loss of a token. */
  weights: Filled<LoopWeightsInput>
  /** Loss of a token, from its log-probability, ratio and advantage. */
  surrogate: Filled<SurrogateInput, 'dualClip'>
}

/** An objective with every default filled in. */
export interface Objective extends Pick<Filled<ObjectiveInput>, 'emaDecay'> {
  /** Changes to the rewards of a group, in this order. */
  rewards: readonly RewardShaper[]
  /** Which rollouts to train on. */
  filter: Filled<FilterInput, 'keepPerGroup'>
  /** The policy gradient, a sum of terms. */
  terms: readonly ObjectiveTerm[]
  /** KL divergence to the starting model or to its moving average; absent: none. */
  kl?: Filled<KLInput> | undefined
  /** LLDS; absent: none. */
  lazy?: Filled<LazyInput> | undefined
  /** Weights of entropies. */
  entropy: Filled<EntropyInput>
  /** Rollouts draw the loop of each token from its exit distribution; absent: they do not. */
  exits?: 'sampled' | undefined
}
