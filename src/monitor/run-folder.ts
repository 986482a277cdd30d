import { appendFile, mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { stringify } from 'yaml'
import { LoopLMError } from '../errors.js'

/** A line of metrics.jsonl or completions.jsonl. */
export interface RunRecord {
  step: number
  [field: string]: unknown
}

/** The files of a run's folder that grow by lines. */
export const files = { metrics: 'metrics.jsonl', completions: 'completions.jsonl' } as const

/**
 * The record of a run: metrics.jsonl (the truth), completions.jsonl and config.yaml in one folder. Every line is written at once,
 * so that a crash loses none.
 */
export class RunFolder {
  readonly path: string

  private constructor(path: string) {
    this.path = path
  }

  /**
   * Opens a run's folder. A resumed run drops the lines of later steps than its checkpoint.
   *
   * @param path created when it does not exist
   * @param options.config written to config.yaml unless that exists
   * @param options.step steps already made; 0 begins a new run
   * @throws LoopLMError INVALID_ARGUMENT when a new run would overwrite another's metrics
   */
  static async open(path: string, options: { config: Record<string, unknown>; step: number }): Promise<RunFolder> {
    await mkdir(path, { recursive: true })
    for (const name of Object.values(files)) await truncate(join(path, name), options.step)
    await writeFile(join(path, 'config.yaml'), stringify(options.config), { flag: 'wx' }).catch(ignoreExisting)
    return new RunFolder(path)
  }

  /**
   * Refuses a folder that already holds a run.
   *
   * @throws LoopLMError INVALID_ARGUMENT
   */
  static async requireNew(path: string): Promise<void> {
    const text = await readFile(join(path, files.metrics), 'utf8').catch(() => '')
    if (text === '') return
    const message = `runDir ${path} already holds a run; continue it with resume (--resume) or choose another folder`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'run' })
  }

  /** Appends a line to metrics.jsonl. */
  async metrics(record: RunRecord): Promise<void> {
    await appendFile(join(this.path, files.metrics), `${JSON.stringify(record)}\n`)
  }

  /** Appends lines to completions.jsonl. */
  async completions(records: readonly RunRecord[]): Promise<void> {
    const lines = records.map((record) => `${JSON.stringify(record)}\n`)
    await appendFile(join(this.path, files.completions), lines.join(''))
  }
}

/** Keeps the lines up to a step; half a line that a crash left at the end goes too. */
async function truncate(path: string, step: number): Promise<void> {
  const text = await readFile(path, 'utf8').catch(() => undefined)
  if (text === undefined) return
  const kept = text.split('\n').filter((line) => {
    try {
      return (JSON.parse(line) as RunRecord).step <= step
    } catch {
      return false
    }
  })
  await writeFile(`${path}.tmp`, kept.map((line) => `${line}\n`).join(''))
  await rename(`${path}.tmp`, path)
}

function ignoreExisting(error: { code?: string }): void {
  if (error.code !== 'EEXIST') throw error
}
