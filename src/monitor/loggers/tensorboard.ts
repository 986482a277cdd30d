import type { LoggedRun, Logger } from '../logger.js'
import type { RunFolder } from '../run-folder.js'
import { eventFileHead, scalarEvent } from '../tensorboard.js'

/** Writes the metrics of a run to a TensorBoard event file in its folder. */
export class TensorBoardLogger implements Logger {
  readonly name = 'tensorboard'
  readonly #folder: RunFolder
  /** A new file whenever the run is opened. A file that a crash cut off stays. */
  readonly #file = `events.out.tfevents.${Math.floor(Date.now() / 1000)}.looplm.${process.pid}`
  #firstStep = 0

  constructor(folder: RunFolder) {
    this.#folder = folder
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
