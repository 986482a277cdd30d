import { isUtf8 } from 'node:buffer'
import { extname } from 'node:path'
import { Readable } from 'node:stream'
import { CsvError, parse } from 'csv-parse'
import { prototypeKey } from '../../validation/json-value.js'
import { byteOrderMark, invalidRow, readChunks } from '../lines.js'
import { type FileRow, nameOfPlace, type Place, type ReadSettings } from './format.js'

const rowsAtOnce = 64
const bytesAtOnce = 2 ** 14 // csv-parse processes every byte separately, which is slow

/** A row as csv-parse returns it, with the bytes up to its end and the number of its last line. */
interface Parsed {
  record: Buffer[]
  info: { bytes: number; lines: number }
}

/**
 * Comma-separated values as in RFC 4180. The first row names the columns. A cell with a comma, a quote or a line end is in
 * double quotes, and two quotes stand for one. Every cell is a string. Empty lines and a byte order mark are skipped.
 *
 * @throws LoopLMError INVALID_FILE naming row, line and column
 */
export async function* readCsv(path: string, settings: ReadSettings, from?: Place): AsyncGenerator<FileRow[], void, undefined> {
  const { operation } = settings
  const delimiter = settings.delimiter ?? (extname(path).toLowerCase() === '.tsv' ? '\t' : ',')
  const start = { row: 0, line: 1, byte: await markBytes(path, operation) }
  let header = from === undefined ? undefined : await readHeader(path, settings, delimiter, start)
  let place: Place = from ?? start
  const { line, byte } = place
  const rows = parseCells(path, settings, delimiter, byte)
  let batch: FileRow[] = []
  try {
    for await (const { record, info } of rows) {
      const end = { line: line + info.lines, byte: byte + info.bytes }
      if (header === undefined) {
        header = checkHeader(record, path, delimiter, operation)
        place = { row: 0, ...end }
        continue
      }
      batch.push({ value: toObject(record, header, path, place, operation), ...place })
      place = { row: place.row + 1, ...end }
      if (batch.length < rowsAtOnce) continue
      yield batch
      batch = []
    }
  } catch (cause) {
    throw cause instanceof CsvError ? refuse(cause, path, from ?? start, settings) : cause
  }
  yield batch
}

async function* parseCells(
  path: string,
  { operation, maxRowBytes }: ReadSettings,
  delimiter: string,
  byte: number,
): AsyncGenerator<Parsed, void, undefined> {
  const parser = parse({
    delimiter,
    encoding: null, // cells are bytes: invalid UTF-8 must not become U+FFFD
    info: true,
    max_record_size: maxRowBytes,
    relax_column_count: true, // the columns are counted below, where the row is known
    skip_empty_lines: true,
  })
  const source = Readable.from(readChunks(path, byte, operation, bytesAtOnce), { objectMode: false })
  source.on('error', (error) => parser.destroy(error))
  try {
    for await (const parsed of source.pipe(parser)) yield parsed as unknown as Parsed
  } finally {
    source.destroy()
  }
}

/** Length of the byte order mark in bytes; 0 if there is none. */
async function markBytes(path: string, operation: string): Promise<number> {
  for await (const chunk of readChunks(path, 0, operation)) return chunk.subarray(0, 3).equals(byteOrderMark) ? 3 : 0
  return 0
}

async function readHeader(path: string, settings: ReadSettings, delimiter: string, { byte }: Place): Promise<string[]> {
  for await (const { record } of parseCells(path, settings, delimiter, byte)) {
    return checkHeader(record, path, delimiter, settings.operation)
  }
  return []
}

function checkHeader(cells: readonly Buffer[], path: string, delimiter: string, operation: string): string[] {
  const place = 'row 0 (the header)'
  const names = cells.map((cell, i) => text(cell, path, place, `column ${i + 1}`, operation))
  const refuse = (problem: string) => invalidRow(path, place, problem, operation)
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (twice !== undefined) throw refuse(`names the column ${JSON.stringify(twice)} twice; rename one`)
  if (names.includes(prototypeKey)) throw refuse(`has a column "${prototypeKey}", which cannot be a key`)
  const other = [';', '\t', '|', ','].find((mark) => mark !== delimiter && names[0]?.includes(mark))
  if (names.length === 1 && other !== undefined) {
    throw refuse(`has one column, ${JSON.stringify(names[0])}; give delimiter: ${JSON.stringify(other)} if it is several`)
  }
  return names
}

function toObject(
  cells: readonly Buffer[],
  header: readonly string[],
  path: string,
  place: Place,
  operation: string,
): Record<string, string> {
  const name = nameOfPlace('csv', place)
  if (cells.length !== header.length) {
    const remedy = 'put cells with commas, quotes or line ends into double quotes'
    const message = `has ${cells.length} cells, and the header has ${header.length} columns; ${remedy}`
    throw invalidRow(path, name, message, operation)
  }
  const row: Record<string, string> = {}
  for (const [i, column] of header.entries())
    row[column] = text(cells[i]!, path, name, `field ${JSON.stringify(column)}`, operation)
  return row
}

function text(cell: Buffer, path: string, place: string, field: string, operation: string): string {
  if (!isUtf8(cell)) throw invalidRow(path, place, `${field} is not valid UTF-8; save the file as UTF-8`, operation)
  if (!cell.includes(0)) return cell.toString('utf8')
  throw invalidRow(path, place, `${field} has NUL bytes, so the file is damaged or UTF-16; save it as UTF-8`, operation)
}

/**
 * Converts an error of csv-parse. It did not return the rows before the error in the same chunk, so the error itself has the
 * position.
 */
function refuse(cause: CsvError, path: string, from: Place, { maxRowBytes, operation }: ReadSettings): Error {
  const { records, lines, column } = cause as unknown as { records: number; lines: number; column?: unknown }
  const row = from.row + records - (from.row === 0 ? 1 : 0) // the header is a record too
  // csv-parse sees these errors some lines after the row began
  const open = cause.code === 'CSV_QUOTE_NOT_CLOSED' || cause.code === 'CSV_MAX_RECORD_SIZE'
  const place = open ? `row ${row + 1}` : nameOfPlace('csv', { row, line: from.line + lines - 1, byte: 0 })
  const problems: Readonly<Record<string, string>> = {
    CSV_QUOTE_NOT_CLOSED: 'has a quote that is never closed: the file is cut off, or a quote in a cell is not written twice ("")',
    CSV_INVALID_CLOSING_QUOTE: 'has text behind a closing quote; write a quote inside a cell twice ("")',
    INVALID_OPENING_QUOTE:
      'has a quote inside a cell that does not begin with one; put the cell into quotes and write the quote twice',
    CSV_MAX_RECORD_SIZE: `is longer than maxRowBytes = ${maxRowBytes}; is a quote never closed?`,
  }
  const field = typeof column === 'number' ? ` column ${column + 1}` : ''
  return invalidRow(path, place + field, problems[cause.code] ?? cause.message, operation, cause)
}
