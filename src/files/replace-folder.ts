import { mkdir, readdir, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { fileError, LoopLMError } from '../errors.js'
import { ignoreMissing, sync, syncAll } from './write.js'

/*
 * A folder that belongs to looplm alone is written as .<name>.tmp, synced and renamed. Where a folder of the name exists, that one is
 * first renamed to .<name>.old: whatever the moment at which a process dies, `settleFolder` finds either the old folder or the new one
 * complete.
 */

/** Writes one part of a folder into the one it is given. */
export type FolderPart = (folder: string) => Promise<void>

/**
 * Writes a folder that exists completely or not at all. Only one process may write it: the run's lock sees to that.
 *
 * @param path replaced when it exists
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

/** Ends what a process that died had begun with {@link replaceFolder}: a whole folder gets its name, parts of folders go. */
export async function settleFolder(parent: string, name: string): Promise<void> {
  const names = await namesIn(parent)
  const [old, temporary] = [`.${name}.old`, `.${name}.tmp`]
  if (names.includes(old) && !names.includes(name)) await rename(join(parent, old), join(parent, name))
  for (const left of [old, temporary]) await rm(join(parent, left), { recursive: true, force: true })
}

/** Names of folders that {@link settleFolder} has something to do for. */
export async function unsettledFolders(parent: string): Promise<string[]> {
  const names = (await namesIn(parent)).flatMap((name) => /^\.(.*)\.(tmp|old)$/.exec(name)?.[1] ?? [])
  return [...new Set(names)]
}

/** The names in a folder; none where there is no folder. */
export async function namesIn(folder: string): Promise<string[]> {
  return readdir(folder).catch((error) => {
    if (error.code === 'ENOENT') return []
    throw fileError(error, 'read', folder, 'run')
  })
}
