import { randomUUID } from 'node:crypto'
import { closeSync, mkdirSync, statSync } from 'node:fs'
import { lstat, mkdir, readdir, rename, rm } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileError, LoopLMError } from '../errors.js'
import { type Owner, staleFiles } from './folder-files.js'
import { openLock } from './lock.js'
import { exists, ignoreMissing, sync, syncAll } from './write.js'

/*
 * A new folder is written as NAME.tmp-<uuid>, synced and renamed. For an existing folder, the new files are first written into
 * .save-<uuid> inside it. Then they replace the old files, which move to .save-<uuid>.old, in this order:
 *
 *   1. config.json moves away: from here on the folder is no checkpoint, and readers say why (`interruptedSave`);
 *   2. files of the old checkpoint that have no successor, such as its shards, move away (`staleFiles`);
 *   3. every other file is replaced;
 *   4. the new config.json comes: the folder is the new checkpoint.
 *
 * So a process that dies leaves the old checkpoint, the new one, or one that readers reject. After an error the old files are
 * moved back. The next save removes what a dead process left. A living process is recognized by the system's lock on its
 * folder.
 */

const configs = ['config.json', 'adapter_config.json'] // without these, a folder is not a checkpoint
const uuid = /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/
const within = '.save-'
const replaced = '.old'

/**
 * Writes files into a folder. A new folder appears completely or not at all. An existing one holds the old checkpoint, the new
 * one or, if the process was killed during the exchange, a state that readers reject. Files of the old checkpoint that the new
 * one does not have are removed. The user's own files stay.
 *
 * @param owner what is written: see {@link staleFiles}
 * @param fill writes the files into the given folder
 * @returns the names of the removed files
 * @throws LoopLMError INVALID_FILE naming what could not be written; the folder is then unchanged
 */
export async function writeFolder(
  folder: string,
  owner: Owner,
  operation: string,
  fill: (temporary: string) => Promise<void>,
): Promise<string[]> {
  const target = resolve(folder)
  const id = randomUUID()
  const inside = join(target, within + id)
  let temporary = `${target}.tmp-${id}`
  let lock: number | undefined
  let stale: string[] = []
  try {
    // nothing is awaited before `fill`, so that its first call runs before any later call of the caller
    if (statSync(target, { throwIfNoEntry: false }) !== undefined) temporary = inside
    mkdirSync(temporary, { recursive: true })
    lock = lockFolder(temporary)
    await fill(temporary)
    await syncAll(temporary)
    if (temporary !== inside && !(await takePlace(temporary, target))) {
      await rename(temporary, inside)
      temporary = inside
    }
    if (temporary === inside) stale = await replaceFiles(inside, target, owner)
    await sync(dirname(target))
  } catch (cause) {
    await removeUnlessReplacing(temporary).catch(() => {}) // the first error is the one to report
    if (!(cause instanceof LoopLMError)) throw fileError(cause, 'write', folder, operation)
    // names the caller's folder instead of the temporary one, which is gone
    const message = cause.message.replace(`${operation}: `, '').replaceAll(temporary, target)
    throw new LoopLMError(cause.code, message, { operation, shapes: cause.shapes, cause })
  } finally {
    if (lock !== undefined) closeSync(lock)
  }
  await removeLeft(target).catch(() => {}) // the new files are in place in any case
  return stale
}

async function removeUnlessReplacing(temporary: string): Promise<void> {
  if (!(await exists(temporary + replaced))) await rm(temporary, { recursive: true, force: true })
}

/** Renames the new folder. Returns false if another save has created a folder of that name in between. */
async function takePlace(temporary: string, target: string): Promise<boolean> {
  try {
    await rename(temporary, target)
    return true
  } catch (error) {
    const { code } = error as { code?: string }
    if (code === 'ENOTEMPTY' || code === 'EEXIST') return false
    throw error
  }
}

/** Moves all files of a folder to another folder or, if one cannot be moved, none. Returns the stale files. */
async function replaceFiles(from: string, target: string, owner: Owner): Promise<string[]> {
  const old = from + replaced
  const names = await readdir(from)
  for (const name of names) {
    const there = await lstat(join(target, name)).catch(() => undefined)
    if (there?.isDirectory()) throw new LoopLMError('INVALID_FILE', `cannot write ${join(target, name)}: it is a folder`)
  }
  const first = names.filter((name) => configs.includes(name))
  const moves: [from: string, to: string][] = []
  const move = async (source: string, to: string) => {
    await rename(source, to)
    moves.push([source, to])
  }
  const clear = (name: string) => move(join(target, name), join(old, name)).catch(ignoreMissing)
  const place = (name: string) => move(join(from, name), join(target, name))
  const lock = await waitForFolder(target) // two concurrent saves would mix their files
  let stale: string[]
  try {
    await mkdir(old)
    stale = await staleFiles(target, owner, names)
    for (const name of first) await clear(name)
    await sync(target)
    for (const name of stale) await clear(name)
    for (const name of names.filter((name) => !first.includes(name))) {
      await clear(name)
      await place(name)
    }
    await sync(target)
    for (const name of first) await place(name)
    await sync(target)
  } catch (error) {
    for (const [source, to] of moves.reverse()) await rename(to, source)
    await rm(old, { recursive: true, force: true })
    throw error
  } finally {
    if (lock !== undefined) closeSync(lock)
  }
  await rm(from, { recursive: true, force: true })
  await rm(old, { recursive: true, force: true })
  return stale
}

/**
 * Advice about a folder whose writer died while it exchanged files.
 *
 * @returns undefined if that did not happen
 */
export async function interruptedSave(folder: string): Promise<string | undefined> {
  const names = await readdir(folder).catch(() => [])
  const old = names.find((name) => isLeft(name, within) && name.endsWith(replaced))
  if (old === undefined) return undefined
  const fresh = join(folder, old.slice(0, -replaced.length))
  return `saving a model into ${folder} was cut off half-way: save it again, or complete it by moving the files of ${fresh} into ${folder}`
}

/** Removes what saves of dead processes left in a folder and next to it. */
async function removeLeft(target: string): Promise<void> {
  const parent = dirname(target)
  const left = [
    ...(await readdir(target)).filter((name) => isLeft(name, within)).map((name) => join(target, name)),
    ...(await readdir(parent)).filter((name) => isLeft(name, `${basename(target)}.tmp-`)).map((name) => join(parent, name)),
  ]
  for (const path of left) {
    const owner = path.endsWith(replaced) ? path.slice(0, -replaced.length) : path
    const lock = lockFolder(owner)
    if (lock === undefined && (await exists(owner))) continue // its process is still running
    await rm(path, { recursive: true, force: true })
    if (lock !== undefined) closeSync(lock)
  }
}

function isLeft(name: string, prefix: string): boolean {
  return name.startsWith(prefix) && uuid.test(name.slice(prefix.length).replace(/\.old$/, ''))
}

/**
 * Takes the system's lock on a folder, which is released when this process ends. undefined if another process holds it, or if
 * locks are not supported.
 */
function lockFolder(path: string): number | undefined {
  try {
    const { state, file } = openLock(path, 'r')
    if (state === 'locked') return file
    closeSync(file)
  } catch {
    // it does not exist, or cannot be read
  }
  return undefined
}

/** Like {@link lockFolder}, but waits for the lock. */
async function waitForFolder(path: string): Promise<number | undefined> {
  for (;;) {
    const { state, file } = openLock(path, 'r')
    if (state === 'locked') return file
    closeSync(file)
    if (state === 'unsupported') return undefined
    await delay(10)
  }
}
