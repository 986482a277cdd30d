import type { Logger } from '../logger.js'
import type { RunFolder } from '../run-folder.js'
import { JsonLinesLogger } from './json-lines.js'
import { ReportLogger } from './report.js'
import { TensorBoardLogger } from './tensorboard.js'

/** The loggers of a run folder by the names that options and configuration files use, in the order in which they finish. */
export const builtInLoggers = {
  jsonl: (folder: RunFolder): Logger => new JsonLinesLogger(folder),
  tensorboard: (folder: RunFolder): Logger => new TensorBoardLogger(folder),
  report: (folder: RunFolder): Logger => new ReportLogger(folder),
} as const

/** Name of a logger of looplm's own. */
export type LoggerName = keyof typeof builtInLoggers

/** The names of all built-in loggers. */
export const loggerNames = Object.keys(builtInLoggers) as [LoggerName, ...LoggerName[]]
