/** Metrics of a step by name. Names follow TRL if TRL has the quantity. */
export type Metrics = Record<string, number>

/** The metrics of an optimizer step. `grad_norm` is the norm before clipping. */
export type UpdateMetrics = Metrics & {
  /** The loss that was minimized. */
  loss: number
  /** Global norm of the gradients before clipping. */
  grad_norm: number
}

/** A completion that was sampled in a step, with its reward. */
export interface SampledCompletion {
  /** The text of the prompt. */
  prompt: string
  /** What the model wrote. */
  completion: string
  /** The problem's column `answer`. */
  answer?: unknown
  /** Weighted sum of the rewards. null if all were null. */
  reward: number | null
  /** Rewards by reward function, before weighting. */
  rewards: Record<string, number | null>
}

/** What every event has. */
interface Measured {
  /** Number of steps so far. */
  step: number
  /** Metrics by name. */
  metrics: Metrics
}

/** What `run` of a trainer yields. */
export type TrainerEvent =
  | ({
      /** A step is done. */
      type: 'step'
      /** All completions of the step. Empty if nothing was sampled. */
      completions: readonly SampledCompletion[]
    } & Measured)
  | ({
      /**
       * Held-out problems were answered. Metrics are `eval/loop_<t>/reward` for each loop count t, and
       * `eval/<name>/loop_<t>/reward` for `evalTasks`. Step 0 is the model before its first step.
       */
      type: 'eval'
    } & Measured)
  | ({
      /** A checkpoint was written. */
      type: 'checkpoint'
      /** The folder of the checkpoint. */
      path: string
    } & Measured)
  | ({
      /** The run has ended. `metrics` are those of the last step. */
      type: 'done'
      /** Whether the AbortSignal ended it. */
      aborted: boolean
      /** Whether `earlyStoppingPatience` ended it. */
      stoppedEarly: boolean
    } & Measured)
