import { closeSync, ftruncateSync, mkdirSync, readFileSync, rmdirSync, rmSync, writeSync } from 'node:fs'
import { hostname } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileError, LoopLMError } from '../errors.js'
import { isAt, type OpenLock, openLock } from '../files/lock.js'

/*
 * Two trainings in one folder would mix their metrics and take each other's half-written checkpoints away. The lock is the system's
 * (flock) on run.lock, which falls with the process that holds it, however that ends: what a kill leaves is a file without a lock. The
 * process in the file is for people.
 */

const name = 'run.lock'

/**
 * Locks a run's folder, which is made where it does not exist.
 *
 * @param runDir the run's folder
 * @param warn told where a file system cannot lock
 * @returns gives the folder free again; one that was made for it and is empty still goes
 * @throws LoopLMError INVALID_ARGUMENT naming the process that trains there, or INVALID_FILE when the folder cannot be written
 */
export function lockRun(runDir: string, warn: (message: string) => void = () => {}): () => void {
  const path = join(runDir, name)
  const made = makeFolder(runDir)
  const file = openLocked(runDir, path, warn)
  try {
    ftruncateSync(file)
    writeSync(file, `${process.pid} on ${hostname()}\n`)
  } catch {
    // on a full disk the lock holds all the same
  }
  return () => {
    if (isAt(file, path)) rmSync(path, { force: true }) // while it is locked: nobody has it yet
    closeSync(file)
    if (made !== undefined) removeEmpty(runDir, made)
  }
}

/** Makes a folder and those above it, and returns the first of them that was not there. */
function makeFolder(path: string): string | undefined {
  try {
    return mkdirSync(path, { recursive: true })
  } catch (cause) {
    throw fileError(cause, 'write', path, 'run')
  }
}

/** Removes a folder and those above it up to `top`, as far as they are empty. */
function removeEmpty(path: string, top: string): void {
  try {
    for (let folder = resolve(path); ; folder = dirname(folder)) {
      rmdirSync(folder)
      if (folder === resolve(top)) return
    }
  } catch {
    // a run is in it
  }
}

function openLocked(runDir: string, path: string, warn: (message: string) => void): number {
  const lock = openIn(runDir, path)
  const { file } = lock
  if (lock.state === 'unsupported') warn(`${runDir} cannot be locked (${lock.why}): see to it that no other process trains there`)
  if (lock.state !== 'held') return file
  const holder = readFileSync(file, 'utf8').trim()
  closeSync(file)
  const who = holder === '' ? 'another process' : `process ${holder}`
  const own = holder.startsWith(`${process.pid} on ${hostname()}`)
    ? '. That is this process: end its run (leave its loop with break, call return() or dispose of its trainer)'
    : ''
  const message = `runDir ${runDir} is locked: ${who} trains there; wait for it or stop it, or choose another folder${own}`
  throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'run' })
}

function openIn(runDir: string, path: string): OpenLock {
  for (;;) {
    makeFolder(runDir)
    try {
      return openLock(path, 'a+')
    } catch (cause) {
      // a run that ended has just removed its folder
      if ((cause as { code?: string }).code !== 'ENOENT') throw fileError(cause, 'write', runDir, 'run')
    }
  }
}
