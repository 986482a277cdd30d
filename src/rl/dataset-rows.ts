import { createHash } from 'node:crypto'
import { type Dataset, type DatasetOptions, type Example, nameOfRow, readDataset } from '../data/dataset.js'
import { DatasetStream } from '../data/dataset-stream.js'
import { isConversation } from '../data/rows.js'
import { DatasetSampler } from '../data/sampler.js'
import { LoopLMError } from '../errors.js'
import { nextTurn, turnIsOver } from '../turns.js'

/** The files of a dataset with the options of `loadDataset`, and the size of the shuffle buffer. */
export interface DatasetFiles extends Omit<DatasetOptions, 'signal' | 'maxFileBytes'> {
  /** A file, a folder, or `hub:org/name`. */
  path: string
  /** How many rows the shuffle buffer holds in memory. Defaults to as many as take 32 MiB. */
  shuffleBuffer?: number | undefined
}

/** Rows in memory, a stream, a path, or files with options. */
export type DatasetSource = Dataset | DatasetStream | string | DatasetFiles

/** How a trainer checks every row before it begins. */
export interface RowCheck {
  /** Returns what is wrong with a row, or undefined. */
  problemOf(row: Example): string | undefined
  /** Tokenizes a row or rejects it. */
  read(row: Example): Promise<void>
  /** Whether a row whose JSON has this many bytes may be too long for the model. */
  mayBeLong(row: Example, bytes: number): boolean
}

/** A description of a dataset's rows. */
export interface RowsDescription {
  /** Equal if the rows and their order are equal. */
  fingerprint: string
  rows: number
  /** Whether some rows have messages as their text. */
  conversations: boolean
}

/** Rows that a trainer draws or answers, in memory or in files. */
export interface DatasetRows {
  /** Rows in the order that the seed determines, pass after pass. */
  take(start: number, count: number): Promise<Example[]>
  /** The first rows. */
  head(count: number): Promise<Example[]>
  /**
   * Reads all rows once.
   * @throws LoopLMError naming the first row that is rejected, ABORTED
   */
  describe(check: RowCheck, signal: AbortSignal | undefined): Promise<RowsDescription>
  /** The name of a row in errors. */
  nameOf(row: Example): string | undefined
}

/**
 * Opens the rows of a dataset.
 * @param name of the option, for errors
 * @throws LoopLMError INVALID_CONFIG if the source is not a dataset
 */
export function openRows(source: DatasetSource, name: string, seed: number, operation: string): DatasetRows {
  if (Array.isArray(source)) {
    if (source.length > 0) return new LoadedRows(source, name, seed)
    throw new LoopLMError('INVALID_CONFIG', `${name}: has no rows`, { operation })
  }
  if (source instanceof DatasetStream || typeof source === 'string') return new StreamedRows(source, seed)
  if (typeof source?.path === 'string') return new StreamedRows(source, seed)
  const message = 'must be an array of rows, a DatasetStream, a path, or { path, … } with the options of loadDataset'
  throw new LoopLMError('INVALID_CONFIG', `${name}: ${message}`, { operation })
}

class LoadedRows implements DatasetRows {
  readonly #rows: readonly Example[]
  readonly #name: string
  readonly #seed: number
  #sampler: DatasetSampler<Example>

  constructor(rows: readonly Example[], name: string, seed: number) {
    this.#rows = rows
    this.#name = name
    this.#seed = seed
    this.#sampler = new DatasetSampler(rows, { seed })
  }

  async take(start: number, count: number): Promise<Example[]> {
    if (this.#sampler.state.index !== start) this.#sampler = new DatasetSampler(this.#rows, { seed: this.#seed, index: start })
    return this.#sampler.take(count)
  }

  async head(count: number): Promise<Example[]> {
    return this.#rows.slice(0, count)
  }

  async describe(check: RowCheck, signal: AbortSignal | undefined): Promise<RowsDescription> {
    const hash = createHash('sha256')
    let conversations = false
    let characters = 0
    for (const [i, row] of this.#rows.entries()) {
      const name = `${this.#name}[${i}]`
      let text = ''
      const json = () => {
        text = jsonOf(row, name)
        return text
      }
      await checkRow(row, name, check, json)
      hash.update(`${text}\n`)
      conversations ||= isConversation(row)
      characters += text.length
      if (characters < charactersAtOnce && !turnIsOver()) continue
      await nextTurn()
      characters = 0
      if (signal?.aborted) throw new LoopLMError('ABORTED', 'the dataset was not read to its end', { cause: signal.reason })
    }
    return { fingerprint: hash.digest('hex').slice(0, 16), rows: this.#rows.length, conversations }
  }

  nameOf(row: Example): string | undefined {
    const index = this.#rows.indexOf(row)
    return index === -1 ? undefined : `${this.#name}[${index}]`
  }
}

const charactersAtOnce = 2 ** 20 // after this many characters, hashing yields to the event loop

/**
 * Rows that are read from files when they are needed. The files are opened when the dataset is described or when rows are drawn
 * for the first time.
 */
class StreamedRows implements DatasetRows {
  readonly #source: DatasetStream | DatasetFiles
  readonly #seed: number
  #opening: Promise<DatasetStream> | undefined
  #head: Promise<Example[]> | undefined
  #conversations = false

  constructor(source: DatasetStream | string | DatasetFiles, seed: number) {
    this.#source = typeof source === 'string' ? { path: source } : source
    this.#seed = seed
  }

  async take(start: number, count: number): Promise<Example[]> {
    return (await this.#open()).take(start, count)
  }

  async head(count: number): Promise<Example[]> {
    if (this.#source instanceof DatasetStream) return this.#source.take(0, Math.min(count, this.#source.rows))
    const known = await this.#head
    if (known === undefined || known.length < count) this.#head = this.#read(count)
    return (await this.#head)!.slice(0, count)
  }

  async describe(check: RowCheck, signal: AbortSignal | undefined): Promise<RowsDescription> {
    if (this.#source instanceof DatasetStream) this.#conversations = (await this.head(1)).some(isConversation)
    const stream = await this.#open(check, signal)
    const { rows, order } = stream
    const own = order.seed === this.#seed && order.shuffleBuffer === rows
    const fingerprint = own ? stream.fingerprint : `${stream.fingerprint}-${order.seed}-${order.shuffleBuffer}`
    return { fingerprint, rows, conversations: this.#conversations }
  }

  nameOf(row: Example): string | undefined {
    return nameOfRow(row)
  }

  #open(check?: RowCheck, signal?: AbortSignal): Promise<DatasetStream> {
    if (this.#opening !== undefined) return this.#opening
    if (this.#source instanceof DatasetStream) {
      this.#opening = Promise.resolve(this.#source)
      return this.#opening
    }
    const { path, ...options } = this.#source
    const onRow = async (row: Example, json: string) => {
      this.#conversations ||= isConversation(row)
      if (check !== undefined) await checkRow(row, nameOfRow(row) ?? path, check, () => json)
    }
    this.#opening = DatasetStream.open(path, { ...options, seed: this.#seed, onRow, signal })
    this.#opening.catch(() => {
      this.#opening = undefined // the next call tries again
    })
    return this.#opening
  }

  async #read(count: number): Promise<Example[]> {
    const { path, shuffleBuffer: _, ...options } = this.#source as DatasetFiles
    const rows: Example[] = []
    for await (const row of readDataset(path, options)) if (rows.push(row) === count) break
    return rows
  }
}

/** @param json returns the row as JSON */
async function checkRow(row: Example, name: string, check: RowCheck, json: () => string): Promise<void> {
  const wrong = check.problemOf(row)
  if (wrong !== undefined) throw new LoopLMError('INVALID_ARGUMENT', `${name} ${wrong}`, { operation: 'dataset' })
  if (check.mayBeLong(row, Buffer.byteLength(json()))) await check.read(row)
}

/** @throws LoopLMError INVALID_ARGUMENT naming the column that cannot be written as JSON */
function jsonOf(row: Example, name: string): string {
  try {
    return JSON.stringify(row) ?? ''
  } catch (cause) {
    const column = Object.keys(row).find((key) => !hasJson(row[key]))
    const where = column === undefined ? '' : ` field "${column}"`
    const remedy = 'rows are plain data, as in a JSON Lines file: convert big integers to strings or numbers, and remove cycles'
    const message = `${name}${where} has no JSON (${(cause as Error).message.split('\n')[0]}); ${remedy}`
    throw new LoopLMError('INVALID_ARGUMENT', message, { operation: 'dataset', cause })
  }
}

function hasJson(value: unknown): boolean {
  try {
    JSON.stringify(value)
    return true
  } catch {
    return false
  }
}
