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
  /** The folder of its checkpoint, if the run has a folder. */
  path?: string
}

/** A trainer as callbacks see it. Every trainer of looplm implements it. */
export interface RunningTrainer {
  /** The trainer's name in configuration files. */
  readonly name: string
  /** The model that is trained. */
  readonly model: LoopLM
  /** The optimizer of the model. */
  readonly optimizer: AdamW
  /** The options with all defaults filled in. */
  readonly config: object
  /** Number of steps so far. */
  readonly step: number
  /** The evaluation with the best `metricForBestModel` so far. */
  readonly best: BestEvaluation | undefined
}

/** What every callback gets. */
export interface CallbackContext {
  /** The trainer whose run this is. */
  trainer: RunningTrainer
  /** The step that was just made, evaluated or saved. Steps count from 1; 0 is before the first step. */
  step: number
}

/** What callbacks that report metrics get. */
export interface Measurement extends CallbackContext {
  /** The metrics by name. At the end of the run, those of the last step. */
  metrics: Metrics
}

/**
 * Functions that a run calls. If one returns a promise, the run awaits it. If one throws, the run fails with an error that
 * names the callback. To stop a run cleanly, abort the signal that you passed to `run`.
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
  /** Called before the first step and evaluation, after a resume. */
  onRunBegin?(
    run: CallbackContext & {
      /** The options in the form that loggers get. */
      config: Readonly<Record<string, unknown>>
      /** The run folder. */
      folder: string | undefined
      /** The facts about the model and the data that loggers get. */
      facts: RunFacts
    },
  ): unknown
  /**
   * Called after the rollouts of a step were sampled and rewarded, before training on them. The step is not finished: a
   * callback must not train the model. `step` is the number that this step will have.
   */
  onRollouts?(
    made: CallbackContext & {
      /** All rollouts of the step. */
      rollouts: readonly Rollout[]
    },
  ): unknown
  /** Called after a step. Metrics that you add to `metrics` are logged with the others. */
  onStep?(
    made: Measurement & {
      /** All completions of the step. Empty if nothing was sampled. */
      completions: readonly SampledCompletion[]
    },
  ): unknown
  /** Called after an evaluation. Metrics that you add to `metrics` are logged with the others. */
  onEvaluate?(made: Measurement): unknown
  /** Called before metrics go to the loggers, after `onStep` and `onEvaluate`. Metrics that you add here are logged too. */
  onLog?(
    logged: Measurement & {
      /** Whether these are the metrics of a step or of an evaluation. */
      kind: 'step' | 'eval'
    },
  ): unknown
  /** Called after a checkpoint was written. */
  onSave?(
    saved: CallbackContext & {
      /** The folder of the checkpoint. */
      folder: string
    },
  ): unknown
  /** Called once at the end of the run, also if it fails. The report is already written. */
  onRunEnd?(
    end: Measurement & {
      /** How the run ended: normally, by its signal or by leaving the loop over its events, or with an error. */
      status: 'finished' | 'aborted' | 'failed'
      /** Whether `earlyStoppingPatience` ended the run. */
      stoppedEarly: boolean
      /** The error, if the run failed. */
      error?: unknown
    },
  ): unknown
}

/** The argument of a callback. */
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
 * Calls a callback, if it is set.
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
    throw failureOf(`callbacks.${name}, step ${what.step}`, cause)
  }
}

/** The error of a function of the caller that threw `cause`. */
export function failureOf(name: string, cause: unknown): LoopLMError {
  return new LoopLMError(toLoopLMError(cause).code, errorMessage(cause), { operation: name, cause })
}
