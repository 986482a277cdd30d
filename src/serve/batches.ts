import { whenAborted } from '../abort.js'
import type { TokenSequence } from '../model/types.js'

interface Job<Result> {
  sequence: TokenSequence
  settings: string
  resolve(result: Result): void
  reject(error: unknown): void
}

/**
 * Puts sequences of all requests together that wait for the same computation: one batch runs at a time, of the sequences that came first
 * and of others with their settings, up to a number of tokens.
 */
export class Batches<Settings, Result> {
  readonly #compute: (sequences: TokenSequence[], settings: Settings) => Promise<readonly Result[]>
  readonly #maxTokens: number
  readonly #waiting = new Set<Job<Result>>()
  #running = false

  /**
   * @param maxTokens of a batch, unless one sequence has more: answers under way wait for it
   * @param compute one result per sequence
   */
  constructor(maxTokens: number, compute: (sequences: TokenSequence[], settings: Settings) => Promise<readonly Result[]>) {
    this.#maxTokens = maxTokens
    this.#compute = compute
  }

  /** @returns the result of the sequence; rejects with the signal's reason when it fires */
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
      queueMicrotask(() => this.#drive()) // what is added in one go runs together
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
      else for (const job of batch) await this.#run([job]) // one that fails does not fail the others
    }
  }
}
