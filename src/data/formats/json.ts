import { decodeText, invalidRow, type LineOptions, readChunks, readLines } from '../lines.js'
import { type FileRow, nameOfPlace, objectProblem, type Place, type ReadSettings } from './format.js'

/** JSON Lines: an object per line. Blank lines and a byte order mark are skipped. */
export async function* readJsonLines(
  path: string,
  settings: ReadSettings,
  from?: Place,
): AsyncGenerator<FileRow[], void, undefined> {
  const { operation, maxRowBytes } = settings
  const options: LineOptions = { operation, maxRowBytes, ...(from === undefined ? {} : { from }) }
  let row = from?.row ?? 0
  for await (const lines of readLines(path, options)) {
    const rows: FileRow[] = []
    try {
      for (const { bytes, line, byte } of lines) {
        const text = decodeText(bytes, path, `line ${line}`, operation).trim()
        if (text === '') continue
        rows.push({ value: parseRow(text, path, `line ${line}`, operation), row: row++, line, byte })
      }
    } catch (cause) {
      yield rows // the rows before the invalid one
      throw cause
    }
    yield rows
  }
}

/**
 * Reads an array of objects, without holding all of it in memory, or one object per line. Both have the extension .json.
 *
 * @throws LoopLMError INVALID_FILE naming the row, also for an array that does not end
 */
export async function* readJsonArray(
  path: string,
  settings: ReadSettings,
  from?: Place,
): AsyncGenerator<FileRow[], void, undefined> {
  if (!(await beginsWithArray(path, settings.operation))) {
    yield* readJsonLines(path, settings, from)
    return
  }
  const splitter = new ArraySplitter(path, settings, from)
  for await (const chunk of readChunks(path, from?.byte ?? 0, settings.operation)) yield splitter.push(chunk)
  splitter.end()
}

/** Whether a file begins with an array. If not, it has one row per line. */
async function beginsWithArray(path: string, operation: string): Promise<boolean> {
  for await (const chunk of readChunks(path, 0, operation)) {
    const text = chunk
      .toString('latin1')
      .replace(/^\xef\xbb\xbf/, '')
      .trimStart()
    if (text !== '') return text.startsWith('[')
  }
  return false
}

function parseRow(text: string, path: string, place: string, operation: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    const zero = text.includes('\0') ? 'has NUL bytes, so the file is damaged or UTF-16; save it as UTF-8' : undefined
    throw invalidRow(path, place, zero ?? `is not JSON: ${(cause as Error).message}`, operation, cause)
  }
  const problem = objectProblem(value)
  if (problem !== undefined) throw invalidRow(path, place, problem, operation)
  return value as Record<string, unknown>
}

const [quote, backslash, comma, open, close, openBrace, closeBrace] = [...'"\\,[]{}'].map((c) => c.charCodeAt(0))

/** Finds where the elements of an array begin and end. JSON.parse then parses their text. */
class ArraySplitter {
  readonly #path: string
  readonly #settings: ReadSettings
  #state: 'before' | 'inside' | 'after'
  #depth = 0
  #inText = false
  #escaped = false
  #row: number
  #byte: number // position of the first byte of `#rest`
  #rest: Buffer = Buffer.alloc(0) // the beginning of an incomplete element
  #separated = false // whether a comma preceded the element

  constructor(path: string, settings: ReadSettings, from?: Place) {
    this.#path = path
    this.#settings = settings
    this.#state = from === undefined ? 'before' : 'inside'
    this.#row = from?.row ?? 0
    this.#byte = from?.byte ?? 0
  }

  /** The elements that end in a chunk. */
  push(chunk: Buffer): FileRow[] {
    const rows: FileRow[] = []
    const scanned = this.#rest.length
    const bytes = scanned === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    let begin = 0 // start of the element
    for (let i = scanned; i < bytes.length; i++) {
      const c = bytes[i]!
      if (this.#inText) {
        if (this.#escaped) this.#escaped = false
        else if (c === backslash) this.#escaped = true
        else if (c === quote) this.#inText = false
      } else if (this.#state !== 'inside') {
        if (this.#state === 'before' && c === open) {
          this.#state = 'inside'
          begin = i + 1
        } else if (this.#state === 'after' && c > 0x20) throw this.#refuse('stands behind the end of the array; remove it')
      } else if (c === quote) this.#inText = true
      else if (c === open || c === openBrace) this.#depth++
      else if ((c === close || c === closeBrace) && this.#depth > 0) this.#depth--
      else if (this.#depth === 0 && (c === comma || c === close)) {
        this.#take(bytes.subarray(begin, i), this.#byte + begin, c === close, rows)
        begin = i + 1
        if (c === close) this.#state = 'after'
      }
    }
    this.#keep(bytes, this.#state === 'inside' ? begin : bytes.length)
    return rows
  }

  /** @throws LoopLMError INVALID_FILE if the array has not ended */
  end(): void {
    if (this.#state === 'inside') throw this.#refuse('does not end: the file is cut off, or its quotes or brackets do not match')
  }

  #keep(bytes: Buffer, begin: number): void {
    this.#rest = Buffer.from(bytes.subarray(begin))
    this.#byte += begin
    if (this.#rest.length <= this.#settings.maxRowBytes) return
    throw this.#refuse(`is longer than maxRowBytes = ${this.#settings.maxRowBytes}; raise the limit if the file is whole`)
  }

  #take(bytes: Buffer, byte: number, last: boolean, rows: FileRow[]): void {
    const { operation } = this.#settings
    const place = { row: this.#row, line: 1, byte }
    const name = nameOfPlace('json', place)
    const text = decodeText(bytes, this.#path, name, operation).trim()
    const separated = this.#separated
    this.#separated = !last
    if (text === '' && last && !separated) return // an empty array
    if (text === '') throw this.#refuse('is empty: two commas follow each other, or one is before the end')
    rows.push({ value: parseRow(text, this.#path, name, operation), ...place })
    this.#row++
  }

  #refuse(problem: string): Error {
    const place = nameOfPlace('json', { row: this.#row, line: 1, byte: 0 })
    return invalidRow(this.#path, place, problem, this.#settings.operation)
  }
}
