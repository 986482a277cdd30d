/** Numbers of a step by name. Names follow TRL where TRL has the quantity. */
export type Metrics = Record<string, number>

/** The metrics of an optimizer step: `grad_norm` is that before clipping. */
export type UpdateMetrics = Metrics & { loss: number; grad_norm: number }

/** A completion that was sampled in a step, with what it earned. */
export interface SampledCompletion {
  prompt: string
  completion: string
  /** The column `answer` of the problem. */
  answer?: unknown
  /** Weighted sum of the rewards; null when all were null. */
  reward: number | null
  /** Scores by reward, before weighting. */
  rewards: Record<string, number | null>
}

/** What `run` of a trainer yields. */
export type TrainerEvent =
  /** A step was made. `completions` are all that the step was made of; none where nothing was sampled. */
  | { type: 'step'; step: number; metrics: Metrics; completions: readonly SampledCompletion[] }
  /**
   * Held-out problems were answered greedily: `eval/loop_<t>/reward` for each loop count t, `eval/<name>/loop_<t>/reward` for `evalTasks`.
   * Step 0 is the model before its first step.
   */
  | { type: 'eval'; step: number; metrics: Metrics }
  /** A checkpoint was written to `path`. */
  | { type: 'checkpoint'; step: number; metrics: Metrics; path: string }
  /**
   * The run is over. `metrics` are those of the last step; `aborted` tells whether the AbortSignal ended it, `stoppedEarly` whether
   * `earlyStoppingPatience` did.
   */
  | { type: 'done'; step: number; metrics: Metrics; aborted: boolean; stoppedEarly: boolean }
