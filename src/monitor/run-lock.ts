import { closeSync, ftruncateSync, mkdirSync, readFileSync, rmdirSync, rmSync, writeSync } from 'node:fs'
import { hostname } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileError, LoopLMError } from '../errors.js'
import { isAt, type OpenLock, openLock } from '../files/lock.js'

/*
 * Two runs in one folder would mix their metrics and delete each other's unfinished checkpoints. Each run takes the system's
 * lock (flock) on run.lock. The system releases it when the process ends, even if it is killed. The process id in the file is
 * for people.
 */

const name = 'run.lock'

/**
 * Locks a run's folder, which is created if it does not exist.
 *
 * @param runDir the run's folder
 * @param warn called if the file system does not support locks
 * @returns a function that unlocks the folder; if the folder was created for the run and is still empty, it is removed
 * @throws LoopLMError INVALID_ARGUMENT naming the process that trains there, or INVALID_FILE if the folder cannot be written
 */
export function lockRun(runDir: string, warn: (message: string) => void = () => {}): () => void {
  const path = join(runDir, name)
  const made = makeFolder(runDir)
  const file = openLocked(runDir, path, warn)
  try {
    ftruncateSync(file)
    writeSync(file, `${process.pid} on ${hostname()}\n`)
  } catch {
    // the lock works even on a full disk
  }
  return () => {
    if (isAt(file, path)) rmSync(path, { force: true }) // removed while it is locked, so that no other process has it yet
    closeSync(file)
    if (made !== undefined) removeEmpty(runDir, made)
  }
}

/** Creates a folder and its parents, and returns the topmost one that did not exist. */
function makeFolder(path: string): string | undefined {
  try {
    return mkdirSync(path, { recursive: true })
  } catch (cause) {
    throw fileError(cause, 'write', path, 'run')
  }
}

/** Removes a folder and its parents up to `top`, as long as they are empty. */
function removeEmpty(path: string, top: string): void {
  try {
    for (let folder = resolve(path); ; folder = dirname(folder)) {
      rmdirSync(folder)
      if (folder === resolve(top)) return
    }
  } catch {
    // it contains a run
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
      // a run that just ended has removed its folder
      if ((cause as { code?: string }).code !== 'ENOENT') throw fileError(cause, 'write', runDir, 'run')
    }
  }
}
