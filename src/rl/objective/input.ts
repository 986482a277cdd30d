// An objective as types. The schema checks it at run time, and the compiler that both agree.

/** An objective of the algebra as it is written; an absent field has its default (docs/objectives.md). */
export interface ObjectiveInput {
  /** What the rewards of a group go through, in this order. Default `[]`. */
  rewards?: readonly RewardShaperInput[] | undefined
  /** Which rollouts are trained on. Default `{}`. */
  filter?: FilterInput | undefined
  /** Rollouts draw the loop of each token from its exit distribution, and training replays these exits. */
  exits?: 'sampled' | undefined
  /** The policy gradient, a sum of terms. */
  terms: readonly ObjectiveTermInput[]
  /** k3 estimate of the KL divergence to the starting model or to its moving average. */
  kl?: KLInput | undefined
  /** LLDS: holds responses with A >= 0 whose likelihood fell since the rollout, or below the moving average. */
  lazy?: LazyInput | undefined
  /** Weights of the entropy of the tokens and of the exit distribution. Default `{}`. */
  entropy?: EntropyInput | undefined
  /** Decay of the moving average, where one is used. Default `0.995`. */
  emaDecay?: number | undefined
}

/** What the rewards of a group go through. */
export type RewardShaperInput =
  | {
      /** TTRL: 1 for the most frequent answer of the group, else 0. */
      kind: 'majority'
    }
  | {
      /** EVOL-RL: the majority earns .5 to 1, the others -1 to -.5, more the less a response resembles the rest. */
      kind: 'novelty'
    }
  | {
      /** Kimi k1.5: adds .5 - (length - min) / (max - min) to right answers, and its negative part to wrong ones. */
      kind: 'length'
      /** Factor of what is added. Default `1`. */
      weight?: AnnealedInput | undefined
    }
  | {
      /** DAPO: subtracts up to 1 over the last `cache` tokens before `maxLength`, and 1 beyond. */
      kind: 'overlong'
      /** Length in tokens from which on 1 is subtracted. */
      maxLength: number
      /** Tokens before `maxLength` over which the penalty grows. */
      cache: number
      /** Factor of the penalty. Default `1`. */
      weight?: AnnealedInput | undefined
    }
  | {
      /**
       * IKEA: adds .6, .4, .2 or 0 to a right answer that took 1, 2, 3 or more loops (mean exit, rounded); .05 to wrong ones
       * beyond 1.
       */
      kind: 'frugal'
      /** Factor of what is added. Default `1`. */
      weight?: AnnealedInput | undefined
    }

/** A number, or one that moves in a straight line from `from` to `to` over the first `steps` steps and then stays. */
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

/** Which rollouts are trained on. */
export interface FilterInput {
  /** Groups whose rewards spread less are left out. Default `0`. */
  minGroupStd?: number | undefined
  /** Completions cut at the length limit are left out of their group. Default `false`. */
  dropTruncated?: boolean | undefined
  /** Train on the first so many of each group; all of them vote and count for rewards. */
  keepPerGroup?: number | undefined
  /** DAPO dynamic sampling: so many more rounds of prompts at most, until a step has its groups with spread. Default `0`. */
  resample?: number | undefined
}

/** How the tokens of responses are averaged. */
export type Normalizer = 'response-mean' | 'token-mean' | 'constant'

/** One term of the policy gradient. */
export interface ObjectiveTermInput {
  /** Log-probability of the token at every loop, or of the loop that was left. Default `"token"`. */
  channel?: 'token' | 'exit' | undefined
  /** Given the prompt, or without it: one start token in its place (PreRL). Default `"conditional"`. */
  space?: 'conditional' | 'marginal' | undefined
  /** A. Default `{}`. */
  advantage?: AdvantageInput | undefined
  /** How the loops weigh in the loss of a token; Σ over loops is 1. Default `"exit-pdf"`. */
  weights?: LoopWeightsInput | undefined
  /** What is made of log-probability, ratio and advantage. Default `"reinforce"`. */
  surrogate?: SurrogateInput | undefined
  /** Weighted sum of the surrogates of the loops, or the surrogate of their weighted log ratio. Default `"outer"`. */
  combine?: 'outer' | 'inner' | undefined
  /** How token terms are averaged. Default `"response-mean"`. */
  normalizer?: Normalizer | undefined
  /** Exit channel: exits drawn per token where the rollouts have none; default 8. */
  draws?: number | undefined
  /** Factor of the term. Default `1`. */
  weight?: AnnealedInput | undefined
}

/** How rewards become advantages. */
export interface AdvantageInput {
  /**
   * Advantages from rewards; one per turn of an episode, from the rewards of its turns; 1 for every sequence (imitation); 0,
   * so that `loops` alone speaks. Default `"reward"`.
   */
  source?: 'reward' | 'turn' | 'one' | 'zero' | undefined
  /**
   * Source `turn`: γ of G_k = Σ_{m>=k} γ^(m-k) r_m, over the turns from k on. The rest of the reward is that of the last
   * turn. Default `1`.
   */
  discount?: number | undefined
  /** IGPO: adds to the reward of a turn what it gains in the belief b in the gold answer, mean over its tokens. */
  gain?: GainInput | undefined
  /** Subtract the mean of the group, or not. Default `"group"`. */
  baseline?: 'group' | 'none' | undefined
  /** Divide by the standard deviation of the group (default with baseline `group`): unbiased, of the population, or not. */
  scale?: 'group' | 'population' | 'none' | undefined
  /** SAN: z-scores inside strata of the group. */
  strata?: StrataInput | undefined
  /** CAPO: cheap right answers gain, dear ones lose, and a right answer keeps at least .001. */
  cost?: CostInput | undefined
  /** BN-GSPO: z-score once more over the batch. Default `false`. */
  batch?: boolean | undefined
  /** Keep all advantages, or those of one sign. Default `"all"`. */
  sign?: 'all' | 'negative' | 'positive' | undefined
  /** Factor of positive advantages (weighted NSR). Default `1`. */
  positiveWeight?: number | undefined
  /** Rewards of single loops that are added. */
  loops?: LoopRewardsInput | undefined
}

/** IGPO: the gain of a turn. */
export interface GainInput {
  /** Factor of the gain. Default `1`. */
  weight?: number | undefined
  /** φ(b): b or log b. Default `"probability"`. */
  value?: 'probability' | 'log' | undefined
  /** What the model would write before the answer. Default `""`. */
  prefix?: string | undefined
}

/** SAN: z-scores inside strata of the group. */
export interface StrataInput {
  /** `strata` of the batch; cut or finished; length in eighths of the longest; mean exit loop, rounded. */
  by: 'given' | 'truncated' | 'length' | 'exit-loop'
  /** Share of the z-score inside the stratum; the rest is that of the group. Default `0.5`. */
  blend?: number | undefined
}

/** CAPO: what a response costs. */
export interface CostInput {
  /** Cost of a response in [0, 1]. Default `"exit-loop"`. */
  by?: 'given' | 'exit-loop' | 'length' | undefined
  /** λ_e: weight of the shaped saving. Default `0.25`. */
  shape?: number | undefined
  /** λ_g: weight of the cost itself. Default `0.05`. */
  price?: number | undefined
  /** c0: the cost that is thought normal. Default `0.4`. */
  pivot?: number | undefined
  /** α: share of the mean cost of the group in the pivot. Default `0.5`. */
  pivotShare?: number | undefined
  /** τ of the sigmoid. Default `0.15`. */
  temperature?: number | undefined
  /** A reward above this counts as right. Default `0.35`. */
  rightAbove?: number | undefined
}

/** Rewards of single loops from a belief curve b_0..b_T, the probability of being right when stopping at loop t. */
export interface LoopRewardsInput {
  /**
   * Source of b_t: the probability of the token itself; of the gold answer, mean over its tokens; the reward of a greedy
   * answer with t loops.
   */
  belief: 'token' | 'gold-answer' | 'forced-exit'
  /** φ(b): b, log b or 1 - (1 - b)^attempts. Default `"log"`. */
  value?: 'probability' | 'log' | 'best-of' | undefined
  /** `best-of`: attempts. Default `4`. */
  attempts?: number | undefined
  /**
   * What φ(b_t) is compared with: the loop before, the reference model at its reference loop (`token` only), the mean of
   * the group at the same loop, nothing. Default `"previous"`.
   */
  base?: 'previous' | 'teacher' | 'group' | 'none' | undefined
  /** η: r_t becomes min(r_t - η, 0). */
  clip?: number | undefined
  /** r_t becomes r_t - r_{t+1}; the last two loops keep theirs and 0. Default `false`. */
  delta?: boolean | undefined
  /** γ of G_t = Σ_{k>=t} γ^(k-t) r_k. Default `0`. */
  discount?: number | undefined
  /** Price of a loop: r_t falls by cost · (t - 1), with base `teacher` by cost · (t - its reference loop). Default `0`. */
  cost?: number | undefined
  /** How much more a loop costs where the reference is certain (base `teacher`). Default `0`. */
  costScale?: number | undefined
  /** Base `teacher`: its reference loop is the first whose exit CDF reaches this. Default `0.5`. */
  threshold?: number | undefined
  /**
   * G as it is; z-score over the loops; its positive part; z-score over the group at each loop (not `token`). Default
   * `"none"`.
   */
  normalize?: 'none' | 'loops' | 'gain' | 'group' | undefined
  /** α: what is added to the advantage is α times that. Default `1`. */
  scale?: number | undefined
}

/** How the loops weigh in the loss of a token. */
export type LoopWeightsInput =
  | 'last'
  | 'uniform'
  | 'progressive'
  | 'exit-pdf'
  /** All at the loop that the token was read from: for `exits: 'sampled'`. */
  | 'exit-loop'
  | {
      /** In proportion to t^alpha at loop t. */
      kind: 'progressive'
      /** The exponent. */
      alpha: number
    }
  | {
      /** One loop alone. */
      kind: 'one-hot'
      /** Which loop, counted from 1. */
      loop: number
    }
  | {
      /** In proportion to given numbers. */
      kind: 'given'
      /** One number per loop that is read, at least 0, not all 0. */
      weights: readonly number[]
    }
  | {
      /** The probability of leaving at the loop. */
      kind: 'exit-pdf'
      /** No gradient through the weights. Default `true`. */
      detach?: boolean | undefined
      /** Temperature of the exit distribution. Default `1`. */
      temperature?: number | undefined
    }

/** What is made of log-probability, ratio and advantage. */
export type SurrogateInput =
  | 'reinforce'
  | 'ppo'
  | 'cispo'
  | 'gspo'
  | 'k15'
  | {
      /** The clipped ratio of each token. */
      kind: 'ppo'
      /** Ratios below 1 - epsilonLow are clipped. Default `0.2`. */
      epsilonLow?: number | undefined
      /** Ratios above 1 + epsilonHigh are clipped. Default `0.2`. */
      epsilonHigh?: number | undefined
      /** Bound of the ratio where the advantage is negative, more than 1; default none. */
      dualClip?: number | undefined
    }
  | {
      /** The ratio, capped and without a gradient, as a weight. */
      kind: 'cispo'
      /** Cap of the ratio. Default `5`. */
      cap?: number | undefined
    }
  | {
      /** One clipped ratio per response. */
      kind: 'gspo'
      /** Ratios below 1 - epsilonLow are clipped. Default `0.2`. */
      epsilonLow?: number | undefined
      /** Ratios above 1 + epsilonHigh are clipped. Default `0.2`. */
      epsilonHigh?: number | undefined
    }
  | {
      /** Squared regression on the log ratio of a response (Kimi k1.5). */
      kind: 'k15'
      /** Weight of the log ratio. Default `0.1`. */
      tau?: number | undefined
    }

/** k3 estimate of a KL divergence. */
export interface KLInput {
  /** Weight of the estimate. */
  beta: number
  /** Over which loops it is taken: the last, all alike, or by the weights of the loops. Default `"last"`. */
  loops?: 'last' | 'uniform' | 'weights' | undefined
  /** What is compared with: the starting model, or its moving average. Default `"frozen"`. */
  reference?: 'frozen' | 'ema' | undefined
}

/** LLDS: holds responses whose likelihood fell. */
export interface LazyInput {
  /** Weight of the penalty. Default `0.2`. */
  weight?: number | undefined
  /** Of what the likelihood must have fallen: a token, a segment, the response, or the response at each loop. Default `"response"`. */
  gate?: 'token' | 'segment' | 'response' | 'loop' | undefined
  /** Over which loops it is taken: the last, all alike, or by the weights of the loops. Default `"weights"`. */
  loops?: 'last' | 'uniform' | 'weights' | undefined
  /** Divides by all response tokens, or by those of responses that are held. Default `"all"`. */
  normalizer?: 'all' | 'preserving' | undefined
  /** What is compared with: the rollout, or the moving average. Default `"rollout"`. */
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

/** A number, or one that moves in a straight line. */
export type Annealed = AnnealedInput

/** A {@link RewardShaperInput} with its defaults. */
export type RewardShaper = Filled<RewardShaperInput>

/** Rewards of single loops with their defaults. */
export type BeliefSpec = Filled<LoopRewardsInput, 'clip'>

/** An {@link AdvantageInput} with its defaults. */
export interface AdvantageSpec extends Filled<Omit<AdvantageInput, 'gain' | 'strata' | 'cost' | 'loops'>, 'scale'> {
  /** IGPO: what a turn gains in the belief in the gold answer; absent: nothing. */
  gain?: Filled<GainInput> | undefined
  /** SAN: z-scores inside strata of the group; absent: none. */
  strata?: Filled<StrataInput> | undefined
  /** CAPO: what a response costs; absent: nothing. */
  cost?: Filled<CostInput> | undefined
  /** Rewards of single loops that are added; absent: none. */
  loops?: BeliefSpec | undefined
}

/** An {@link ObjectiveTermInput} with its defaults. */
export interface ObjectiveTerm extends Filled<Omit<ObjectiveTermInput, 'advantage' | 'weights' | 'surrogate'>, 'draws'> {
  /** How rewards become advantages. */
  advantage: AdvantageSpec
  /** How the loops weigh in the loss of a token. */
  weights: Filled<LoopWeightsInput>
  /** What is made of log-probability, ratio and advantage. */
  surrogate: Filled<SurrogateInput, 'dualClip'>
}

/** An objective with every default filled in. */
export interface Objective extends Pick<Filled<ObjectiveInput>, 'emaDecay'> {
  /** What the rewards of a group go through, in this order. */
  rewards: readonly RewardShaper[]
  /** Which rollouts are trained on. */
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
