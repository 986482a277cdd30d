// Types that TypeScript and the engine share.

/** Element types of a {@link Tensor}. `float64` exists on device `reference`, `bfloat16` on the others. */
export type DType = 'float32' | 'bfloat16' | 'float64' | 'int32'

/** The dtypes of a model's parameters and activations. Device `reference` uses `float64`, all others the other two. */
export type ModelDType = 'float32' | 'bfloat16' | 'float64'

/** Real numbers that looplm returns: `Float64Array` on device `reference`, `Float32Array` on all others. */
export type RealArray = Float32Array | Float64Array

/**
 * Options of the rewards that the engine computes from a belief curve (native/engine/belief.h).
 * @internal
 */
export interface BeliefRewards {
  value: 'probability' | 'log' | 'best-of'
  attempts: number
  base: 'none' | 'previous' | 'teacher'
  cost: number
  clip: number | undefined
  delta: boolean
  discount: number
}

/**
 * One term of an objective. Defaults are in brackets.
 * @internal
 */
export interface LossTerm {
  /** [token] */
  channel?: 'token' | 'exit'
  /** [exit-pdf, detached] */
  weights?: {
    /** `exit-loop`: 1 at the batch's exit of each prediction */
    kind: 'exit-pdf' | 'uniform' | 'progressive' | 'one-hot' | 'given' | 'exit-loop'
    temperature?: number | undefined
    alpha?: number | undefined
    /** 1-based; 0: the last */
    loop?: number | undefined
    /** For kind `given`: one per loop that is read. They are normalized to a sum of 1. */
    weights?: readonly number[] | undefined
    detach?: boolean | undefined
  }
  /** [reinforce] */
  surrogate?: 'reinforce' | 'ppo' | 'cispo' | 'gspo' | 'k15'
  /** [false] */
  inner?: boolean
  /** [0.2] */
  epsilonLow?: number
  /** [0.2] */
  epsilonHigh?: number
  /** 0: none [0] */
  dualClip?: number
  /** CISPO's cap on the ratio [5] */
  cap?: number
  /** [0] */
  tau?: number
  belief?:
    | (BeliefRewards & { normalize: 'none' | 'loops' | 'gain'; scale: number; threshold: number; costScale: number })
    | undefined
  /** Exit channel: how many exits to draw per token if the batch has none [0] */
  draws?: number
  /** [0] */
  seed?: number
}

/**
 * What the engine measured while it accumulated a loss. Means are over response tokens.
 * @internal
 */
export interface LossMetrics {
  loss: number
  policyLoss: number
  /** Mean k3 estimate; 0 without a reference. */
  kl: number
  /** The LLDS term, weighted. */
  lazyLoss: number
  /** Mean token entropy in nats at the last scored loop. */
  entropy: number
  ratio: number
  clipLow: number
  clipHigh: number
  responseTokens: number
  /** Mean of Σ t·p_t, 1-based. */
  exitLoop: number
  exitEntropy: number
  /** The loops that were read, 1-based. */
  loops: number[]
  /** One per loop that was read. NaN if it was not scored. */
  loopLogprob: number[]
  loopWeight: number[]
  loopExit: number[]
  /** Per sequence ∂L/∂ its input vectors. Empty if it has none. */
  inputVectors: RealArray[]
}
