import { createReadStream } from 'node:fs'
import { type FileHandle, mkdir, open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { stringify } from 'yaml'
import { fileError, LoopLMError } from '../errors.js'
import { exists, replaceFile } from '../files/write.js'

/** The files of a run's folder that grow by lines, each with its `step`. */
export const files = { metrics: 'metrics.jsonl', completions: 'completions.jsonl', notes: 'notes.jsonl' } as const

/** A run's folder: config.yaml, checkpoints, and what loggers write. Where it vanishes, it is made again. */
export class RunFolder {
  readonly path: string
  readonly #config: string
  readonly #warn: (message: string) => void

  private constructor(path: string, config: string, warn: (message: string) => void) {
    this.path = path
    this.#config = config
    this.#warn = warn
  }

  /**
   * Opens a run's folder.
   *
   * @param path created when it does not exist
   * @param options.config written to config.yaml unless that exists; with `options.replace` in any case
   * @param options.warn receives what the user should know
   * @throws LoopLMError INVALID_FILE when the folder cannot be written, before anything is trained
   */
  static async open(
    path: string,
    options: { config: Record<string, unknown>; replace?: boolean; warn?: (message: string) => void },
  ): Promise<RunFolder> {
    const { replace = false, warn = () => {} } = options
    const folder = new RunFolder(path, stringify(options.config), warn)
    await requireFiles(path)
    await folder.#create(replace)
    return folder
  }

  /** Whether a folder holds a run, be it one that has just begun. */
  static async holdsRun(path: string): Promise<boolean> {
    const found = [files.metrics, 'config.yaml', 'checkpoints'].map((name) => stat(join(path, name)).catch(() => undefined))
    return (await Promise.all(found)).some((entry) => entry !== undefined)
  }

  /**
   * Refuses a folder that already holds a run.
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

  /** Where a file of the folder lies. */
  pathOf(name: string): string {
    return join(this.path, name)
  }

  /** Keeps the lines of a file up to a step; returns how many lines were damaged, apart from half a line that a crash left at its end. */
  keep(name: string, step: number): Promise<number> {
    return truncate(this.pathOf(name), step)
  }

  /** Replaces a whole file. */
  replace(name: string, text: string): Promise<void> {
    return replaceFile(this.pathOf(name), text, 'run')
  }

  /** Waits until what was appended to files is on the disk, so that no checkpoint is newer than its metrics. */
  async sync(names: readonly string[]): Promise<void> {
    for (const name of names) await syncFile(this.pathOf(name))
  }

  /**
   * Appends all of a text or, on a full disk, nothing.
   *
   * @param head what an empty file begins with
   */
  async append(name: string, text: string | Uint8Array, head?: Uint8Array): Promise<void> {
    const path = this.pathOf(name)
    try {
      await appendWhole(path, text, head).catch(async (error) => {
        if (error.code !== 'ENOENT') throw error
        await this.#create(false)
        this.#warn(`the run folder ${this.path} has vanished and was made again; what it held is lost`)
        await appendWhole(path, text, head)
      })
    } catch (cause) {
      throw fileError(cause, 'write', path, 'run')
    }
  }

  /** The folder and its config.yaml, where they do not exist or the latter is to be replaced. */
  async #create(replace: boolean): Promise<void> {
    const path = join(this.path, 'config.yaml')
    try {
      await mkdir(this.path, { recursive: true })
      if (replace || !(await exists(path))) await replaceFile(path, this.#config, 'run')
    } catch (cause) {
      throw fileError(cause, 'write', this.path, 'run')
    }
  }
}

/**
 * Appends all of a text or, on a full disk, nothing: half a line would spoil the next one.
 *
 * @param head what an empty file begins with
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

/** A pipe in the place of a file would hold the run up. */
async function requireFiles(path: string): Promise<void> {
  for (const name of [...Object.values(files), 'config.yaml']) {
    const found = await stat(join(path, name)).catch(() => undefined)
    if (found === undefined || found.isFile()) continue
    throw new LoopLMError('INVALID_FILE', `cannot write ${join(path, name)}: it is not a regular file`, { operation: 'run' })
  }
}

async function truncate(path: string, step: number): Promise<number> {
  if ((await stat(path).catch(() => undefined)) === undefined) return 0
  let damaged = 0
  let lastDamaged = false
  const copy = async (output: FileHandle) => {
    let kept: string[] = []
    for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) {
      const found = stepOf(line)
      lastDamaged = found === undefined && line.trim() !== ''
      if (lastDamaged) damaged++
      if (found !== undefined && found <= step) kept.push(`${line}\n`)
      if (kept.length < 1024) continue
      await output.appendFile(kept.join(''))
      kept = []
    }
    await output.appendFile(kept.join(''))
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
