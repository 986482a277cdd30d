import type { Logger } from '../logger.js'
import type { RunFolder } from '../run-folder.js'
import { JsonLinesLogger } from './json-lines.js'
import { ReportLogger } from './report.js'
import { TensorBoardLogger } from './tensorboard.js'

/** The name of a built-in logger. */
export type LoggerName = 'jsonl' | 'tensorboard' | 'report'

/** The loggers of a run folder, by the names in options and configuration files, in the order in which they finish. */
export const builtInLoggers: Readonly<Record<LoggerName, (folder: RunFolder) => Logger>> = {
  jsonl: (folder) => new JsonLinesLogger(folder),
  tensorboard: (folder) => new TensorBoardLogger(folder),
  report: (folder) => new ReportLogger(folder),
}

/** The names of all built-in loggers. */
export const loggerNames = Object.keys(builtInLoggers) as [LoggerName, ...LoggerName[]]
