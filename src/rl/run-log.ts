import { basename, resolve } from 'node:path'
import { errorMessage, LoopLMError, toLoopLMError } from '../errors.js'
import type { LoopLM } from '../model/model.js'
import type { LoggedRun, Logger, RunFacts, RunNote, RunOutcome } from '../monitor/logger.js'
import { builtInLoggers, type LoggerName } from '../monitor/loggers/built-in.js'
import { lineFields } from '../monitor/loggers/json-lines.js'
import type { RunFolder } from '../monitor/run-folder.js'
import { memory } from '../tensor/devices.js'
import { type CallbackArgument, callBack, failureOf, type RunningTrainer, type TrainerCallbacks } from './callbacks.js'
import type { DataDescription } from './data.js'
import type { Metrics, SampledCompletion } from './events.js'
import type { TrainerConfig } from './options.js'
import type { Ranks } from './ranks.js'
import type { Rollout } from './rollout-record.js'

/** The default loggers of a run with a folder. */
const usualLoggers: readonly LoggerName[] = ['jsonl', 'tensorboard', 'report']

/** Calls the callbacks and then the loggers of a run. With several processes, the first one calls them and the others wait. */
export class RunLog {
  readonly #trainer: RunningTrainer
  readonly #options: Pick<TrainerConfig, 'callbacks' | 'loggers'>
  readonly #ranks: Ranks
  #loggers: readonly Logger[] = []
  /** Warnings that the loggers have not received yet. */
  readonly #pending: RunNote[] = []

  constructor(trainer: RunningTrainer, options: Pick<TrainerConfig, 'callbacks' | 'loggers'>, ranks: Ranks) {
    this.#trainer = trainer
    this.#ranks = ranks
    this.#options = options
  }

  /** Stores a warning until the loggers can receive it. */
  warned(message: string): void {
    this.#pending.push({ type: 'warning', message })
  }

  /** @param folder where the built-in loggers write; without a folder they do not run */
  async begin(
    folder: RunFolder | undefined,
    config: Readonly<Record<string, unknown>>,
    run: Pick<LoggedRun, 'step' | 'facts' | 'warn'>,
  ): Promise<void> {
    this.#loggers = (this.#options.loggers ?? usualLoggers).flatMap((logger) => {
      if (typeof logger !== 'string') return logger
      return folder === undefined ? [] : builtInLoggers[logger](folder)
    })
    const name = folder === undefined ? this.#trainer.name : basename(resolve(folder.path))
    await this.#first(async () => {
      await this.#each('start', (logger) => logger.start?.(config, { name, folder: folder?.path, ...run }))
      await this.#tell()
      await this.#call('onRunBegin', { config, folder: folder?.path, facts: run.facts })
    })
  }

  /** Reports the rollouts of the step in progress. */
  async rollouts(rollouts: readonly Rollout[]): Promise<void> {
    await this.#first(() => this.#call('onRollouts', { rollouts }, this.#trainer.step + 1))
  }

  /** @param logged how many completions are logged */
  async step(metrics: Metrics, completions: readonly SampledCompletion[], logged: number): Promise<void> {
    await this.#first(async () => {
      await this.#call('onStep', { metrics, completions })
      await this.#log('step', metrics, completions.slice(0, logged))
    })
  }

  async evaluation(metrics: Metrics): Promise<void> {
    await this.#first(async () => {
      await this.#call('onEvaluate', { metrics })
      await this.#log('eval', metrics, [])
    })
  }

  async saved(folder: string): Promise<void> {
    await this.#first(() => this.#call('onSave', { folder }))
  }

  /** Waits until everything that was logged is safely stored. Only in the first process. */
  async flush(): Promise<void> {
    await this.#tell()
    await this.#each('flush', (logger) => logger.flush?.())
  }

  /**
   * Ends the loggers, also after a failed run. Errors that happen after the run's own error become warnings.
   *
   * @param failed the error of the run
   */
  async end(
    { aborted, ...made }: { metrics: Metrics; aborted: boolean; stoppedEarly: boolean },
    failed: { cause: unknown } | undefined,
    warn: (message: string) => void,
  ): Promise<void> {
    if (!this.#ranks.leads) return
    const done = aborted ? 'aborted' : 'finished'
    const outcome: RunOutcome = failed === undefined ? { status: done } : { status: 'failed', error: failed.cause }
    await this.#tell().catch((cause) => warn(errorMessage(cause)))
    for (const [i, logger] of this.#loggers.entries()) {
      try {
        await logger.finish?.(outcome)
      } catch (cause) {
        const what = logger.name === 'report' ? 'no report was written' : `${nameOf(logger, i)}.finish`
        warn(`${what}: ${toLoopLMError(cause).message}`)
      }
    }
    await this.#call('onRunEnd', { ...made, ...outcome }).catch((cause) => {
      if (failed === undefined) throw cause
      warn(toLoopLMError(cause).message)
    })
  }

  #first(action: () => Promise<void>): Promise<void> {
    return this.#ranks.first('log', action)
  }

  async #log(kind: 'step' | 'eval', metrics: Metrics, completions: readonly SampledCompletion[]): Promise<void> {
    await this.#call('onLog', { metrics, kind })
    checkMetrics(metrics)
    const { step } = this.#trainer
    if (completions.length > 0) await this.#each('completions', (logger) => logger.completions?.(step, completions))
    await this.#each('log', (logger) => logger.log(step, metrics, kind))
    await this.#tell()
  }

  async #tell(): Promise<void> {
    const { step } = this.#trainer
    for (const note of this.#pending.splice(0)) await this.#each('note', (logger) => logger.note?.(step, note))
  }

  #call<Name extends keyof TrainerCallbacks>(
    name: Name,
    what: Omit<CallbackArgument<Name>, 'trainer' | 'step'>,
    step = this.#trainer.step,
  ): Promise<void> {
    const given = { trainer: this.#trainer, step, ...what } as unknown as CallbackArgument<Name>
    return callBack(this.#options.callbacks, name, given)
  }

  async #each(method: keyof Logger, call: (logger: Logger) => unknown): Promise<void> {
    for (const [i, logger] of this.#loggers.entries()) {
      try {
        await call(logger)
      } catch (cause) {
        // its errors already name the file
        if (logger.name !== undefined && Object.hasOwn(builtInLoggers, logger.name)) throw cause
        throw failureOf(`${nameOf(logger, i)}.${method}`, cause)
      }
    }
  }
}

function nameOf(logger: Logger, i: number): string {
  return logger.name === undefined ? `loggers[${i}]` : `logger ${logger.name}`
}

/**
 * Checks the metrics, because callbacks may add to them.
 * @throws LoopLMError INVALID_ARGUMENT
 */
function checkMetrics(metrics: Metrics): void {
  const refuse = (problem: string) => {
    throw new LoopLMError('INVALID_ARGUMENT', `metrics: ${problem}`, { operation: 'callbacks' })
  }
  const wrong = Object.entries(metrics).find(([, value]) => typeof value !== 'number')
  if (wrong !== undefined) refuse(`${wrong[0]} must be a number, got ${typeof wrong[1]}; a callback has added it`)
  const taken = lineFields.find((name) => Object.hasOwn(metrics, name))
  if (taken !== undefined) refuse(`${taken} is the name of another field of metrics.jsonl; a callback has added it: rename it`)
}

/** @param trained names of the parameters that optimizer steps change; undefined: all */
export function runFacts(
  model: LoopLM,
  trained: readonly string[] | undefined,
  { description, rows }: DataDescription,
): RunFacts {
  const all = model.parameters()
  const size = (parameters: readonly { shape: readonly number[] }[]) =>
    parameters.reduce((sum, { shape }) => sum + shape.reduce((product, length) => product * length, 1), 0)
  const changed = model.adapter?.parameters ?? (trained === undefined ? all : all.filter(({ name }) => trained.includes(name)))
  const { device, dtype, architecture } = model
  return { parameters: size(all), trained: size(changed), device, dtype, loops: architecture.loops, data: description, rows }
}

/** Resident memory of the process and memory on devices, in MiB. */
export function memoryMetrics(): Metrics {
  return { 'memory/resident': process.memoryUsage.rss() / 2 ** 20, 'memory/device': memory().bytes / 2 ** 20 }
}
