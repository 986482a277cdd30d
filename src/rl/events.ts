/** Numbers of a step by name. Names follow TRL where TRL has the quantity. */
export type Metrics = Record<string, number>

/** The metrics of an optimizer step: `grad_norm` is that before clipping. */
export type UpdateMetrics = Metrics & { loss: number; grad_norm: number }

/** What `run` of a trainer yields. */
export type TrainerEvent =
  /** A step was made. */
  | { type: 'step'; step: number; metrics: Metrics }
  /** Held-out problems were answered greedily: `eval/loop_<t>/reward` for each loop count t, `eval/<name>/loop_<t>/reward` for `evalTasks`. */
  | { type: 'eval'; step: number; metrics: Metrics }
  /** A checkpoint was written to `path`. */
  | { type: 'checkpoint'; step: number; metrics: Metrics; path: string }
  /**
   * The run is over. `metrics` are those of the last step; `aborted` tells whether the AbortSignal ended it, `stoppedEarly` whether
   * `earlyStoppingPatience` did.
   */
  | { type: 'done'; step: number; metrics: Metrics; aborted: boolean; stoppedEarly: boolean }
