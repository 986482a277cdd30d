import { errorMessage, LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { AdamW } from '../model/optimizer.js'
import type { RunFacts } from '../monitor/logger.js'
import type { Metrics, SampledCompletion } from './events.js'
import type { Rollout } from './rollout-record.js'

/** A trainer as callbacks see it; every trainer of looplm is one. */
export interface RunningTrainer {
  /** As configuration files call it. */
  readonly name: string
  readonly model: LoopLM
  readonly optimizer: AdamW
  /** The options with all defaults filled in. */
  readonly config: object
  readonly step: number
  readonly best: { step: number; value: number; path?: string } | undefined
}

/** What every callback gets. */
export interface CallbackContext {
  trainer: RunningTrainer
  /** The step that was made, evaluated or saved; steps count from 1, and 0 is before the first one. */
  step: number
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
  /** Before the first step and evaluation, after a resume. `config` and `facts` are what loggers get, `folder` is the run folder. */
  onRunBegin?(
    run: CallbackContext & { config: Readonly<Record<string, unknown>>; folder: string | undefined; facts: RunFacts },
  ): unknown
  /**
   * After the rollouts of a step were sampled and rewarded, before they are trained on. The step is under way: the model must not be
   * trained by a callback, and `step` is the one that the rollouts will make.
   */
  onRollouts?(made: CallbackContext & { rollouts: readonly Rollout[] }): unknown
  /** After a step. Numbers that are added to `metrics` are logged with the others. */
  onStep?(made: CallbackContext & { metrics: Metrics; completions: readonly SampledCompletion[] }): unknown
  /** After an evaluation. Numbers that are added to `metrics` are logged with the others. */
  onEvaluate?(made: CallbackContext & { metrics: Metrics }): unknown
  /** Before metrics go to the loggers: after `onStep` and `onEvaluate`. Numbers that are added here are logged too. */
  onLog?(logged: CallbackContext & { metrics: Metrics; kind: 'step' | 'eval' }): unknown
  /** After a checkpoint was written to `folder`. */
  onSave?(saved: CallbackContext & { folder: string }): unknown
  /** Once, however the run ends; `error` is what it failed with. The report is written by then. */
  onRunEnd?(
    end: CallbackContext & {
      metrics: Metrics
      status: 'finished' | 'aborted' | 'failed'
      stoppedEarly: boolean
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
