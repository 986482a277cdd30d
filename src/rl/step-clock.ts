import type { Metrics } from './events.js'
import type { Ranks } from './ranks.js'

/** Measures the time of a step, and how much of it its processes spent on communication. */
export class StepClock {
  readonly #ranks: Ranks
  readonly #began = performance.now()
  readonly #waited: number
  readonly #sent: number

  constructor(ranks: Ranks) {
    this.#ranks = ranks
    this.#waited = ranks.waited
    this.#sent = ranks.world?.bytesSent ?? 0
  }

  /** @param work the size of the step's work */
  async read(work: { tokens: number; portions: readonly { imbalance: number }[] }): Promise<Metrics> {
    const { world } = this.#ranks
    const seconds = (performance.now() - this.#began) / 1000
    if (world === undefined) return { step_time: seconds, tokens_per_second: work.tokens / seconds }
    const own = { seconds, waited: this.#ranks.waited - this.#waited, sent: world.bytesSent - this.#sent }
    const all = await this.#ranks.all('step times', () => own)
    const mean = (of: (one: typeof own) => number) => all.reduce((sum, one) => sum + of(one), 0) / all.length
    const { portions } = work
    return {
      step_time: all[0]!.seconds,
      tokens_per_second: work.tokens / all[0]!.seconds,
      'parallel/step_time_max': all.reduce((most, one) => Math.max(most, one.seconds), 0),
      'parallel/wait_share': mean((one) => one.waited / one.seconds),
      'parallel/imbalance': portions.reduce((sum, { imbalance }) => sum + imbalance, 0) / Math.max(1, portions.length),
      'parallel/bytes': mean((one) => one.sent),
    }
  }
}
