import { randomUUID } from 'node:crypto'
import { type FileHandle, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { fileError } from '../errors.js'

/** The JSON format of files that people read. */
export function jsonText(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`
}

/**
 * Writes a file atomically: no reader ever sees a part of it, even after a crash or if two processes write it at once.
 *
 * @param path in an existing folder
 * @param content of the file, or a function that writes it
 * @throws LoopLMError INVALID_FILE naming the file; an existing file is then unchanged
 */
export async function replaceFile(
  path: string,
  content: string | Uint8Array | ((file: FileHandle) => Promise<void>),
  operation?: string,
): Promise<void> {
  const temporary = `${path}.tmp-${randomUUID()}`
  try {
    const file = await open(temporary, 'wx')
    try {
      await (typeof content === 'function' ? content(file) : file.writeFile(content))
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => {}) // the first error is the one to report
    throw fileError(cause, 'write', path, operation)
  }
}

/** A file that is open for writing and still has its old content. */
export interface OutputFile {
  /** Replaces the content. */
  write(text: string): Promise<void>
  /** Closes the file. A new file without a text is removed. */
  close(): Promise<void>
}

/**
 * Opens a file that is written after long work, so that one that cannot be written is refused before it. It may be a pipe or a
 * device.
 *
 * @throws LoopLMError INVALID_FILE naming the file
 */
export async function openOutput(path: string, operation: string): Promise<OutputFile> {
  let unused = true // whether the file is new and empty
  const old = (cause: { code?: string }) => {
    if (cause.code !== 'EEXIST') throw cause
    unused = false
    return open(path, 'a')
  }
  const file = await onDisk('write', path, open(path, 'wx').catch(old), operation)
  const replace = async (text: string) => {
    unused = false
    if ((await file.stat()).isFile()) await file.truncate()
    await file.writeFile(text)
  }
  return {
    write: (text) => onDisk('write', path, replace(text), operation),
    close: async () => {
      await file.close()
      if (unused) await rm(path, { force: true })
    },
  }
}

/**
 * Awaits an operation of the file system and converts its errors.
 *
 * @param action what was attempted, for example `write`
 * @throws LoopLMError as {@link fileError}
 */
export async function onDisk<Result>(action: string, path: string, done: Promise<Result>, operation?: string): Promise<Result> {
  return done.catch((cause) => {
    throw fileError(cause, action, path, operation)
  })
}

/** Waits until a file, or a folder with all its content, is on the disk. */
export async function syncAll(path: string): Promise<void> {
  if ((await stat(path)).isDirectory()) for (const name of await readdir(path)) await syncAll(join(path, name))
  await sync(path)
}

/** Waits until a file, or the list of names in a folder, is on the disk. */
export async function sync(path: string): Promise<void> {
  const file = await open(path, 'r')
  await file.sync().finally(() => file.close())
}

/** Ignores an error about a missing file. */
export function ignoreMissing(error: { code?: string }): void {
  if (error.code !== 'ENOENT') throw error
}

/**
 * Whether a file or folder exists at that path.
 *
 * @throws LoopLMError INVALID_FILE if that cannot be determined
 */
export async function exists(path: string, operation?: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    (cause) => {
      if (cause.code === 'ENOENT' || cause.code === 'ENOTDIR') return false
      throw fileError(cause, 'read', path, operation)
    },
  )
}
