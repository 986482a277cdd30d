import { createHash } from 'node:crypto'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { TrainerConfig } from './options.js'
import type { Problem, ProblemSource } from './problems.js'

/** What a run trains on, as far as checkpoints are concerned. */
export interface DataDescription {
  tokenizer: Tokenizer
  /** Equal as long as the data is. */
  fingerprint: string
  /** For people, for example `a dataset of 7473 rows`. */
  description: string
}

const sampledProblems = 8
// Between two slices, other work of the process gets its turn.
const charactersAtOnce = 2 ** 20
const millisecondsAtOnce = 8

/**
 * A dataset is known by all its rows, a task by its first problems.
 *
 * @param rows.problemOf what is wrong with a row, or undefined
 * @param rows.read turns a row into tokens or refuses it; called for those that may be too long for the model
 * @throws LoopLMError INVALID_ARGUMENT naming the first row that is refused or has no JSON, ABORTED
 */
export async function describeProblems(
  source: ProblemSource,
  config: Pick<TrainerConfig, 'dataset' | 'seed'>,
  rows: { problemOf(row: Problem): string | undefined; read(row: Problem): void },
  signal?: AbortSignal,
): Promise<DataDescription> {
  const { task, tokenizer } = source
  const { dataset } = config
  const hash = createHash('sha256')
  let characters = 0
  let begun = performance.now()
  for (const [i, row] of (dataset ?? source.take(0, sampledProblems)).entries()) {
    const name = task === undefined ? `dataset[${i}]` : source.nameOf(row)
    const wrong = rows.problemOf(row)
    if (wrong !== undefined) throw new LoopLMError('INVALID_ARGUMENT', `${name} ${wrong}`, { operation: 'dataset' })
    const text = jsonOf(row, name)
    hash.update(`${text}\n`)
    if (task === undefined && Buffer.byteLength(text) >= source.maxLength) rows.read(row) // no token has less than a byte
    characters += text.length
    if (characters < charactersAtOnce && performance.now() - begun < millisecondsAtOnce) continue
    await new Promise((resolve) => setImmediate(resolve))
    characters = 0
    begun = performance.now()
    if (signal?.aborted) throw new LoopLMError('ABORTED', 'the dataset was not read to its end', { cause: signal.reason })
  }
  const description = task === undefined ? `a dataset of ${dataset?.length} rows` : `the task ${task.name}`
  return { tokenizer, fingerprint: hash.digest('hex').slice(0, 16), description }
}

/** @throws LoopLMError INVALID_ARGUMENT naming the column that has no JSON */
function jsonOf(row: Problem, name: string): string {
  try {
    return JSON.stringify(row) ?? ''
  } catch (cause) {
    const column = Object.keys(row).find((key) => !hasJson(row[key]))
    const where = column === undefined ? '' : ` field "${column}"`
    const remedy = 'rows are plain data, as in a JSON Lines file: give texts and numbers in place of big integers, and no cycles'
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
