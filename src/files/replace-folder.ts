import { mkdir, readdir, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { fileError, LoopLMError } from '../errors.js'
import { ignoreMissing, sync, syncAll } from './write.js'

/*
 * Replaces a folder that only looplm writes. The new folder is written as .<name>.tmp, synced and renamed. If the folder
 * already exists, it is first renamed to .<name>.old. If the process dies at any moment, `settleFolder` finds either the old or
 * the new folder complete.
 */

/** Writes one part of a folder into the given folder. */
export type FolderPart = (folder: string) => Promise<void>

/**
 * Writes a folder that exists completely or not at all. Only one process may write it, which the run's lock ensures.
 *
 * @param path replaced if it exists
 * @throws LoopLMError INVALID_FILE naming what could not be written, for example on a full disk; nothing has changed then
 */
export async function replaceFolder(path: string, parts: readonly FolderPart[]): Promise<void> {
  const parent = dirname(path)
  const temporary = join(parent, `.${basename(path)}.tmp`)
  const old = join(parent, `.${basename(path)}.old`)
  try {
    await rm(temporary, { recursive: true, force: true })
    await mkdir(temporary, { recursive: true })
    for (const part of parts) await part(temporary)
    await syncAll(temporary)
    await rename(path, old).catch(ignoreMissing)
    await rename(temporary, path)
    await sync(parent)
    await rm(old, { recursive: true, force: true })
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {}) // the first error is the one to report
    await settleFolder(parent, basename(path)).catch(() => {})
    if (!(cause instanceof LoopLMError)) throw fileError(cause, 'write', path)
    throw new LoopLMError('INVALID_FILE', `cannot write ${path}: ${cause.message}`, { cause })
  }
}

/**
 * Cleans up after a process that died during {@link replaceFolder}: a complete folder is renamed, incomplete ones are removed.
 */
export async function settleFolder(parent: string, name: string): Promise<void> {
  const names = await namesIn(parent)
  const [old, temporary] = [`.${name}.old`, `.${name}.tmp`]
  if (names.includes(old) && !names.includes(name)) await rename(join(parent, old), join(parent, name))
  for (const left of [old, temporary]) await rm(join(parent, left), { recursive: true, force: true })
}

/** The names of folders that {@link settleFolder} must clean up. */
export async function unsettledFolders(parent: string): Promise<string[]> {
  const names = (await namesIn(parent)).flatMap((name) => /^\.(.*)\.(tmp|old)$/.exec(name)?.[1] ?? [])
  return [...new Set(names)]
}

/** The names in a folder. Empty if the folder does not exist. */
export async function namesIn(folder: string): Promise<string[]> {
  return readdir(folder).catch((error) => {
    if (error.code === 'ENOENT') return []
    throw fileError(error, 'read', folder, 'run')
  })
}
