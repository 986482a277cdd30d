import { createReadStream } from 'node:fs'
import { fileError, LoopLMError } from '../errors.js'

/** Default limit for rows of a dataset and lines of a corpus, in bytes. */
export const defaultMaxRowBytes = 16 * 2 ** 20
const chunkBytes = 2 ** 16 // bytes parsed at a time, which takes a fraction of a millisecond
const newline = 0x0a

/** With which some editors begin a UTF-8 file. */
export const byteOrderMark = Buffer.from('\ufeff')

/** A line of a file, without its newline. */
export interface Line {
  bytes: Uint8Array
  /** 1-based. */
  line: number
  /** Its offset in the file, in bytes. */
  byte: number
}

/** How {@link readLines} reads. */
export interface LineOptions {
  /** Defaults to 16 MiB. It is already checked while a line is being read. */
  maxRowBytes?: number
  /** Advice in the error about a line that is too long. */
  remedy?: string
  /** The line to begin with. Defaults to the first one. */
  from?: { line: number; byte: number }
  operation: string
}

/** The lines of a file in order, some at a time, without its byte order mark. The last line does not need a newline. */
export async function* readLines(path: string, options: LineOptions): AsyncGenerator<Line[], void, undefined> {
  const { maxRowBytes = defaultMaxRowBytes, remedy = '; is this a JSON Lines file?', from, operation } = options
  let pending: Uint8Array[] = [] // the parts of a line that spans chunks
  let pendingBytes = 0
  let { line, byte } = from ?? { line: 1, byte: 0 }
  const append = (part: Uint8Array): void => {
    pendingBytes += part.length
    if (pendingBytes > maxRowBytes) {
      throw invalidRow(path, `line ${line}`, `is longer than maxRowBytes = ${maxRowBytes}${remedy}`, operation)
    }
    pending.push(part)
  }
  const take = (): Line => {
    const bytes = pending.length === 1 ? pending[0]! : Buffer.concat(pending)
    const marked = byte === 0 && byteOrderMark.every((value, i) => bytes[i] === value)
    const taken = { bytes: marked ? bytes.subarray(byteOrderMark.length) : bytes, line, byte }
    pending = []
    byte += pendingBytes + 1
    pendingBytes = 0
    line++
    return taken
  }
  for await (const chunk of readChunks(path, byte, operation)) {
    const lines: Line[] = []
    let start = 0
    for (let end = chunk.indexOf(newline); end !== -1; end = chunk.indexOf(newline, start)) {
      append(chunk.subarray(start, end))
      lines.push(take())
      start = end + 1
    }
    append(chunk.subarray(start))
    if (lines.length > 0) yield lines
  }
  if (pendingBytes > 0) yield [take()]
}

/**
 * Reads a file from an offset on, in chunks.
 * @throws LoopLMError NOT_FOUND, INVALID_FILE
 */
export async function* readChunks(
  path: string,
  start: number,
  operation: string,
  highWaterMark = chunkBytes,
): AsyncGenerator<Buffer, void, undefined> {
  try {
    yield* createReadStream(path, { start, highWaterMark }) as AsyncIterable<Buffer>
  } catch (cause) {
    throw unreadable(path, cause, operation)
  }
}

/**
 * Decodes bytes that must be UTF-8. U+FEFF stays: only at the start of a file it is a byte order mark.
 * @throws LoopLMError INVALID_FILE naming file and position
 */
export function decodeText(bytes: Uint8Array, path: string, place: string, operation: string): string {
  try {
    return decoder.decode(bytes)
  } catch (cause) {
    throw invalidRow(path, place, 'is not valid UTF-8; save the file as UTF-8', operation, cause)
  }
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/**
 * An error that names file and position.
 *
 * @param place for example `line 3`, 1-based
 * @param problem a clause without a subject
 */
export function invalidRow(path: string, place: string, problem: string, operation: string, cause?: unknown): LoopLMError {
  return new LoopLMError('INVALID_FILE', `${path} ${place} ${problem}`, { operation, cause })
}

/** Converts errors of the file system while reading. Other errors are returned unchanged. */
export function unreadable(path: string, cause: unknown, operation: string): unknown {
  const code = (cause as { code?: string }).code
  if (cause instanceof LoopLMError || code === undefined) return cause
  if (code !== 'ENOENT') return fileError(cause, 'read', path, operation)
  return new LoopLMError('NOT_FOUND', `no file ${path}`, { operation, cause })
}
