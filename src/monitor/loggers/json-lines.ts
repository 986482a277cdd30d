import type { LoggedCompletion, LoggedRun, Logger, RunNote, RunOutcome } from '../logger.js'
import { files, type RunFolder } from '../run-folder.js'

/** The fields of a line of metrics.jsonl that are not metrics. */
export const lineFields = ['type', 'step', 'time'] as const

/**
 * Writes metrics.jsonl, completions.jsonl, notes.jsonl and run.json of a run folder. Every line is written immediately, so that
 * a crash loses none. `looplm report` and `looplm watch` read these files.
 */
export class JsonLinesLogger implements Logger {
  readonly name = 'jsonl'
  readonly #folder: RunFolder
  #step = 0 // the newest step that was logged

  constructor(folder: RunFolder) {
    this.#folder = folder
  }

  /** Drops lines after the step that the run resumes from, and lines that a crash has damaged. */
  async start(config: Readonly<Record<string, unknown>>, { step, facts, name: _, ...run }: LoggedRun): Promise<void> {
    const folder = this.#folder
    for (const name of Object.values(files)) {
      const damaged = await folder.keep(name, step)
      if (damaged > 0) run.warn(`${folder.pathOf(name)}: dropped ${damaged} damaged ${damaged === 1 ? 'line' : 'lines'}`)
    }
    await folder.replace('run.json', `${JSON.stringify({ ...config, ...facts }, null, 2)}\n`)
    await this.#append('metrics') // a folder that cannot be written is rejected before the first step
    await this.#append('notes', { type: step < 0 ? 'begin' : 'resume', step: Math.max(step, 0), time: now() })
  }

  async log(step: number, metrics: Readonly<Record<string, number>>, type: 'step' | 'eval'): Promise<void> {
    await this.#append('metrics', { type, step, time: now(), ...metrics })
  }

  async completions(step: number, rows: readonly LoggedCompletion[]): Promise<void> {
    await this.#append('completions', ...rows.map((row) => ({ step, ...row })))
  }

  async note(step: number, note: RunNote): Promise<void> {
    await this.#append('notes', { ...note, step, time: now() })
  }

  async flush(): Promise<void> {
    await this.#folder.sync(Object.values(files))
  }

  async finish({ status }: RunOutcome): Promise<void> {
    await this.#append('notes', { type: 'end', step: this.#step, time: now(), status })
  }

  async #append(file: keyof typeof files, ...records: { step: number; [field: string]: unknown }[]): Promise<void> {
    for (const { step } of records) this.#step = Math.max(this.#step, step)
    await this.#folder.append(files[file], records.map((record) => `${JSON.stringify(record)}\n`).join(''))
  }
}

function now(): string {
  return new Date().toISOString()
}
