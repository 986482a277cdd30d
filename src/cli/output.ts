import { constants } from 'node:os'
import { errorMessage, LoopLMError } from '../errors.js'
import { endInOrder, joinedWorld } from '../parallel.js'
import { originOf } from '../rl/ranks.js'
import { leads } from './processes.js'

/** Exit codes of the command line. */
export const exitCodes = { ok: 0, failed: 1, usage: 2 } as const

const interruptions = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Why {@link interruptible} fired its signal. */
export type Interruption = (typeof interruptions)[number]

/**
 * The exit code of a process that a signal has ended, as shells report it: 130 after Ctrl-C, 143 after SIGTERM, 129 after
 * SIGHUP.
 */
export function interruptedCode(reason: unknown): number {
  return 128 + constants.signals[isInterruption(reason) ? reason : 'SIGINT']
}

function isInterruption(reason: unknown): reason is Interruption {
  return interruptions.some((signal) => signal === reason)
}

const usageCodes = new Set(['INVALID_ARGUMENT', 'INVALID_CONFIG', 'INVALID_FILE', 'INVALID_SHAPE', 'NOT_FOUND', 'UNSUPPORTED'])

/** Writes one line of JSON to standard output. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value))
}

/** Writes a line to standard output. With several processes, only the first one writes. */
export function print(text: string): void {
  if (leads()) process.stdout.write(`${text}\n`)
}

/** Writes to standard error. With several processes, only the first one writes. */
export function tell(text: string): void {
  if (leads()) process.stderr.write(text)
}

/**
 * Reports an error to the user: a message without a stack trace, unless it is a bug of looplm.
 *
 * @returns the exit code: 2 if the user can fix it, 130, 143 or 129 if it was interrupted, else 1
 */
export function reportError(error: unknown): number {
  const world = joinedWorld()
  const origin = originOf(error) // if all processes throw the same error, only this one prints it
  if (origin !== undefined) endInOrder()
  const speaks = origin === undefined || origin === world?.rank
  const write = (message: string) => {
    if (speaks) process.stderr.write(`${message}${world === undefined ? '' : ` (rank ${world.rank} of ${world.size})`}\n`)
  }
  if (error instanceof LoopLMError) {
    if (error.code === 'ABORTED' && isInterruption(error.cause)) {
      tell('interrupted\n')
      return interruptedCode(error.cause)
    }
    write(`error: ${error.message}`)
    return usageCodes.has(error.code) ? exitCodes.usage : exitCodes.failed
  }
  write(`error: ${(error as Partial<Error> | undefined)?.stack ?? errorMessage(error)}`)
  return exitCodes.failed
}

/**
 * Runs an action that Ctrl-C, SIGTERM or closing the terminal (SIGHUP) stops cleanly. A second signal ends the process
 * immediately.
 *
 * @param action gets an AbortSignal, which the first of these signals fires; its reason is an {@link Interruption}
 */
export async function interruptible<Result>(action: (signal: AbortSignal) => Promise<Result>): Promise<Result> {
  const controller = new AbortController()
  const interrupt = (signal: Interruption): void => {
    if (controller.signal.aborted) process.exit(interruptedCode(signal))
    const again = signal === 'SIGINT' ? 'press Ctrl-C again' : `send ${signal} again`
    tell(`\nstopping; ${again} to end at once\n`)
    controller.abort(signal)
  }
  for (const signal of interruptions) process.on(signal, interrupt)
  try {
    return await action(controller.signal)
  } finally {
    for (const signal of interruptions) process.off(signal, interrupt)
  }
}
