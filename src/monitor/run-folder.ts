import { type FileHandle, mkdir, open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { stringify } from 'yaml'
import { readLines } from '../data/lines.js'
import { fileError, LoopLMError } from '../errors.js'
import { exists, replaceFile } from '../files/write.js'

/** The files of a run's folder to which lines are appended, each with its `step`. */
export const files = { metrics: 'metrics.jsonl', completions: 'completions.jsonl', notes: 'notes.jsonl' } as const

/** A run's folder: config.yaml, checkpoints, and the files of loggers. If it vanishes, it is created again. */
export class RunFolder {
  readonly path: string
  readonly #whole: Map<string, string> // texts of the files that are written as a whole, by name
  readonly #warn: (message: string) => void

  private constructor(path: string, config: string, warn: (message: string) => void) {
    this.path = path
    this.#whole = new Map([['config.yaml', config]])
    this.#warn = warn
  }

  /**
   * Opens a run's folder.
   *
   * @param path created if it does not exist
   * @param options.config written to config.yaml unless that exists, or in any case with `options.replace`
   * @param options.warn receives warnings for the user
   * @throws LoopLMError INVALID_FILE if the folder cannot be written, before anything is trained
   */
  static async open(
    path: string,
    options: { config: Record<string, unknown>; replace?: boolean; warn?: (message: string) => void },
  ): Promise<RunFolder> {
    const { replace = false, warn = () => {} } = options
    const folder = new RunFolder(path, stringify(options.config), warn)
    await requireFiles(path)
    await folder.#create(replace || !(await exists(folder.pathOf('config.yaml'))))
    return folder
  }

  /** Whether a folder contains a run, even one that has just begun. */
  static async holdsRun(path: string): Promise<boolean> {
    const found = [files.metrics, 'config.yaml', 'checkpoints'].map((name) => stat(join(path, name)).catch(() => undefined))
    return (await Promise.all(found)).some((entry) => entry !== undefined)
  }

  /**
   * Rejects a folder that already contains a run.
   *
   * @throws LoopLMError INVALID_ARGUMENT
   */
  static async requireNew(path: string): Promise<void> {
    const size = await stat(join(path, files.metrics)).then(
      (found) => found.size,
      () => 0,
    )
    const checkpoints = await readdir(join(path, 'checkpoints')).catch(() => [])
    if (size === 0 && checkpoints.length === 0) return
    const message = `runDir ${path} already holds a run; continue it with resume (--resume) or choose another folder`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'run' })
  }

  /** The path of a file in the folder. */
  pathOf(name: string): string {
    return join(this.path, name)
  }

  /**
   * Keeps the lines of a file up to a step. Returns the number of damaged lines, not counting an incomplete last line after a
   * crash.
   */
  keep(name: string, step: number): Promise<number> {
    return truncate(this.pathOf(name), step)
  }

  /** Replaces a whole file. It is written again if the folder vanishes. */
  replace(name: string, text: string): Promise<void> {
    this.#whole.set(name, text)
    return replaceFile(this.pathOf(name), text, 'run')
  }

  /** Waits until appended data is on the disk, so that no checkpoint is newer than its metrics. */
  async sync(names: readonly string[]): Promise<void> {
    for (const name of names) await syncFile(this.pathOf(name))
  }

  /** Creates the folder again if it vanished. The sign of that is config.yaml: anyone who writes a file creates the folder. */
  async ensure(): Promise<void> {
    if (await exists(this.pathOf('config.yaml'))) return
    await this.#create(true)
    this.#warn(
      `the run folder ${this.path} or its config.yaml has vanished and was made again; other files that it held are lost`,
    )
  }

  /**
   * Appends the whole text or, on a full disk, nothing.
   *
   * @param head written first if the file is empty
   */
  async append(name: string, text: string | Uint8Array, head?: Uint8Array): Promise<void> {
    const path = this.pathOf(name)
    await this.ensure()
    try {
      await appendWhole(path, text, head)
    } catch (cause) {
      throw fileError(cause, 'write', path, 'run')
    }
  }

  /** @param write whether to write the files that are written as a whole; false: only the folder */
  async #create(write: boolean): Promise<void> {
    try {
      await mkdir(this.path, { recursive: true })
      if (write) for (const [name, text] of this.#whole) await replaceFile(this.pathOf(name), text, 'run')
    } catch (cause) {
      throw fileError(cause, 'write', this.path, 'run')
    }
  }
}

/**
 * Appends the whole text or, on a full disk, nothing, because an incomplete line would damage the next one.
 *
 * @param head written first if the file is empty
 */
async function appendWhole(path: string, text: string | Uint8Array, head?: Uint8Array): Promise<void> {
  const file = await open(path, 'a')
  try {
    const { size } = await file.stat()
    const all = size === 0 && head !== undefined ? Buffer.concat([head, Buffer.from(text)]) : text
    await file.appendFile(all).catch(async (error) => {
      await file.truncate(size).catch(() => {}) // the first error is the one to report
      throw error
    })
  } finally {
    await file.close()
  }
}

/** Rejects anything but regular files, because a pipe would block the run. */
async function requireFiles(path: string): Promise<void> {
  for (const name of [...Object.values(files), 'config.yaml']) {
    const found = await stat(join(path, name)).catch(() => undefined)
    if (found === undefined || found.isFile()) continue
    throw new LoopLMError('INVALID_FILE', `cannot write ${join(path, name)}: it is not a regular file`, { operation: 'run' })
  }
}

const lineEnd = Buffer.from('\n')

async function truncate(path: string, step: number): Promise<number> {
  if ((await stat(path).catch(() => undefined)) === undefined) return 0
  let damaged = 0
  let lastDamaged = false
  const copy = async (output: FileHandle) => {
    for await (const lines of readLines(path, { maxRowBytes: Number.POSITIVE_INFINITY, operation: 'run' })) {
      const kept: Uint8Array[] = []
      for (const { bytes } of lines) {
        const text = Buffer.from(bytes).toString()
        const found = stepOf(text)
        lastDamaged = found === undefined && text.trim() !== ''
        if (lastDamaged) damaged++
        if (found !== undefined && found <= step) kept.push(bytes, lineEnd)
      }
      await output.appendFile(Buffer.concat(kept))
    }
  }
  await replaceFile(path, copy, 'run')
  return damaged - Number(lastDamaged)
}

function stepOf(line: string): number | undefined {
  try {
    const record: unknown = JSON.parse(line)
    const step = (record as { step?: unknown } | null)?.step
    return typeof step === 'number' ? step : undefined
  } catch {
    return undefined
  }
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r').catch(() => undefined)
  await file?.sync().finally(() => file.close())
}
