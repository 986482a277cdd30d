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
 * A new folder is filled beside its place, as NAME.tmp-<uuid>, synced and renamed. In a folder that exists, the new files are first
 * written whole into .save-<uuid> inside it, and then take the places of the old ones, which move to .save-<uuid>.old:
 *
 *   1. config.json moves away: from here on the folder is no checkpoint, and readers say why (`interruptedSave`);
 *   2. files of the old checkpoint that have no successor, such as its shards, move away (`staleFiles`);
 *   3. every other file is replaced;
 *   4. the new config.json comes: the folder is the new checkpoint.
 *
 * So a process that dies leaves the old checkpoint, the new one, or one that is refused; an error puts the old files back. What a dead
 * process left goes with the next save: as long as a process lives, its folder is locked by the system.
 */

const configs = ['config.json', 'adapter_config.json'] // without which a folder is no checkpoint
const uuid = /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/
const within = '.save-'
const replaced = '.old'

/**
 * Writes files so that a new folder is seen complete or not at all, and one that exists as the old checkpoint, as the new one or, after
 * a kill while the files were exchanged, as one that readers refuse. Files of the old checkpoint that the new one does not have go;
 * the user's own files stay.
 *
 * @param owner what is written: see {@link staleFiles}
 * @param fill writes the files into the folder it is given
 * @returns the names of the old files that went without a successor
 * @throws LoopLMError INVALID_FILE naming what could not be written; the folder is as it was then
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
    // nothing is awaited before `fill`, so that it makes its first call before anyone else's next one
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
    const message = cause.message.replace(`${operation}: `, '').replaceAll(temporary, target) // the folder of the caller, not the one that is gone
    throw new LoopLMError(cause.code, message, { operation, shapes: cause.shapes, cause })
  } finally {
    if (lock !== undefined) closeSync(lock)
  }
  await removeLeft(target).catch(() => {}) // the new files are in place all the same
  return stale
}

async function removeUnlessReplacing(temporary: string): Promise<void> {
  if (!(await exists(temporary + replaced))) await rm(temporary, { recursive: true, force: true })
}

/** Gives a folder its name; false where another save has made a folder of that name in between. */
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

/** Moves the files of a folder to their places in another: all of them or, where one cannot be moved, none. Returns the stale ones. */
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
  const lock = await waitForFolder(target) // two saves at a time would mix their files
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
 * What to do about a folder whose files a process was exchanging when it died.
 *
 * @returns undefined where that is not so
 */
export async function interruptedSave(folder: string): Promise<string | undefined> {
  const names = await readdir(folder).catch(() => [])
  const old = names.find((name) => isLeft(name, within) && name.endsWith(replaced))
  if (old === undefined) return undefined
  const fresh = join(folder, old.slice(0, -replaced.length))
  return `saving a model into ${folder} was cut off half-way: save it again, or complete it by moving the files of ${fresh} into ${folder}`
}

/** Removes what saves of processes that have died left in a folder and beside it. */
async function removeLeft(target: string): Promise<void> {
  const parent = dirname(target)
  const left = [
    ...(await readdir(target)).filter((name) => isLeft(name, within)).map((name) => join(target, name)),
    ...(await readdir(parent)).filter((name) => isLeft(name, `${basename(target)}.tmp-`)).map((name) => join(parent, name)),
  ]
  for (const path of left) {
    const owner = path.endsWith(replaced) ? path.slice(0, -replaced.length) : path
    const lock = lockFolder(owner)
    if (lock === undefined && (await exists(owner))) continue // its process lives
    await rm(path, { recursive: true, force: true })
    if (lock !== undefined) closeSync(lock)
  }
}

function isLeft(name: string, prefix: string): boolean {
  return name.startsWith(prefix) && uuid.test(name.slice(prefix.length).replace(/\.old$/, ''))
}

/** The system's lock on a folder, which falls with this process; undefined where another has it, or nothing can be locked. */
function lockFolder(path: string): number | undefined {
  try {
    const { state, file } = openLock(path, 'r')
    if (state === 'locked') return file
    closeSync(file)
  } catch {
    // it is not there, or cannot be read
  }
  return undefined
}

/** As {@link lockFolder}, once whoever has the lock gives it back. */
async function waitForFolder(path: string): Promise<number | undefined> {
  for (;;) {
    const { state, file } = openLock(path, 'r')
    if (state === 'locked') return file
    closeSync(file)
    if (state === 'unsupported') return undefined
    await delay(10)
  }
}
