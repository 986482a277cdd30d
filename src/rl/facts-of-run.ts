import { createHash } from 'node:crypto'
import type { LoopLM } from '../model/model.js'
import type { TokenSequence } from '../model/types.js'
import { packageVersion } from '../package-root.js'
import type { DataDescription } from './data.js'
import type { TrainerConfig } from './options.js'
import { plainConfig } from './plain-config.js'

/** Values that must be equal in all processes of a run, by names for error messages. */
export function factsOfRun(
  trainer: string,
  config: TrainerConfig,
  model: LoopLM,
  { fingerprint }: DataDescription,
): Record<string, string> {
  const named = (prefix: string, values: object) =>
    Object.fromEntries(Object.entries(values).map(([name, value]) => [`${prefix}${name}`, JSON.stringify(value) ?? 'undefined']))
  return {
    'version of looplm': packageVersion(),
    trainer,
    ...named('', plainConfig(config)),
    runDir: config.runDir ?? 'none',
    resume: String(config.resume),
    ...named('model.config.', model.config),
    'dtype of the model': model.dtype,
    data: fingerprint,
  }
}

/** A hash that is equal for equal batches. */
export function checksumOfSequences(sequences: readonly TokenSequence[]): string {
  const hash = createHash('sha256')
  for (const sequence of sequences) hash.update(`${Array.from(sequence).join()}\n`)
  return hash.digest('hex').slice(0, 16)
}
