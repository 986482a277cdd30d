/** What a logger learns about a run when it starts. */
export interface LoggedRun {
  /** The last part of `runDir`, or the trainer's name. */
  name: string
  /** The run folder; undefined without `runDir`. */
  folder: string | undefined
  /** Steps made before; -1: the run begins. Whatever a logger holds of later steps belongs to a course that was abandoned. */
  step: number
  /** What is trained, where and on what. */
  facts: RunFacts
  /** Tells the user something that does not end the run. */
  warn(message: string): void
}

/** What is trained, where and on what. */
export interface RunFacts {
  /** Numbers in the model, and those that are trained. */
  parameters: number
  /** Numbers that are trained. */
  trained: number
  /** Where the model lies. */
  device: string
  /** The dtype of its weights. */
  dtype: string
  /** Loops of the model. */
  loops: number
  /** The data in words, for example `a dataset of 7473 rows`. */
  data: string
  /** Rows of a dataset. */
  rows?: number | undefined
}

/** A completion as loggers get it. */
export interface LoggedCompletion {
  /** A text, or the messages of a conversation. */
  prompt: unknown
  /** What the model wrote. */
  completion: string
  /** The column `answer` of the problem. */
  answer?: unknown
  /** Weighted sum of the rewards; null when all were null. */
  reward: number | null
  /** Scores by reward, before weighting. */
  rewards: Readonly<Record<string, number | null>>
}

/** Something that happened to a run and is no metric. */
export interface RunNote {
  /** The kind of note. */
  type: 'warning'
  /** The note in words. */
  message: string
}

/** How a run ended: by itself, by its signal or a loop that was left, or with an error. */
export interface RunOutcome {
  /** How it ended. */
  status: 'finished' | 'aborted' | 'failed'
  /** Only when it failed. */
  error?: unknown
}

/**
 * Receives what a run measures. Every method may return a promise, which is awaited. An error of `start`, `log`, `completions`, `note` or `flush`
 * ends the run, with the logger named; one of `finish` is a warning. A logger that depends on a network should catch its own errors.
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
  /** How errors name it; default its place in the list. */
  readonly name?: string
  /**
   * Called before the first step.
   *
   * @param config as in a configuration file: `trainer`, and `options` with all defaults filled in
   */
  start?(config: Readonly<Record<string, unknown>>, run: LoggedRun): unknown
  /** Called after every step (`kind` is `step`) and every evaluation (`eval`). Names of metrics are those of docs/metrics.md. */
  log(step: number, metrics: Readonly<Record<string, number>>, kind: 'step' | 'eval'): unknown
  /** Called with `logCompletions` completions of every step that sampled some. */
  completions?(step: number, rows: readonly LoggedCompletion[]): unknown
  /** Called for every warning. */
  note?(step: number, note: RunNote): unknown
  /** Called before a checkpoint is written: what was logged until then must not be lost. */
  flush?(): unknown
  /** Called once, however the run ends. */
  finish?(outcome: RunOutcome): unknown
}
