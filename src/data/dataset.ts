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

/** One row of a dataset. All other columns are passed to the reward functions unchanged. */
export interface Example {
  /** A string, or the messages of a conversation. */
  prompt: string | readonly ChatMessage[]
  /** The expected answer, for rewards that compare. */
  answer?: string
  [column: string]: unknown
}

/** Rows in the order of the files. */
export type Dataset = Example[]

/** Which rows of a source are read, and how they are converted. */
export interface DatasetOptions {
  /** Part of a dataset, such as `train` or `test`. Defaults to `train` if there are several. */
  split?: string | undefined
  /** Configuration of a dataset, as its README.md names them, or a folder in it. */
  config?: string | undefined
  /**
   * Columns that are added to those of the file. A name such as `gsm8k` selects predefined ones. In
   * `{ prompt: 'question', answer: (row) => …, id: null }` a column is renamed, computed, or dropped.
   */
  columns?: Columns | undefined
  /** Defaults to the format of the files' names. */
  format?: Format | undefined
  /** The delimiter of a `csv` file. Defaults to a comma, or a tab in `.tsv`. */
  delimiter?: string | undefined
  /** The largest row in bytes. Defaults to 16 MiB. */
  maxRowBytes?: number | undefined
  /** The most bytes of files that {@link loadDataset} holds in memory. Defaults to 1 GiB. */
  maxFileBytes?: number | undefined
  /**
   * Download a dataset `hub:org/name` that is not in the cache, see {@link downloadDataset}. Nothing is downloaded unless this
   * is true.
   */
  download?: boolean | undefined
  /** Branch, tag or commit of a dataset on the Hub. Defaults to `main`, which stays at the commit that was downloaded. */
  revision?: string | undefined
  /** The folder for downloads. Defaults to the cache of Hugging Face's own tools. */
  cacheDir?: string | undefined
  /** Aborts reading and downloading with code ABORTED. */
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
 * Reads a dataset into memory: JSON Lines, JSON (an array of objects), CSV or Parquet, one file or a folder of shards. Each row
 * has a `prompt` (a string or chat messages), an optional string `answer` (or `completion`, for supervised fine-tuning) and any
 * other columns. For supervised fine-tuning, chat `messages` or a string `text` may replace the prompt, which is then ''.
 *
 * @param source a file, a folder, or `hub:org/name` for a set of the Hugging Face Hub that was downloaded before, or is
 *   downloaded now with `download: true`
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
 * Reads a dataset row by row in the order of the files, with only some rows in memory; see {@link loadDataset}.
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

/** Remembers the file and position of a row, for errors. */
export function nameRow(row: Example, path: string, format: Format, place: Place): void {
  rowNames.set(row, `${path} ${nameOfPlace(format, place)}`)
}

/** The file and position of a row that was read from a stream. undefined for other rows. */
export function nameOfRow(row: Example): string | undefined {
  return rowNames.get(row)
}

/** Checks the options and finds the files of a source. */
export async function openFiles(source: string, options: DatasetOptions): Promise<DataFiles> {
  checkText(source, 'source', 'a path', operation)
  checkDatasetOptions(options)
  if (source.startsWith(hubPrefix)) {
    const name = source.slice(hubPrefix.length)
    const { format, split, config, revision, cacheDir } = options
    if (options.download === true) await downloadDataset(name, { format, split, config, revision, cacheDir })
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

/** A row and the position where it begins. */
export interface PlacedExample extends Place {
  example: Example
}

/**
 * The checked rows of one file from a position on, some at a time. Yields to the event loop in between.
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
      yield examples // the rows before the invalid one
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
