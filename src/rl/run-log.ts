import { join } from 'node:path'
import { toLoopLMError } from '../errors.js'
import { writeReport } from '../monitor/report.js'
import type { RunFolder, RunRecord } from '../monitor/run-folder.js'
import { memory } from '../tensor/devices.js'
import type { Metrics, SampledCompletion } from './events.js'

/** What a run writes down: nothing without a folder. */
export class RunLog {
  readonly #folder: RunFolder | undefined

  constructor(folder: RunFolder | undefined) {
    this.#folder = folder
  }

  /** @param completions those that are written down */
  async step(step: number, metrics: Metrics, completions: readonly SampledCompletion[]): Promise<void> {
    const records = completions.map((completion): RunRecord => ({ step, ...completion }))
    if (records.length > 0) await this.#folder?.completions(records)
    await this.#folder?.metrics({ type: 'step', step, ...metrics })
  }

  async evaluation(step: number, metrics: Metrics): Promise<void> {
    await this.#folder?.metrics({ type: 'eval', step, ...metrics })
  }

  /** What the run came to, also when it fails: report.html in its folder. */
  async finish(warn: (message: string) => void): Promise<void> {
    if (this.#folder === undefined) return
    const { path } = this.#folder
    const write = writeReport([path], join(path, 'report.html'))
    await write.catch((error) => warn(`no report was written: ${toLoopLMError(error).message}`))
  }
}

/** Resident memory of the process and memory on devices, in MiB. */
export function memoryMetrics(): Metrics {
  return { 'memory/resident': process.memoryUsage.rss() / 2 ** 20, 'memory/device': memory().bytes / 2 ** 20 }
}
