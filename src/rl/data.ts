import { createHash } from 'node:crypto'
import { isConversation } from '../data/rows.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { ProblemSource } from './problems.js'
import type { Problem } from './rollout-record.js'

/** The data that a run trains on, as recorded in checkpoints. */
export interface DataDescription {
  tokenizer: Tokenizer
  /** Equal if the data is equal. */
  fingerprint: string
  /** A description for people, for example `a dataset of 7473 rows`. */
  description: string
  /** Rows or packed sequences per pass. undefined if the data never ends. */
  rows?: number | undefined
  /** Whether some rows have messages as their text. */
  conversations?: boolean
}

const sampledProblems = 8

/**
 * Describes the data of a source. The fingerprint covers all rows of a dataset, but only the first problems of a task.
 *
 * @param rows.problemOf returns what is wrong with a row, or undefined
 * @param rows.read tokenizes a row or rejects it; called for rows that may be too long for the model
 * @throws LoopLMError INVALID_ARGUMENT naming the first row that is rejected or is not JSON, ABORTED
 */
export async function describeProblems(
  source: ProblemSource,
  rows: { problemOf(row: Problem): string | undefined; read(row: Problem): Promise<void> },
  signal?: AbortSignal,
): Promise<DataDescription> {
  const { task, tokenizer, maxLength, chat } = source
  const { problemOf, read } = rows
  // no token has less than one byte, but a template adds tokens
  const mayBeLong = (row: Problem, bytes: number) =>
    bytes + (chat.wrapsPrompts || isConversation(row) ? chat.extraLength : 0) >= maxLength
  const described = await source.describe({ problemOf, read, mayBeLong }, signal)
  if (described !== undefined) return { tokenizer, ...described, description: `a dataset of ${described.rows} rows` }
  const hash = createHash('sha256')
  for (const problem of await source.take(0, sampledProblems)) {
    const wrong = problemOf(problem)
    if (wrong !== undefined)
      throw new LoopLMError('INVALID_ARGUMENT', `${source.nameOf(problem)} ${wrong}`, { operation: 'dataset' })
    hash.update(`${JSON.stringify(problem)}\n`)
  }
  return { tokenizer, fingerprint: hash.digest('hex').slice(0, 16), description: `the task ${task!.name}` }
}
