import type { LoggedRun, Logger } from '../logger.js'
import type { RunFolder } from '../run-folder.js'
import { eventFileHead, scalarEvent } from '../tensorboard.js'

let opened = 0 // files that this process has named

/** Writes the metrics of a run to a TensorBoard event file in its folder. */
export class TensorBoardLogger implements Logger {
  readonly name = 'tensorboard'
  readonly #folder: RunFolder
  /**
   * A new file whenever the run is opened. A file that a crash cut off stays. TensorBoard reads the files in the order of their
   * names.
   */
  readonly #file: string
  #firstStep = 0

  constructor(folder: RunFolder) {
    this.#folder = folder
    const number = String(opened++).padStart(6, '0')
    this.#file = `events.out.tfevents.${Math.floor(Date.now() / 1000)}.looplm.${process.pid}.${number}`
  }

  start(_config: unknown, { step }: Pick<LoggedRun, 'step'>): void {
    this.#firstStep = step + 1
  }

  async log(step: number, metrics: Readonly<Record<string, number>>): Promise<void> {
    const seconds = Date.now() / 1000
    await this.#folder.append(this.#file, scalarEvent(step, metrics, seconds), eventFileHead(this.#firstStep, seconds))
  }

  async flush(): Promise<void> {
    await this.#folder.sync([this.#file])
  }
}
