import { createHash } from 'node:crypto'
import { stat } from 'node:fs/promises'
import { LoopLMError } from '../errors.js'
import { onDisk } from '../files/write.js'
import { checkNumber } from '../validation/arguments.js'
import { type DatasetOptions, type Example, nameRow, openFiles, readExamples } from './dataset.js'
import type { Format, Place } from './formats/format.js'
import { Random } from './random.js'
import { checkDraw, type SamplerState } from './sampler.js'

/** How a {@link DatasetStream} is opened. */
export interface DatasetStreamOptions extends DatasetOptions {
  /** Seed of the order of the rows. Defaults to 0. */
  seed?: number | undefined
  /** How many rows are shuffled together and kept in memory. Defaults to as many as take 32 MiB as JSON. */
  shuffleBuffer?: number | undefined
  /**
   * Called with every row and its JSON while the dataset is opened, and awaited. If it throws, `open` fails.
   * @internal
   */
  onRow?: ((row: Example, json: string) => void | Promise<void>) | undefined
}

/** A file of the dataset. */
interface Shard {
  path: string
  rows: number
  /** Positions of the rows 0, {@link rowsPerPlace}, 2 · {@link rowsPerPlace}, … */
  places: Place[]
  /** Its size in bytes when it was opened. */
  size: number
  changed: number
}

/** A part of a shard. */
interface Span {
  shard: Shard
  begin: number
  end: number
}

const operation = 'dataset'
const rowsPerPlace = 1024
const bufferBytes = 2 ** 25
const shardStream = 2 ** 32 - 1 // substream for the order of the shards; the windows have the others

/**
 * A dataset that does not need to fit into memory. It repeats its rows in endless passes. Each pass shuffles the shards, and
 * the rows within every window of `shuffleBuffer` rows. The order only depends on the seed, so a stream resumes at any point
 * without replaying rows. A dataset that fits into one window has the same order as a dataset in memory.
 *
 * @example
 * ```ts
 * const stream = await DatasetStream.open('shards', { columns: { prompt: 'question' }, seed: 1, shuffleBuffer: 5000 })
 * const first = await stream.take(0, 32)
 * const state = stream.state // { seed: 1, index: 32 }, plain JSON
 * const next = await stream.take(state.index, 32)
 * ```
 */
export class DatasetStream {
  /** Rows per pass. */
  readonly rows: number
  /** Equal if the rows are equal, in any files; also equal to that of the same rows in memory. */
  readonly fingerprint: string
  readonly #shards: readonly Shard[]
  readonly #format: Format
  readonly #options: DatasetOptions
  readonly #seed: number
  readonly #buffer: number
  #index = 0
  #window: { pass: number; window: number; rows: Promise<Example[]> } | undefined

  private constructor(
    shards: readonly Shard[],
    fingerprint: string,
    format: Format,
    options: DatasetOptions,
    seed: number,
    buffer: number,
  ) {
    this.#shards = shards
    this.rows = rowsOf(shards)
    this.fingerprint = fingerprint
    this.#format = format
    this.#options = options
    this.#seed = seed
    this.#buffer = buffer
  }

  /**
   * Reads all rows once, to check and count them, so that invalid rows are found here and not in the middle of a run.
   *
   * @param source a file or a folder
   * @param options `columns` must compute the same row every time
   * @throws LoopLMError as {@link loadDataset}
   */
  static async open(source: string, options: DatasetStreamOptions = {}): Promise<DatasetStream> {
    const { seed = 0, shuffleBuffer, onRow, ...reading } = options
    const { paths, format } = await openFiles(source, reading)
    checkNumber(seed, 'seed', { min: 0, below: 2 ** 53, integer: true }, operation)
    if (shuffleBuffer !== undefined) {
      checkNumber(shuffleBuffer, 'shuffleBuffer', { min: 1, max: 2 ** 24, integer: true }, operation)
    }
    const hash = createHash('sha256')
    let bytes = 0
    const shards: Shard[] = []
    for (const path of paths) {
      const { size, mtimeMs } = await onDisk('read', path, stat(path), operation)
      const shard: Shard = { path, rows: 0, places: [], size, changed: mtimeMs }
      for await (const examples of readExamples(path, format, reading)) {
        for (const { example, row, line, byte } of examples) {
          if (row % rowsPerPlace === 0) shard.places.push({ row, line, byte })
          const json = JSON.stringify(example)
          hash.update(`${json}\n`)
          bytes += json.length
          if (onRow === undefined) continue
          nameRow(example, path, format, { row, line, byte })
          await onRow(example, json)
        }
        shard.rows += examples.length
      }
      if (shard.rows > 0) shards.push(shard)
    }
    if (shards.length === 0) throw new LoopLMError('INVALID_FILE', `${source} has no rows`, { operation })
    const fingerprint = hash.digest('hex').slice(0, 16)
    const rows = rowsOf(shards)
    const buffer = shuffleBuffer ?? Math.max(1, Math.floor(rows * Math.min(1, bufferBytes / bytes)))
    return new DatasetStream(shards, fingerprint, format, reading, seed, Math.min(buffer, rows))
  }

  /** What determines the order of the rows. */
  get order(): {
    /** Seed of the order. */
    seed: number
    /** How many rows are shuffled together. */
    shuffleBuffer: number
  } {
    return { seed: this.#seed, shuffleBuffer: this.#buffer }
  }

  /** Seed and number of rows taken. A stream resumes from these two. */
  get state(): SamplerState {
    return { seed: this.#seed, index: this.#index }
  }

  /**
   * Rows in the order of the seed, pass after pass.
   *
   * @param start how many were taken before
   * @param count at most 2^24
   * @throws LoopLMError INVALID_ARGUMENT, INVALID_FILE if a file has changed since it was opened
   */
  async take(start: number, count: number): Promise<Example[]> {
    checkNumber(start, 'start', { min: 0, integer: true }, operation)
    checkDraw(count, operation)
    const taken: Example[] = []
    while (taken.length < count) {
      const index = start + taken.length
      const pass = Math.floor(index / this.rows)
      const position = index % this.rows
      const window = Math.floor(position / this.#buffer)
      const rows = await this.#rowsOf(pass, window)
      const first = position - window * this.#buffer
      for (const row of rows.slice(first, first + count - taken.length)) taken.push(row)
    }
    this.#index = start + count
    return taken
  }

  /** The rows of a window in their order. The newest window is kept. */
  #rowsOf(pass: number, window: number): Promise<Example[]> {
    if (this.#window?.pass !== pass || this.#window.window !== window) {
      this.#window = undefined // frees its memory before the next one is loaded
      const rows = this.#load(pass, window)
      this.#window = { pass, window, rows }
      rows.catch(() => {
        this.#window = undefined // the next call tries again
      })
    }
    return this.#window.rows
  }

  async #load(pass: number, window: number): Promise<Example[]> {
    const begin = window * this.#buffer
    const end = Math.min(begin + this.#buffer, this.rows)
    const rows: Example[] = []
    for (const span of this.#spans(pass, begin, end)) await this.#read(span, rows)
    const order = new Random(this.#seed, pass, window).shuffle(Uint32Array.from(rows.keys()))
    return Array.from(order, (i) => rows[i]!)
  }

  /** The parts of shards between two positions of a pass. */
  #spans(pass: number, begin: number, end: number): Span[] {
    const fits = this.#buffer === this.rows
    const order = [...this.#shards]
    if (!fits) new Random(this.#seed, pass, shardStream).shuffle(order)
    const spans: Span[] = []
    let before = 0
    for (const shard of order) {
      const span = { shard, begin: Math.max(0, begin - before), end: Math.min(shard.rows, end - before) }
      if (span.begin < span.end) spans.push(span)
      before += shard.rows
    }
    return spans
  }

  async #read({ shard, begin, end }: Span, rows: Example[]): Promise<void> {
    const { path } = shard
    const { size, mtimeMs } = await onDisk('read', path, stat(path), operation)
    const refuse = () => {
      const message = `${path} has changed since it was opened; open the dataset again`
      return new LoopLMError('INVALID_FILE', message, { operation })
    }
    if (size !== shard.size || mtimeMs !== shard.changed) throw refuse()
    const place = shard.places[Math.floor(begin / rowsPerPlace)]!
    let missing = end - begin
    for await (const examples of readExamples(path, this.#format, this.#options, place)) {
      for (const { example, row, line, byte } of examples) {
        if (row < begin || row >= end) continue
        nameRow(example, path, this.#format, { row, line, byte })
        rows.push(example)
        missing--
      }
      if (missing === 0) return
    }
    throw refuse()
  }
}

function rowsOf(shards: readonly Shard[]): number {
  return shards.reduce((sum, { rows }) => sum + rows, 0)
}
