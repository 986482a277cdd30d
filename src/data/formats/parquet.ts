import { Worker } from 'node:worker_threads'
import { errorMessage, LoopLMError } from '../../errors.js'
import { invalidRow, unreadable } from '../lines.js'
import { type FileRow, nameOfPlace, type Place, type ReadSettings } from './format.js'
import type { ParquetAnswer, ParquetRequest } from './parquet-worker.js'

/** Tests run the TypeScript sources, but a worker thread needs the compiled file. */
const compiled = import.meta.url.endsWith('.ts') ? '../../../dist/src/data/formats/' : './'

/**
 * Parquet with any of its compressions. Values are converted to JSON: dates become ISO strings, bytes become text or base64,
 * integers beyond 2^53 become strings, and null fields are absent.
 *
 * @throws LoopLMError INVALID_FILE naming row and field
 */
export async function* readParquet(
  path: string,
  settings: ReadSettings,
  from?: Place,
): AsyncGenerator<FileRow[], void, undefined> {
  const thread = takeThread()
  try {
    let row = from?.row ?? 0
    let next = thread.ask(path, true, row)
    for (;;) {
      const answer = await next
      if (!('rows' in answer)) throw refuse(answer, path, settings.operation)
      if (answer.rows.length === 0) return
      await new Promise((resolve) => setImmediate(resolve)) // otherwise all waiting messages would be handled in one tick
      const first = row
      row += answer.rows.length
      next = thread.ask(path, false, row) // decodes the next rows while these are used
      next.catch(() => {})
      yield answer.rows.map((value, i) => checkSize({ value, row: first + i, line: 1, byte: 0 }, path, settings))
    }
  } finally {
    thread.give()
  }
}

/** One thread is kept for the next reader, because starting one takes a tenth of a second. */
let idle: DecodingThread | undefined

function takeThread(): DecodingThread {
  const thread = idle ?? new DecodingThread()
  idle = undefined
  thread.take()
  return thread
}

class DecodingThread {
  readonly #worker = new Worker(new URL(`${compiled}parquet-worker.js`, import.meta.url), { execArgv: [] })
  readonly #waiting = new Map<number, { resolve(answer: ParquetAnswer): void; reject(error: unknown): void }>()
  #asked = 0

  constructor() {
    this.#worker.on('message', (answer: ParquetAnswer) => {
      this.#waiting.get(answer.id)?.resolve(answer)
      this.#waiting.delete(answer.id)
    })
    const end = (cause: unknown) => {
      if (idle === this) idle = undefined
      const message = `the thread that reads Parquet ended: ${errorMessage(cause)}`
      for (const { reject } of this.#waiting.values()) reject(new LoopLMError('OUT_OF_MEMORY', message, { cause }))
      this.#waiting.clear()
    }
    this.#worker.on('error', end)
    this.#worker.on('exit', (code) => end(new Error(`exit code ${code}`)))
  }

  take(): void {
    this.#worker.ref()
  }

  /** Requests the next rows. If the caller no longer waits for the answer, it is dropped. */
  ask(path: string | undefined, fresh: boolean, row: number): Promise<ParquetAnswer> {
    const id = this.#asked++
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      this.#worker.postMessage({ id, path, fresh, row } satisfies ParquetRequest)
    })
  }

  /** Closes the file. The process does not need to wait for this. */
  give(): void {
    this.ask(undefined, false, 0).catch(() => {})
    this.#worker.unref()
    if (idle === undefined) idle = this
    else void this.#worker.terminate()
  }
}

function checkSize(row: FileRow, path: string, { maxRowBytes, operation }: ReadSettings): FileRow {
  let length = 0
  for (const [field, value] of Object.entries(row.value)) {
    if (typeof value === 'string') length += value.length
    if (length <= maxRowBytes) continue
    const problem = `field ${JSON.stringify(field)} makes it longer than maxRowBytes = ${maxRowBytes}; raise the limit if that is right`
    throw invalidRow(path, nameOfPlace('parquet', row), problem, operation)
  }
  return row
}

function refuse(answer: Exclude<ParquetAnswer, { rows: unknown }>, path: string, operation: string): unknown {
  const { problem, row, field, code } = answer
  if (code !== undefined) return unreadable(path, Object.assign(new Error(problem), { code }), operation)
  const place = nameOfPlace('parquet', { row, line: 1, byte: 0 })
  if (field !== undefined) return invalidRow(path, `${place} field ${JSON.stringify(field)}`, problem, operation)
  const remedy = 'fetch or write the file again'
  if (/footer|magic|PAR1/.test(problem)) {
    const message = `${path} is no Parquet file, or cut off: its end is not that of one; ${remedy}`
    return new LoopLMError('INVALID_FILE', message, { operation })
  }
  return invalidRow(path, place, `cannot be read (${problem}): the file is damaged; ${remedy}`, operation)
}
