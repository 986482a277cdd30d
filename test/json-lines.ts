// The JSON Lines logger of a run folder, without a run.
import type { LoggedRun } from '../src/monitor/logger.js'
import { JsonLinesLogger } from '../src/monitor/loggers/json-lines.js'
import { RunFolder } from '../src/monitor/run-folder.js'

const facts = { parameters: 1, trained: 1, device: 'cpu', dtype: 'float32', loops: 1, data: 'nothing' }

/** @param step the run goes on from here; -1: it begins */
export async function openJsonLines(
  path: string,
  step: number,
  config: Record<string, unknown> = {},
  warn: (message: string) => void = () => {},
): Promise<JsonLinesLogger> {
  const logger = new JsonLinesLogger(await RunFolder.open(path, { config, warn }))
  const run: LoggedRun = { name: 'run', folder: path, step, facts, warn }
  await logger.start(config, run)
  return logger
}
