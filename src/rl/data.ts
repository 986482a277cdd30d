import { createHash } from 'node:crypto'
import { isConversation } from '../data/rows.js'
import type { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import type { ProblemSource } from './problems.js'
import type { Problem } from './rollout-record.js'

/** What a run trains on, as far as checkpoints are concerned. */
export interface DataDescription {
  tokenizer: Tokenizer
  /** Equal as long as the data is. */
  fingerprint: string
  /** For people, for example `a dataset of 7473 rows`. */
  description: string
  /** Rows or packed sequences of a pass; undefined where there is no end. */
  rows?: number | undefined
  /** Whether rows were seen whose text are messages. */
  conversations?: boolean
}

const sampledProblems = 8

/**
 * A dataset is known by all its rows, a task by its first problems.
 *
 * @param rows.problemOf what is wrong with a row, or undefined
 * @param rows.read turns a row into tokens or refuses it; called for those that may be too long for the model
 * @throws LoopLMError INVALID_ARGUMENT naming the first row that is refused or has no JSON, ABORTED
 */
export async function describeProblems(
  source: ProblemSource,
  rows: { problemOf(row: Problem): string | undefined; read(row: Problem): Promise<void> },
  signal?: AbortSignal,
): Promise<DataDescription> {
  const { task, tokenizer, maxLength, chat } = source
  const { problemOf, read } = rows
  // no token has less than a byte, but a template adds some
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
