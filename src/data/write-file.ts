import { randomUUID } from 'node:crypto'
import { rename, rm, writeFile } from 'node:fs/promises'
import { fileError } from '../errors.js'

/** JSON as looplm writes it into files for people. */
export function jsonText(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`
}

/**
 * Writes a small file so that nobody sees a part of it, not even when two write it at once.
 *
 * @param path in a folder that exists
 * @throws LoopLMError INVALID_FILE naming the file; one of that name is as it was then
 */
export async function replaceFile(path: string, text: string, operation: string): Promise<void> {
  const temporary = `${path}.tmp-${randomUUID()}`
  try {
    await writeFile(temporary, text)
    await rename(temporary, path)
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => {}) // the first error is the one to report
    throw fileError(cause, 'write', path, operation)
  }
}

/**
 * What the file system does, with its errors in words.
 *
 * @param action what is tried, for example `write`
 * @throws LoopLMError as {@link fileError}
 */
export async function onDisk<Result>(action: string, path: string, done: Promise<Result>, operation?: string): Promise<Result> {
  return done.catch((cause) => {
    throw fileError(cause, action, path, operation)
  })
}
