import { join } from 'node:path'
import type { Logger } from '../logger.js'
import { writeReport } from '../report.js'
import type { RunFolder } from '../run-folder.js'

/** Writes report.html into the folder of a run when it ends, from what the JSON Lines logger has written. */
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
