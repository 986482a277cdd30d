import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { fileError, LoopLMError } from '../errors.js'
import { isDeeper, maxJsonDepth, prototypeKey } from '../validation/json-value.js'
import { rowProblem, typeName } from './rows.js'

/** One row of a dataset. Every further column is passed to the reward functions as it is. */
export interface Example {
  prompt: string
  answer?: string
  [column: string]: unknown
}

/** Rows in the order of the file. */
export type Dataset = Example[]

/** Limits that keep a wrong or hostile file from filling the memory. */
export interface JsonlLimits {
  /** Longest line in bytes; default 16 MiB. */
  maxLineBytes?: number
  /** Largest file in bytes that {@link loadDataset} holds in memory; default 1 GiB. */
  maxFileBytes?: number
}

const defaultMaxLineBytes = 16 * 2 ** 20
const defaultMaxFileBytes = 2 ** 30
const newline = 0x0a

/**
 * Reads a JSON Lines dataset row by row, holding one line at a time. Each line is a JSON object with a string `prompt`, an
 * optional string `answer` (or `completion`, as supervised fine-tuning calls it) and any further columns. For supervised fine-tuning, chat
 * `messages` or a string `text` may stand in for the prompt, which is '' then. Blank lines and a byte order mark are skipped.
 *
 * @param path a UTF-8 file
 * @param limits `maxLineBytes` is checked while a line is still being read
 * @returns the rows in order
 * @throws LoopLMError NOT_FOUND, or INVALID_FILE naming file, line and field
 *
 * @example
 * ```ts
 * for await (const { prompt, answer } of readJsonl('train.jsonl')) console.log(prompt, answer)
 * ```
 */
export async function* readJsonl(path: string, limits: JsonlLimits = {}): AsyncGenerator<Example, void, undefined> {
  const decoder = new TextDecoder('utf-8', { fatal: true })
  let line = 0
  for await (const bytes of readLines(path, limits.maxLineBytes ?? defaultMaxLineBytes)) {
    line++
    let text: string
    try {
      text = decoder.decode(bytes).trim()
    } catch (cause) {
      throw invalidLine(path, line, 'is not valid UTF-8; save the file as UTF-8', cause)
    }
    if (text !== '') yield parseExample(text, path, line)
  }
}

/**
 * Reads a whole JSON Lines dataset into memory; see {@link readJsonl} for the format.
 *
 * @param path a UTF-8 file
 * @param limits the file's size is checked before it is opened
 * @returns at least one row
 * @throws LoopLMError NOT_FOUND, or INVALID_FILE naming file, line and field
 *
 * @example
 * ```ts
 * const dataset = await loadDataset('train.jsonl')
 * ```
 */
export async function loadDataset(path: string, limits: JsonlLimits = {}): Promise<Dataset> {
  const maxFileBytes = limits.maxFileBytes ?? defaultMaxFileBytes
  const size = await stat(path).then(
    (stats) => stats.size,
    (cause) => {
      throw unreadable(path, cause)
    },
  )
  if (size > maxFileBytes) {
    const message = `${path} has ${size} bytes, more than maxFileBytes = ${maxFileBytes}; raise the limit or split the file`
    throw new LoopLMError('INVALID_FILE', message, { operation: 'loadDataset' })
  }
  const dataset: Dataset = []
  for await (const example of readJsonl(path, limits)) dataset.push(example)
  if (dataset.length === 0) {
    throw new LoopLMError('INVALID_FILE', `${path} has no rows`, { operation: 'loadDataset' })
  }
  return dataset
}

/**
 * Yields the bytes of each line without its newline, the last one also when no newline ends it.
 *
 * @param remedy what to do about a line that is too long
 */
export async function* readLines(
  path: string,
  maxLineBytes: number = defaultMaxLineBytes,
  remedy = '; is this a JSON Lines file?',
): AsyncGenerator<Uint8Array, void, undefined> {
  let pending: Uint8Array[] = [] // the parts of a line that spans chunks
  let pendingBytes = 0
  let line = 1
  const append = (part: Uint8Array): void => {
    pendingBytes += part.length
    if (pendingBytes > maxLineBytes) {
      throw invalidLine(path, line, `is longer than maxLineBytes = ${maxLineBytes}${remedy}`)
    }
    pending.push(part)
  }
  const take = (): Uint8Array => {
    const bytes = pending.length === 1 ? pending[0]! : Buffer.concat(pending)
    pending = []
    pendingBytes = 0
    line++
    return bytes
  }
  for await (const chunk of readChunks(path)) {
    let start = 0
    for (let end = chunk.indexOf(newline); end !== -1; end = chunk.indexOf(newline, start)) {
      append(chunk.subarray(start, end))
      yield take()
      start = end + 1
    }
    append(chunk.subarray(start))
  }
  if (pendingBytes > 0) yield take()
}

async function* readChunks(path: string): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    yield* createReadStream(path)
  } catch (cause) {
    throw unreadable(path, cause)
  }
}

function parseExample(text: string, path: string, line: number): Example {
  let row: unknown
  try {
    row = JSON.parse(text)
  } catch (cause) {
    throw invalidLine(path, line, `is not JSON: ${(cause as Error).message}`, cause)
  }
  if (typeof row !== 'object' || row === null || Array.isArray(row)) {
    throw invalidLine(path, line, `must be a JSON object, got ${typeName(row)}`)
  }
  if (isDeeper(row, maxJsonDepth)) throw invalidLine(path, line, `is nested more than ${maxJsonDepth} deep`)
  if (Object.hasOwn(row, prototypeKey)) throw invalidLine(path, line, `has a field "${prototypeKey}", which cannot be a key`)
  const problem = rowProblem(row)
  if (problem !== undefined) throw invalidLine(path, line, problem)
  return { prompt: '', ...row }
}

/** An error that names file and line, 1-based. */
export function invalidLine(path: string, line: number, problem: string, cause?: unknown): LoopLMError {
  return new LoopLMError('INVALID_FILE', `${path} line ${line} ${problem}`, { operation: 'readJsonl', cause })
}

function unreadable(path: string, cause: unknown): unknown {
  const code = (cause as { code?: string }).code
  if (code === undefined) return cause
  if (code !== 'ENOENT') return fileError(cause, 'read', path, 'readJsonl')
  return new LoopLMError('NOT_FOUND', `no file ${path}`, { operation: 'readJsonl', cause })
}
