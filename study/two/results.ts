// The stored results of Study II. Numbers have five significant digits.

/** Measurements of a model on held-out problems. Arrays by loop count have one entry per loop, 1 to T. */
export interface Measurement {
  /** Greedy accuracy by loop count. */
  accuracy: number[]
  /** Mean tokens of right greedy answers, including the end token, by loop count. null if none is right. */
  rightLength: (number | null)[]
  /** Greedy accuracy by loop count and token budget. An answer only counts if it ended within the budget. */
  budgets: { tokens: number; accuracy: number[] }[]
  /** Greedy accuracy and mean loops per token with the gate's exits, by threshold. */
  gates: { threshold: number; accuracy: number; loops: number }[]
  /** Greedy accuracy at full depth with more loops than in training. */
  deeper: { loops: number; accuracy: number }[]
  /** Fraction of the problems that at least one of 8 samples at full depth answers. */
  passAt8: number
}

export interface BaseResult {
  id: string
  kind: 'base'
  processor: string
  task: string
  base: number
  /** Number of steps of Stage I. */
  steps: number
  /** CPU seconds of training. */
  seconds: number
  final: Measurement
}

/** Gradients that credit only one loop, compared with that of the last loop: cosine, and ratio of norms. */
export interface LoopGradients {
  cosine: number[]
  norm: number[]
}

/** A point of a run. All values except the evaluations are means since the last point. */
export interface Point {
  step: number
  /** Number of sampled tokens so far, without prompts. */
  tokens: number
  /** CPU seconds of training so far. */
  seconds: number
  reward: number
  length: number
  entropy: number
  gradNorm: number
  /** Fraction of the groups whose completions all got the same reward. */
  flat: number
  /** Log-probability of the trained tokens by loop. */
  logprob: number[]
  accuracy: number[]
  rightLength: (number | null)[]
}

export interface TrainingResult {
  id: string
  kind: 'training'
  processor: string
  task: string
  arm: string
  base: number
  learningRate: number
  course: Point[]
  /** At the start, in the middle and at the end; only for arms that request it. */
  gradients?: LoopGradients[]
  /** Measured before Stage II. */
  final: Measurement
  /** With gate exits after Stage II, which only trains the gate. */
  calibrated: Measurement['gates']
}

export type Result = BaseResult | TrainingResult
