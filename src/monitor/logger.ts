/** What a logger learns about a run when it starts. */
export interface LoggedRun {
  /** The last part of `runDir`, or the trainer's name. */
  name: string
  /** The run folder. undefined without `runDir`. */
  folder: string | undefined
  /**
   * The step that the run resumes from; -1 if it is new. A logger's records of later steps belong to an abandoned continuation.
   */
  step: number
  /** Facts about the model, the device and the data. */
  facts: RunFacts
  /** Warns the user without ending the run. */
  warn(message: string): void
}

/** Facts about the model, the device and the data. */
export interface RunFacts {
  /** Number of parameters of the model. */
  parameters: number
  /** Number of trained parameters. */
  trained: number
  /** The device that holds the model. */
  device: string
  /** The dtype of its weights. */
  dtype: string
  /** Number of loops of the model. */
  loops: number
  /** A description of the data, for example `a dataset of 7473 rows`. */
  data: string
  /** Number of rows of a dataset. */
  rows?: number | undefined
}

/** A completion, as loggers get it. */
export interface LoggedCompletion {
  /** A string, or the messages of a conversation. */
  prompt: unknown
  /** What the model wrote. */
  completion: string
  /** The problem's column `answer`. */
  answer?: unknown
  /** Weighted sum of the rewards. null if all were null. */
  reward: number | null
  /** Rewards by reward function, before weighting. */
  rewards: Readonly<Record<string, number | null>>
}

/** An event of a run that is not a metric. */
export interface RunNote {
  /** The kind of note. */
  type: 'warning'
  /** The note in words. */
  message: string
}

/** How a run ended: normally, by its signal or by leaving the loop over its events, or with an error. */
export interface RunOutcome {
  /** How it ended. */
  status: 'finished' | 'aborted' | 'failed'
  /** Only set if it failed. */
  error?: unknown
}

/**
 * Receives the measurements of a run. If a method returns a promise, the run awaits it. If `start`, `log`, `completions`,
 * `note` or `flush` throws, the run fails with an error that names the logger. If `finish` throws, it is a warning. A logger
 * that depends on a network should catch its own errors.
 *
 * @example
 * ```ts
 * import type { Logger } from 'looplm'
 *
 * const printer: Logger = { log: (step, metrics, kind) => console.log(kind, step, metrics.loss) }
 * const trainer = new RLTTTrainer(model, { task, loggers: [printer] })
 * ```
 */
export interface Logger {
  /** The name in errors. Defaults to its position in the list. */
  readonly name?: string
  /**
   * Called before the first step.
   *
   * @param config as in a configuration file: `trainer`, and `options` with all defaults filled in
   */
  start?(config: Readonly<Record<string, unknown>>, run: LoggedRun): unknown
  /** Called after every step (`kind` is `step`) and every evaluation (`eval`). docs/metrics.md lists the names of metrics. */
  log(step: number, metrics: Readonly<Record<string, number>>, kind: 'step' | 'eval'): unknown
  /** Called with `logCompletions` completions of every step that sampled some. */
  completions?(step: number, rows: readonly LoggedCompletion[]): unknown
  /** Called for every warning. */
  note?(step: number, note: RunNote): unknown
  /** Called before a checkpoint is written. Everything logged so far must then be stored safely. */
  flush?(): unknown
  /** Called once at the end of the run, also if it fails. */
  finish?(outcome: RunOutcome): unknown
}
