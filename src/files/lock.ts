import { closeSync, fstatSync, mkdirSync, openSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { errorMessage, fileError } from '../errors.js'
import { native } from '../native.js'

/** An open file or folder, and whether this process holds the system's lock on it. The caller closes `file`. */
export type OpenLock =
  | { state: 'locked' | 'held'; file: number }
  /** The file system does not support locks. */
  | { state: 'unsupported'; file: number; why: string }

/**
 * Opens a file or folder and tries to take the system's lock (flock) on it. The system releases the lock when the process ends,
 * even if it is killed. The lock also excludes other calls in the same process.
 *
 * @param flags as for `open`; `a` creates a file that does not exist
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
    closeSync(file) // another process held the lock and removed the file in between
  }
}

/** Whether a path still names an open file. */
export function isAt(file: number, path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(file).ino
}

/**
 * Takes the lock on a file, which is created if it does not exist and is not removed.
 *
 * @param options.wait called repeatedly while another process holds the lock; if it throws, the wait ends
 * @param options.warn called if the file system does not support locks; then nothing is locked
 * @returns a function that releases the lock
 * @throws LoopLMError INVALID_FILE if the file cannot be created
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
