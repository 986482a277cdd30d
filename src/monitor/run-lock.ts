import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { hostname } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileError, LoopLMError } from '../errors.js'
import { native } from '../native.js'

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
  for (;;) {
    let file: number
    try {
      mkdirSync(runDir, { recursive: true })
      file = openSync(path, 'a+')
    } catch (cause) {
      throw fileError(cause, 'write', runDir, 'run')
    }
    let free = true
    try {
      free = native().lockFile(file)
    } catch (cause) {
      warn(`${runDir} cannot be locked (${(cause as Error).message}): see to it that no other process trains there`)
      return file
    }
    if (free && isAt(file, path)) return file
    const holder = free ? '' : readFileSync(file, 'utf8').trim()
    closeSync(file)
    if (free) continue // the holder removed it in between
    const who = holder === '' ? 'another process' : `process ${holder}`
    const own = holder.startsWith(`${process.pid} on ${hostname()}`)
      ? '. That is this process: end its run (leave its loop with break, call return() or dispose of its trainer)'
      : ''
    const message = `runDir ${runDir} is locked: ${who} trains there; wait for it or stop it, or choose another folder${own}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'run' })
  }
}

/** Whether an open file is still the one of that path. */
function isAt(file: number, path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(file).ino
}
