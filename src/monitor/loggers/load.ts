import { stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { errorMessage, LoopLMError } from '../../errors.js'
import type { Logger } from '../logger.js'

/**
 * Loads a logger from a JavaScript module. The default export is the logger, or a function that returns it. The module's code
 * runs with all rights of this process: only load modules that you trust.
 *
 * @param path an ES module or CommonJS file, relative to the working folder
 * @throws LoopLMError NOT_FOUND, or INVALID_FILE if the module fails to load or exports no logger
 *
 * @example
 * ```ts
 * const logger = await loadLogger('team-dashboard.mjs') // export default { log(step, metrics) { … } }
 * ```
 */
export async function loadLogger(path: string): Promise<Logger> {
  const operation = 'loadLogger'
  await stat(path).catch((cause) => {
    throw new LoopLMError('NOT_FOUND', `no file ${path}`, { operation, cause })
  })
  let logger: unknown
  try {
    const exports: { default?: unknown } = await import(pathToFileURL(resolve(path)).href)
    logger = typeof exports.default === 'function' ? await exports.default() : exports.default
  } catch (cause) {
    throw new LoopLMError('INVALID_FILE', `${path} does not load: ${errorMessage(cause)}`, { operation, cause })
  }
  if (typeof (logger as Partial<Logger> | null | undefined)?.log === 'function') return logger as Logger
  const message = `${path} exports no logger; export default an object with a function log(step, metrics), or a function that returns one`
  throw new LoopLMError('INVALID_FILE', message, { operation })
}
