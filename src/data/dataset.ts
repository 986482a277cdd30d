import { stat } from 'node:fs/promises'
import { LoopLMError } from '../errors.js'
import { onDisk } from '../files/write.js'
import { checkFlag, checkNumber, checkOptions, checkText, checkWord, type Keys } from '../validation/arguments.js'
import type { ChatMessage } from './chat-template.js'
import { type Columns, columnMapper, RowProblem, readyColumns } from './columns.js'
import { type DataFiles, findDataFiles } from './dataset-files.js'
import { downloadDataset, findDownloadedDataset } from './download-dataset.js'
import { readCsv } from './formats/csv.js'
import { type FileRow, type Format, formats, nameOfPlace, type Place, type ReadRows } from './formats/format.js'
import { readJsonArray, readJsonLines } from './formats/json.js'
import { readParquet } from './formats/parquet.js'
import { defaultMaxRowBytes, invalidRow } from './lines.js'
import { rowProblem } from './rows.js'

/** One row of a dataset. Every further column is passed to the reward functions as it is. */
export interface Example {
  /** A text, or the messages of a conversation. */
  prompt: string | readonly ChatMessage[]
  /** What rewards compare with. */
  answer?: string
  [column: string]: unknown
}

/** Rows in the order of the files. */
export type Dataset = Example[]

/** Which rows of a source are read, and what they become. */
export interface DatasetOptions {
  /** Part of a set, such as `train` or `test`; default `train` where there are several. */
  split?: string | undefined
  /** Configuration of a set, as its README.md names them, or a folder in it. */
  config?: string | undefined
  /**
   * Columns that rows get beside those of the file. A name such as `gsm8k` stands for ready ones. In
   * `{ prompt: 'question', answer: (row) => …, id: null }` a column is another one's, is computed, or is left out.
   */
  columns?: Columns | undefined
  /** Default what the names of the files say. */
  format?: Format | undefined
  /** Between the cells of a `csv` file; default a comma, a tab in `.tsv`. */
  delimiter?: string | undefined
  /** Longest row in bytes; default 16 MiB. */
  maxRowBytes?: number | undefined
  /** Most bytes of files that {@link loadDataset} holds in memory; default 1 GiB. */
  maxFileBytes?: number | undefined
  /** Fetch a set `hub:org/name` that is not in the cache, see {@link downloadDataset}. Nothing is ever fetched unless this is true. */
  download?: boolean | undefined
  /** Branch, tag or commit of a set on the hub; default `main`, which stays at the commit that was downloaded. */
  revision?: string | undefined
  /** Where downloads are kept; default the cache of Hugging Face's own tools. */
  cacheDir?: string | undefined
  /** Ends reading and downloading with code ABORTED. */
  signal?: AbortSignal | undefined
}

const datasetOptions = {
  split: true,
  config: true,
  columns: true,
  format: true,
  delimiter: true,
  maxRowBytes: true,
  maxFileBytes: true,
  download: true,
  revision: true,
  cacheDir: true,
  signal: true,
} satisfies Keys<DatasetOptions>

const defaultMaxFileBytes = 2 ** 30
const operation = 'dataset'
const hubPrefix = 'hub:'
const readers: Readonly<Record<Format, ReadRows>> = {
  jsonl: readJsonLines,
  json: readJsonArray,
  csv: readCsv,
  parquet: readParquet,
}

/**
 * Reads a dataset into memory: JSON Lines, JSON (an array of objects), CSV or Parquet, one file or a folder of shards. Each row has a
 * `prompt` (a string or chat messages), an optional string `answer` (or `completion`, as supervised fine-tuning calls it) and any further
 * columns. For supervised fine-tuning, chat `messages` or a string `text` may stand in for the prompt, which is '' then.
 *
 * @param source a file, a folder, or `hub:org/name` for a set of the Hugging Face Hub that was downloaded (or is, with `download: true`)
 * @returns at least one row
 * @throws LoopLMError NOT_FOUND, INVALID_ARGUMENT naming the option, INVALID_FILE naming file, row and field, ABORTED
 *
 * @example
 * ```ts
 * const dataset = await loadDataset('gsm8k', { split: 'train', columns: 'gsm8k' })
 * const mapped = await loadDataset('rows.csv', { columns: { prompt: 'question', answer: ({ result }) => String(result).trim() } })
 * ```
 */
export async function loadDataset(source: string, options: DatasetOptions = {}): Promise<Dataset> {
  const files = await openFiles(source, options)
  const maxFileBytes = options.maxFileBytes ?? defaultMaxFileBytes
  let size = 0
  for (const path of files.paths) size += (await onDisk('read', path, stat(path), operation)).size
  if (size > maxFileBytes) {
    const remedy = 'raise the limit, or stream it with DatasetStream.open'
    const message = `${source} has ${size} bytes, more than maxFileBytes = ${maxFileBytes}; ${remedy}`
    throw new LoopLMError('INVALID_FILE', message, { operation })
  }
  const dataset: Dataset = []
  for (const path of files.paths) {
    for await (const rows of readExamples(path, files.format, options)) for (const { example } of rows) dataset.push(example)
  }
  if (dataset.length === 0) throw new LoopLMError('INVALID_FILE', `${source} has no rows`, { operation })
  return dataset
}

/**
 * Reads a dataset row by row in the order of the files, holding some rows at a time; see {@link loadDataset}.
 *
 * @param source a file or a folder
 * @throws LoopLMError as {@link loadDataset}
 *
 * @example
 * ```ts
 * for await (const { prompt, answer } of readDataset('train.parquet', { columns: 'gsm8k' })) console.log(prompt, answer)
 * ```
 */
export async function* readDataset(source: string, options: DatasetOptions = {}): AsyncGenerator<Example, void, undefined> {
  const { paths, format } = await openFiles(source, options)
  for (const path of paths) {
    for await (const rows of readExamples(path, format, options)) {
      for (const { example, row, line, byte } of rows) {
        nameRow(example, path, format, { row, line, byte })
        yield example
      }
    }
  }
}

const rowNames = new WeakMap<Example, string>()

/** Remembers where a row was read, for errors about it. */
export function nameRow(row: Example, path: string, format: Format, place: Place): void {
  rowNames.set(row, `${path} ${nameOfPlace(format, place)}`)
}

/** The file and the place of a row that was read while it was needed; undefined for other rows. */
export function nameOfRow(row: Example): string | undefined {
  return rowNames.get(row)
}

/** The files of a source, its options checked. */
export async function openFiles(source: string, options: DatasetOptions): Promise<DataFiles> {
  checkText(source, 'source', 'a path', operation)
  checkDatasetOptions(options)
  if (source.startsWith(hubPrefix)) {
    const name = source.slice(hubPrefix.length)
    if (options.download === true) await downloadDataset(name, options)
    return findDownloadedDataset(name, options, operation)
  }
  return findDataFiles(source, options, operation)
}

/** @throws LoopLMError INVALID_ARGUMENT */
function checkDatasetOptions(options: DatasetOptions): void {
  checkOptions(options, datasetOptions, operation)
  const { format, delimiter, columns } = options
  for (const name of ['split', 'config', 'revision', 'cacheDir'] as const) {
    if (options[name] !== undefined) checkText(options[name], name, 'a name', operation)
  }
  if (options.download !== undefined) checkFlag(options.download, 'download', operation)
  if (format !== undefined) checkWord(format, 'format', formats, operation)
  if (delimiter !== undefined && (typeof delimiter !== 'string' || delimiter.length !== 1)) {
    throw new LoopLMError('INVALID_ARGUMENT', `delimiter must be one character, got ${JSON.stringify(delimiter)}`, { operation })
  }
  for (const name of ['maxRowBytes', 'maxFileBytes'] as const) {
    if (options[name] !== undefined) checkNumber(options[name], name, { min: 1, integer: true }, operation)
  }
  if (typeof columns === 'string') checkWord(columns, 'columns', Object.keys(readyColumns) as (typeof columns)[], operation)
  else if (columns !== undefined) checkColumns(columns)
}

function checkColumns(columns: object): void {
  const isSource = (source: unknown) =>
    source === null ||
    ['string', 'function'].includes(typeof source) ||
    typeof (source as { template?: unknown } | undefined)?.template === 'string'
  const wrong = Object.entries(columns).find(([, source]) => !isSource(source))
  if (wrong === undefined && typeof columns === 'object' && !Array.isArray(columns)) return
  const name = wrong === undefined ? 'columns' : `columns.${wrong[0]}`
  const allowed = 'a column of the file, { template }, a function of the row, or null to omit it'
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be ${allowed}`, { operation })
}

/** A row with the place where it begins. */
export interface PlacedExample extends Place {
  example: Example
}

/**
 * The checked rows of one file from a place on, some at a time. Other work of the process gets its turn between them.
 *
 * @throws LoopLMError INVALID_FILE naming file, row and field, ABORTED
 */
export async function* readExamples(
  path: string,
  format: Format,
  options: Pick<DatasetOptions, 'columns' | 'delimiter' | 'maxRowBytes' | 'signal'>,
  from?: Place,
): AsyncGenerator<PlacedExample[], void, undefined> {
  const { delimiter, maxRowBytes = defaultMaxRowBytes, signal } = options
  const map = columnMapper(options.columns)
  const settings = { operation, maxRowBytes, delimiter, signal }
  for await (const rows of readers[format](path, settings, from)) {
    if (signal?.aborted)
      throw new LoopLMError('ABORTED', 'the dataset was not read to its end', { operation, cause: signal.reason })
    const examples: PlacedExample[] = []
    try {
      for (const row of rows) {
        examples.push({ example: toExample(row, map, path, format), row: row.row, line: row.line, byte: row.byte })
      }
    } catch (cause) {
      yield examples // those before the bad one
      throw cause
    }
    yield examples
  }
}

function toExample(row: FileRow, map: (row: FileRow['value']) => Record<string, unknown>, path: string, format: Format): Example {
  const refuse = (problem: string, cause?: unknown) => invalidRow(path, nameOfPlace(format, row), problem, operation, cause)
  let mapped: Record<string, unknown>
  try {
    mapped = map(row.value)
  } catch (cause) {
    throw cause instanceof RowProblem ? refuse(cause.message, cause) : cause
  }
  const problem = rowProblem(mapped)
  if (problem !== undefined) throw refuse(problem)
  return mapped.prompt === undefined ? { prompt: '', ...mapped } : (mapped as Example)
}
