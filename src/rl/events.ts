/** Numbers of a step by name. Names follow TRL where TRL has the quantity. */
export type Metrics = Record<string, number>

/** The metrics of an optimizer step: `grad_norm` is that before clipping. */
export type UpdateMetrics = Metrics & {
  /** The loss that was minimised. */
  loss: number
  /** Global norm of the gradients before clipping. */
  grad_norm: number
}

/** A completion that was sampled in a step, with what it earned. */
export interface SampledCompletion {
  /** The text of the prompt. */
  prompt: string
  /** What the model wrote. */
  completion: string
  /** The column `answer` of the problem. */
  answer?: unknown
  /** Weighted sum of the rewards; null when all were null. */
  reward: number | null
  /** Scores by reward, before weighting. */
  rewards: Record<string, number | null>
}

/** What every event has. */
interface Measured {
  /** Steps made so far. */
  step: number
  /** Numbers by name. */
  metrics: Metrics
}

/** What `run` of a trainer yields. */
export type TrainerEvent =
  | ({
      /** A step was made. */
      type: 'step'
      /** All that the step was made of; none where nothing was sampled. */
      completions: readonly SampledCompletion[]
    } & Measured)
  | ({
      /**
       * Held-out problems were answered: `eval/loop_<t>/reward` for each loop count t, `eval/<name>/loop_<t>/reward` for `evalTasks`.
       * Step 0 is the model before its first step.
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
      /** The run is over. `metrics` are those of the last step. */
      type: 'done'
      /** Whether the AbortSignal ended it. */
      aborted: boolean
      /** Whether `earlyStoppingPatience` ended it. */
      stoppedEarly: boolean
    } & Measured)
