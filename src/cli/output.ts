import { LoopLMError } from '../errors.js'

/** Exit codes of the command line. */
export const exitCodes = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const

const usageCodes = new Set(['INVALID_ARGUMENT', 'INVALID_CONFIG', 'INVALID_FILE', 'INVALID_SHAPE', 'NOT_FOUND', 'UNSUPPORTED'])

/** Writes one line of JSON to standard output. */
export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

/** Writes a line to standard output. */
export function print(text: string): void {
  process.stdout.write(`${text}\n`)
}

/**
 * Tells the user what went wrong: a message without a stack trace, unless it is a bug of looplm.
 *
 * @returns the exit code: 2 when the user can mend it, 130 when it was interrupted, else 1
 */
export function reportError(error: unknown): number {
  if (error instanceof LoopLMError) {
    process.stderr.write(`error: ${error.message}\n`)
    if (error.code === 'ABORTED') return exitCodes.interrupted
    return usageCodes.has(error.code) ? exitCodes.usage : exitCodes.failed
  }
  process.stderr.write(`error: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`)
  return exitCodes.failed
}

/**
 * Runs something that Ctrl-C stops in an orderly way; a second Ctrl-C ends the process at once.
 *
 * @param action receives the signal that the first Ctrl-C fires
 */
export async function interruptible<Result>(action: (signal: AbortSignal) => Promise<Result>): Promise<Result> {
  const controller = new AbortController()
  const interrupt = (): void => {
    if (controller.signal.aborted) process.exit(exitCodes.interrupted)
    process.stderr.write('\nstopping; press Ctrl-C again to end at once\n')
    controller.abort()
  }
  process.on('SIGINT', interrupt)
  process.on('SIGTERM', interrupt)
  try {
    return await action(controller.signal)
  } finally {
    process.off('SIGINT', interrupt)
    process.off('SIGTERM', interrupt)
  }
}
