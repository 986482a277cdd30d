import { errorMessage, LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { AdamW } from '../model/optimizer.js'
import type { RunFacts } from '../monitor/logger.js'
import type { Metrics, SampledCompletion } from './events.js'
import type { Rollout } from './rollout-record.js'

/** The best evaluation of a run. */
export interface BestEvaluation {
  /** The step that was evaluated. */
  step: number
  /** The value of `metricForBestModel`. */
  value: number
  /** Its checkpoint, where the run has a folder. */
  path?: string
}

/** A trainer as callbacks see it; every trainer of looplm is one. */
export interface RunningTrainer {
  /** As configuration files call it. */
  readonly name: string
  /** The model that is trained. */
  readonly model: LoopLM
  /** The optimizer of the model. */
  readonly optimizer: AdamW
  /** The options with all defaults filled in. */
  readonly config: object
  /** Steps made so far. */
  readonly step: number
  /** The evaluation with the best `metricForBestModel` so far. */
  readonly best: BestEvaluation | undefined
}

/** What every callback gets. */
export interface CallbackContext {
  /** The trainer whose run this is. */
  trainer: RunningTrainer
  /** The step that was made, evaluated or saved; steps count from 1, and 0 is before the first one. */
  step: number
}

/** What callbacks of measured numbers get. */
export interface Measurement extends CallbackContext {
  /** The numbers by name; those of the last step when the run ends. */
  metrics: Metrics
}

/**
 * Functions that a run calls. Each may return a promise, which is awaited; what it throws ends the run, with the callback named. To end a run in good
 * order, abort the signal that `run` was given.
 *
 * @example
 * ```ts
 * import type { TrainerCallbacks } from 'looplm'
 *
 * const callbacks: TrainerCallbacks = {
 *   onStep: ({ step, metrics }) => console.log(step, metrics.reward),
 *   onSave: ({ folder }) => console.log('saved', folder),
 * }
 * const trainer = new RLTTTrainer(model, { task, runDir: 'runs/called', callbacks })
 * ```
 */
export interface TrainerCallbacks {
  /** Before the first step and evaluation, after a resume. */
  onRunBegin?(
    run: CallbackContext & {
      /** The options as loggers get them. */
      config: Readonly<Record<string, unknown>>
      /** The run folder. */
      folder: string | undefined
      /** The model and the data as loggers get them. */
      facts: RunFacts
    },
  ): unknown
  /**
   * After the rollouts of a step were sampled and rewarded, before they are trained on. The step is under way: the model must not be
   * trained by a callback, and `step` is the one that the rollouts will make.
   */
  onRollouts?(
    made: CallbackContext & {
      /** All rollouts of the step. */
      rollouts: readonly Rollout[]
    },
  ): unknown
  /** After a step. Numbers that are added to `metrics` are logged with the others. */
  onStep?(
    made: Measurement & {
      /** All completions of the step; none where nothing was sampled. */
      completions: readonly SampledCompletion[]
    },
  ): unknown
  /** After an evaluation. Numbers that are added to `metrics` are logged with the others. */
  onEvaluate?(made: Measurement): unknown
  /** Before metrics go to the loggers: after `onStep` and `onEvaluate`. Numbers that are added here are logged too. */
  onLog?(
    logged: Measurement & {
      /** Whether a step or an evaluation was measured. */
      kind: 'step' | 'eval'
    },
  ): unknown
  /** After a checkpoint was written. */
  onSave?(
    saved: CallbackContext & {
      /** The folder of the checkpoint. */
      folder: string
    },
  ): unknown
  /** Once, however the run ends. The report is written by then. */
  onRunEnd?(
    end: Measurement & {
      /** By itself, by its signal or a loop that was left, or with an error. */
      status: 'finished' | 'aborted' | 'failed'
      /** Whether `earlyStoppingPatience` ended it. */
      stoppedEarly: boolean
      /** What it failed with. */
      error?: unknown
    },
  ): unknown
}

/** What a callback is called with. */
export type CallbackArgument<Name extends keyof TrainerCallbacks> = Parameters<NonNullable<TrainerCallbacks[Name]>>[0]

const names = {
  onRunBegin: true,
  onRollouts: true,
  onStep: true,
  onEvaluate: true,
  onLog: true,
  onSave: true,
  onRunEnd: true,
} satisfies Record<keyof TrainerCallbacks, true>

/** The names of all callbacks. */
export const callbackNames = Object.keys(names) as (keyof TrainerCallbacks)[]

/**
 * Calls a callback, if there is one.
 *
 * @throws LoopLMError that names the callback and the step
 */
export async function callBack<Name extends keyof TrainerCallbacks>(
  callbacks: TrainerCallbacks | undefined,
  name: Name,
  what: CallbackArgument<Name>,
): Promise<void> {
  try {
    await (callbacks?.[name] as ((given: typeof what) => unknown) | undefined)?.call(callbacks, what)
  } catch (cause) {
    throw new LoopLMError(toLoopLMError(cause).code, errorMessage(cause), {
      operation: `callbacks.${name}, step ${what.step}`,
      cause,
    })
  }
}
