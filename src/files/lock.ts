import { closeSync, fstatSync, mkdirSync, openSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { errorMessage, fileError } from '../errors.js'
import { native } from '../native.js'

/** An open file or folder, and whether this process has the system's lock on it. Whoever asked closes `file`. */
export type OpenLock =
  | { state: 'locked' | 'held'; file: number }
  /** The file system cannot lock. */
  | { state: 'unsupported'; file: number; why: string }

/**
 * Opens a file or folder and tries to take the system's lock (flock) on it. The lock falls with the process that holds it, however that
 * ends, and holds against other calls of one process too.
 *
 * @param flags as for `open`; `a` makes a file that does not exist
 * @throws what `open` throws
 */
export function openLock(path: string, flags: 'r' | 'a' | 'a+'): OpenLock {
  for (;;) {
    const file = openSync(path, flags)
    try {
      if (!native().lockFile(file)) return { state: 'held', file }
    } catch (cause) {
      return { state: 'unsupported', file, why: errorMessage(cause) }
    }
    if (isAt(file, path)) return { state: 'locked', file }
    closeSync(file) // whoever had the lock removed it in between
  }
}

/** Whether a path still names an open file. */
export function isAt(file: number, path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(file).ino
}

/**
 * Takes the lock on a file, which is made where it does not exist and stays.
 *
 * @param options.wait called again and again while another has the lock; what it throws ends the waiting
 * @param options.warn told where a file system cannot lock, and nothing is locked
 * @returns gives the lock back
 * @throws LoopLMError INVALID_FILE when the file cannot be made
 */
export async function lockFile(
  path: string,
  options: { operation: string; wait: () => Promise<void>; warn: (message: string) => void },
): Promise<() => void> {
  for (;;) {
    const lock = openFile(path, options.operation)
    if (lock.state === 'locked') return () => closeSync(lock.file)
    closeSync(lock.file)
    if (lock.state === 'unsupported') {
      options.warn(`${dirname(path)} cannot be locked (${lock.why})`)
      return () => {}
    }
    await options.wait()
  }
}

function openFile(path: string, operation: string): OpenLock {
  try {
    mkdirSync(dirname(path), { recursive: true })
    return openLock(path, 'a')
  } catch (cause) {
    throw fileError(cause, 'write', path, operation)
  }
}
