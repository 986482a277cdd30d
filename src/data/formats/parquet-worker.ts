/*
 * A worker thread that decodes Parquet. Decoding a column of a row group is one synchronous step, which would block the event
 * loop.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { types } from 'node:util'
import { parentPort } from 'node:worker_threads'
import { type FileMetaData, parquetMetadataAsync, parquetReadObjects, parquetSchema } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'

/** Requests rows of a file, starting at `row`. Without a path, the file is closed. */
export interface ParquetRequest {
  id: number
  path: string | undefined
  /** Whether to open the file again. */
  fresh: boolean
  row: number
}

/** Some rows, or an error. `rows` is empty after the last row of the file. */
export type ParquetAnswer = { id: number } & (
  | { rows: Record<string, unknown>[] }
  | { problem: string; row: number; field: string | undefined; code: string | undefined }
)

const bytesDecoded = 16 * 2 ** 20 // for row groups with flat columns; others are decoded as a whole
const bytesSent = 2 ** 17
const rowsSent = 1024

/** The open file, and the rows that were decoded last. */
let current: { file: FileHandle; size: number; metadata: FileMetaData; flat: boolean } | undefined
let decoded: { begin: number; rows: Record<string, unknown>[]; rowBytes: number } | undefined

/** A cell whose value is not allowed. */
class Unreadable {
  constructor(readonly problem: string) {}
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
const parsers = {
  timestampFromMilliseconds: (value: bigint) => date(Number(value)),
  timestampFromMicroseconds: (value: bigint) => date(Number(value / 1000n)),
  timestampFromNanoseconds: (value: bigint) => date(Number(value / 1_000_000n)),
  dateFromDays: (days: number) => date(days * 86_400_000),
  stringFromBytes: (bytes: Uint8Array | undefined) => bytes && (text(bytes) ?? new Unreadable('is not valid UTF-8')),
  jsonFromBytes: (bytes: Uint8Array | undefined) => bytes && json(bytes),
}

let turn: Promise<void> = Promise.resolve() // requests are handled one after the other
parentPort!.on('message', (request: ParquetRequest) => {
  turn = turn.then(async () => parentPort!.postMessage(await answer(request)))
})

async function answer({ id, path, fresh, row }: ParquetRequest): Promise<ParquetAnswer> {
  try {
    if (path === undefined || fresh) await closeFile()
    return { id, rows: path === undefined ? [] : await read(path, row) }
  } catch (error) {
    const { message, code, field, row: at = row } = error as { message: string; code?: string; field?: string; row?: number }
    return { id, problem: message, row: at, code, field }
  }
}

async function read(path: string, row: number): Promise<Record<string, unknown>[]> {
  current ??= await openFile(path)
  if (decoded === undefined || row < decoded.begin || row >= decoded.begin + decoded.rows.length) {
    decoded = undefined // frees their memory before the next rows are decoded
    decoded = await decode(row, current)
  }
  if (decoded === undefined) return []
  const first = row - decoded.begin
  const count = Math.min(rowsSent, Math.max(1, Math.floor(bytesSent / decoded.rowBytes)))
  return decoded.rows.slice(first, first + count).map((value, i) => plainRow(value, row + i))
}

async function closeFile(): Promise<void> {
  const file = current?.file
  current = undefined
  decoded = undefined
  await file?.close()
}

async function openFile(path: string): Promise<NonNullable<typeof current>> {
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    if (size < 12) throw new Error('parquet file invalid (footer != PAR1)')
    const metadata = await parquetMetadataAsync(bufferOf(file, size), { geoparquet: false })
    const flat = parquetSchema(metadata).children.every(({ children, element }) => {
      return children.length === 0 && element.repetition_type !== 'REPEATED'
    })
    return { file, size, metadata, flat }
  } catch (error) {
    await file.close()
    throw error
  }
}

function bufferOf(file: FileHandle, byteLength: number) {
  return {
    byteLength,
    async slice(begin: number, end = byteLength): Promise<ArrayBuffer> {
      if (begin < 0 || end > byteLength || begin > end) throw new Error('the metadata points outside of the file')
      const bytes = new Uint8Array(end - begin)
      for (let done = 0; done < bytes.length; ) {
        const { bytesRead } = await file.read(bytes, done, bytes.length - done, begin + done)
        if (bytesRead === 0) throw new Error('the file ends early')
        done += bytesRead
      }
      return bytes.buffer
    },
  }
}

/** Decodes rows starting at `row`, up to the end of its row group or {@link bytesDecoded}. */
async function decode(row: number, { file, size, metadata, flat }: NonNullable<typeof current>): Promise<typeof decoded> {
  let begin = 0
  for (const { num_rows, total_byte_size } of metadata.row_groups) {
    const rows = Number(num_rows)
    if (row >= begin + rows) {
      begin += rows
      continue
    }
    const rowBytes = Math.max(1, Number(total_byte_size) / rows)
    const first = flat ? row : begin
    const last = flat ? Math.min(begin + rows, row + Math.max(1, Math.floor(bytesDecoded / rowBytes))) : begin + rows
    const settings = { file: bufferOf(file, size), metadata, compressors, parsers, utf8: false, geoparquet: false }
    const found = await parquetReadObjects({ ...settings, rowStart: first, rowEnd: last })
    if (found.length !== last - first) throw new Error(`a row group has ${found.length} of its ${last - first} rows`)
    return { begin: first, rows: found, rowBytes }
  }
  return undefined
}

/** A row in the form that JSON has: no big integers, dates, bytes or absent values. */
function plainRow(row: Record<string, unknown>, index: number): Record<string, unknown> {
  const plain: Record<string, unknown> = {}
  for (const [field, value] of Object.entries(row)) {
    const made = plainValue(value)
    if (made instanceof Unreadable) throw Object.assign(new Error(made.problem), { row: index, field })
    if (made !== undefined) plain[field] = made
  }
  return plain
}

function plainValue(value: unknown): unknown {
  if (value === null || value === undefined || value instanceof Unreadable) return value ?? undefined
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value)
  if (typeof value !== 'object') return value
  if (types.isDate(value)) return value.toISOString()
  if (types.isUint8Array(value)) return text(value) ?? Buffer.from(value).toString('base64')
  const list = Array.isArray(value) || ArrayBuffer.isView(value) ? [...(value as Iterable<unknown>)] : undefined
  if (list !== undefined) {
    const made = list.map((inner) => plainValue(inner) ?? null)
    return made.find((inner) => inner instanceof Unreadable) ?? made
  }
  const made = Object.entries(value).map(([key, inner]) => [key, plainValue(inner)] as const)
  return made.find(([, inner]) => inner instanceof Unreadable)?.[1] ?? Object.fromEntries(made)
}

function text(bytes: Uint8Array): string | undefined {
  try {
    return decoder.decode(bytes)
  } catch {
    return undefined
  }
}

function json(bytes: Uint8Array): unknown {
  const found = text(bytes)
  if (found === undefined) return new Unreadable('is not valid UTF-8')
  try {
    return JSON.parse(found)
  } catch {
    return new Unreadable('is not JSON')
  }
}

function date(milliseconds: number): Date | Unreadable {
  const made = new Date(milliseconds)
  return Number.isNaN(made.getTime()) ? new Unreadable('is no date') : made
}
