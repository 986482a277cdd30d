import { whenAborted } from '../abort.js'
import type { TokenSequence } from '../model/types.js'

interface Job<Result> {
  sequence: TokenSequence
  settings: string
  resolve(result: Result): void
  reject(error: unknown): void
}

/**
 * Batches sequences of all requests that wait for the same computation. One batch runs at a time. It holds the sequences that
 * arrived first and others with the same settings, up to a number of tokens.
 */
export class Batches<Settings, Result> {
  readonly #compute: (sequences: TokenSequence[], settings: Settings) => Promise<readonly Result[]>
  readonly #maxTokens: number
  readonly #waiting = new Set<Job<Result>>()
  #running = false

  /**
   * @param maxTokens the most tokens of a batch (a single longer sequence is allowed); generation waits while it runs
   * @param compute returns one result per sequence
   */
  constructor(maxTokens: number, compute: (sequences: TokenSequence[], settings: Settings) => Promise<readonly Result[]>) {
    this.#maxTokens = maxTokens
    this.#compute = compute
  }

  /** @returns the result of the sequence; rejects with the signal's reason if it fires */
  add(sequence: TokenSequence, settings: Settings, signal: AbortSignal): Promise<Result> {
    return new Promise((resolve, reject) => {
      const unwatch = whenAborted(signal, () => {
        this.#waiting.delete(job)
        reject(signal.reason)
      })
      const job: Job<Result> = {
        sequence,
        settings: JSON.stringify(settings),
        resolve: (result) => {
          unwatch()
          resolve(result)
        },
        reject: (error) => {
          unwatch()
          reject(error)
        },
      }
      if (signal.aborted) return
      this.#waiting.add(job)
      queueMicrotask(() => this.#drive()) // sequences that are added in the same tick run together
    })
  }

  async #drive(): Promise<void> {
    if (this.#running) return
    this.#running = true
    while (this.#waiting.size > 0) await this.#run(this.#take())
    this.#running = false
  }

  #take(): Job<Result>[] {
    const [first] = this.#waiting
    const batch: Job<Result>[] = []
    let tokens = 0
    for (const job of this.#waiting) {
      if (job.settings !== first!.settings) continue
      if (batch.length > 0 && tokens + job.sequence.length > this.#maxTokens) break
      batch.push(job)
      tokens += job.sequence.length
    }
    for (const job of batch) this.#waiting.delete(job)
    return batch
  }

  async #run(batch: Job<Result>[]): Promise<void> {
    try {
      const results = await this.#compute(
        batch.map(({ sequence }) => sequence),
        JSON.parse(batch[0]!.settings) as Settings,
      )
      for (const [i, job] of batch.entries()) job.resolve(results[i]!)
    } catch (error) {
      if (batch.length === 1) batch[0]!.reject(error)
      else for (const job of batch) await this.#run([job]) // run them one by one, so that one failure does not fail the others
    }
  }
}
