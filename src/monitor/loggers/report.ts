import { join } from 'node:path'
import type { Logger } from '../logger.js'
import { writeReport } from '../report.js'
import type { RunFolder } from '../run-folder.js'

/** Writes report.html into the run's folder at its end, from the files of the JSON Lines logger. */
export class ReportLogger implements Logger {
  readonly name = 'report'
  readonly #folder: RunFolder

  constructor(folder: RunFolder) {
    this.#folder = folder
  }

  log(): void {}

  async finish(): Promise<void> {
    const { path } = this.#folder
    await writeReport([path], join(path, 'report.html'))
  }
}
