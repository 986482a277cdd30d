import { createHash } from 'node:crypto'
import type { Tokenizer } from '../data/tokenizer.js'
import type { TrainerConfig } from './config.js'
import type { ProblemSource } from './problems.js'

/** What a run trains on, as far as checkpoints are concerned. */
export interface DataDescription {
  tokenizer: Tokenizer
  /** Equal as long as the data is. */
  fingerprint: string
  /** For people, for example `a dataset of 7473 rows`. */
  description: string
}

const sampledProblems = 8

/** A dataset is known by all its rows, a task by its first problems. */
export function describeProblems(source: ProblemSource, config: Pick<TrainerConfig, 'dataset' | 'seed'>): DataDescription {
  const { task, tokenizer } = source
  const { dataset } = config
  const hash = createHash('sha256')
  for (const row of dataset ?? source.take(0, sampledProblems)) hash.update(`${JSON.stringify(row)}\n`)
  const description = task === undefined ? `a dataset of ${dataset?.length} rows` : `the task ${task.name}`
  return { tokenizer, fingerprint: hash.digest('hex').slice(0, 16), description }
}
