import { getHeapStatistics } from 'node:v8'
import { LoopLMError } from '../errors.js'
import { Random } from './random.js'

const maxDraw = 2 ** 24
const heapPerRow = 512 // estimated bytes per row: a short row with its text, its tokens and its entries in a few lists

/**
 * Rejects more rows or problems at a time than arrays or the JavaScript heap can hold. Otherwise the process would crash.
 *
 * @throws LoopLMError INVALID_ARGUMENT, OUT_OF_MEMORY
 */
export function checkDraw(count: number, operation: string): void {
  const remedy = 'lower the option that says how many (batchSize, promptsPerStep, evalProblems, --problems)'
  if (!Number.isInteger(count) || count < 0 || count > maxDraw) {
    const message = `at most ${maxDraw} rows or problems are read at a time, not ${count}; ${remedy}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation })
  }
  if (count <= 2 ** 16) return
  const { heap_size_limit: limit, used_heap_size: used } = getHeapStatistics()
  if (count * heapPerRow <= limit - used) return
  const mebibytes = (bytes: number) => `${Math.ceil(bytes / 2 ** 20)} MiB`
  const message = `${count} rows or problems take at least ${mebibytes(count * heapPerRow)}, the heap has ${mebibytes(limit - used)} left; ${remedy}`
  throw new LoopLMError('OUT_OF_MEMORY', `${message}, or raise the limit with node --max-old-space-size`, { operation })
}

/** The position of a {@link DatasetSampler}. It is plain JSON and stored in checkpoints. */
export interface SamplerState {
  /** Seed of the order. */
  seed: number
  /** Number of rows drawn so far, over all epochs. */
  index: number
}

/**
 * Endless, reproducible passes over a dataset: every epoch visits each row once, in an order that only depends on the seed and
 * the epoch. A sampler restored from a {@link DatasetSampler.state} continues exactly where the other stopped.
 *
 * @example
 * ```ts
 * const sampler = new DatasetSampler(dataset, { seed: 1 })
 * const batch = sampler.take(32)
 * const resumed = new DatasetSampler(dataset, sampler.state)
 * ```
 */
export class DatasetSampler<Row> {
  readonly seed: number
  readonly #rows: readonly Row[]
  #index: number
  #order: Uint32Array = new Uint32Array(0)
  #orderEpoch = -1

  /**
   * @param rows at least one row
   * @param state a seed for a new sampler, or another sampler's state to resume from
   * @throws LoopLMError INVALID_ARGUMENT
   */
  constructor(rows: readonly Row[], state: { seed: number; index?: number }) {
    const { seed, index = 0 } = state
    if (rows.length === 0) {
      throw new LoopLMError('INVALID_ARGUMENT', 'the dataset has no rows', { operation: 'DatasetSampler' })
    }
    if (!Number.isSafeInteger(index) || index < 0) {
      const message = `index must be a natural number, got ${index}`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'DatasetSampler' })
    }
    this.seed = seed
    this.#rows = rows
    this.#index = index
    this.#shuffle()
  }

  /** Seed and number of rows drawn. A sampler resumes from these two. */
  get state(): SamplerState {
    return { seed: this.seed, index: this.#index }
  }

  /** Number of completed passes. */
  get epoch(): number {
    return Math.floor(this.#index / this.#rows.length)
  }

  /** The next row. */
  next(): Row {
    if (this.#orderEpoch !== this.epoch) this.#shuffle()
    const row = this.#rows[this.#order[this.#index % this.#rows.length]!]!
    this.#index++
    return row
  }

  /**
   * The next `count` rows. A batch may span two epochs.
   * @throws LoopLMError INVALID_ARGUMENT for more than 2^24
   */
  take(count: number): Row[] {
    checkDraw(count, 'DatasetSampler.take')
    return Array.from({ length: count }, () => this.next())
  }

  #shuffle(): void {
    const order = Uint32Array.from(this.#rows.keys())
    this.#order = new Random(this.seed, this.epoch).shuffle(order)
    this.#orderEpoch = this.epoch
  }
}
