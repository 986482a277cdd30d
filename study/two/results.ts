// What a run of Study II stores. Numbers have five significant digits.

/** What a model does on held-out problems. Arrays by loop count have one entry per loop, 1 to T. */
export interface Measurement {
  /** Greedy accuracy by loop count. */
  accuracy: number[]
  /** Mean tokens of right greedy answers, the end token included, by loop count; null where none is right. */
  rightLength: (number | null)[]
  /** Greedy accuracy by loop count, and by budget of tokens: an answer counts when it ended within the budget. */
  budgets: { tokens: number; accuracy: number[] }[]
  /** Greedy accuracy and mean loops per token under the gate's exits, by threshold. */
  gates: { threshold: number; accuracy: number; loops: number }[]
  /** Greedy accuracy at full depth with more loops than in training. */
  deeper: { loops: number; accuracy: number }[]
  /** Share of the problems that one of 8 samples at full depth answers. */
  passAt8: number
}

export interface BaseResult {
  id: string
  kind: 'base'
  processor: string
  task: string
  base: number
  /** Steps of Stage I. */
  steps: number
  /** CPU seconds of training. */
  seconds: number
  final: Measurement
}

/** Cosine with the gradient of the last loop, and norm over its norm, of the gradient that credits one loop alone. */
export interface LoopGradients {
  cosine: number[]
  norm: number[]
}

/** A point of the course of a run; all but the evaluations are means since the last point. */
export interface Point {
  step: number
  /** Sampled tokens so far, prompts not counted. */
  tokens: number
  /** CPU seconds of training so far. */
  seconds: number
  reward: number
  length: number
  entropy: number
  gradNorm: number
  /** Share of the groups whose completions all earned the same. */
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
  /** At the start, in the middle and at the end; only of arms that ask for it. */
  gradients?: LoopGradients[]
  /** Before Stage II. */
  final: Measurement
  /** Under gate exits after Stage II, in which the gate alone is trained. */
  calibrated: Measurement['gates']
}

export type Result = BaseResult | TrainingResult
