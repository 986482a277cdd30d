import { closeSync, fstatSync, mkdirSync, openSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { fileError } from '../errors.js'
import { native } from '../native.js'

interface LockOptions {
  operation: string
  wait: () => Promise<void>
  warn: (message: string) => void
}

/**
 * Takes the system's lock (flock) on a file, which is made where it does not exist and stays. The lock falls with the process that holds
 * it, however that ends, and holds against other calls of one process too.
 *
 * @param options.wait called again and again while another has the lock; what it throws ends the waiting
 * @param options.warn told where a file system cannot lock, and nothing is locked
 * @returns gives the lock back
 * @throws LoopLMError INVALID_FILE when the file cannot be made
 */
export async function lockFile(path: string, options: LockOptions): Promise<() => void> {
  const { operation, wait, warn } = options
  for (;;) {
    const file = openFile(path, operation)
    let free = false
    try {
      free = native().lockFile(file)
    } catch (cause) {
      closeSync(file)
      warn(`${dirname(path)} cannot be locked (${(cause as Error).message})`)
      return () => {}
    }
    if (free && statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(file).ino) return () => closeSync(file)
    closeSync(file)
    if (!free) await wait() // else another tool removed it in between
  }
}

function openFile(path: string, operation: string): number {
  try {
    mkdirSync(dirname(path), { recursive: true })
    return openSync(path, 'a')
  } catch (cause) {
    throw fileError(cause, 'write', path, operation)
  }
}
