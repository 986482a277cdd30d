import type { z } from 'zod'
import { describe, nearestName } from '../arguments.js'
import { LoopLMError } from '../errors.js'

export { nearestName }

/**
 * Checks options against a schema and fills in the defaults. Every refused field is named with its value and what is allowed;
 * an unknown field is answered with the nearest known one.
 *
 * @param operation what the options belong to, for example `RLTTTrainer` or a file's path
 * @param schema a zod object schema that refuses unknown keys
 * @param options what the caller gave
 * @throws LoopLMError INVALID_CONFIG with one line per problem
 */
export function checkOptions<Schema extends z.ZodObject>(operation: string, schema: Schema, options: unknown): z.output<Schema> {
  const result = schema.safeParse(options, { reportInput: true })
  if (result.success) return result.data
  const known = Object.keys(schema.shape)
  const lines = result.error.issues.flatMap((issue) => {
    const field = issue.path.join('.')
    if (issue.code === 'unrecognized_keys') {
      return issue.keys.map((key) => unknownKey(field === '' ? key : `${field}.${key}`, field === '' ? known : []))
    }
    const where = field === '' ? 'options' : field
    const value = 'input' in issue && issue.code !== 'custom' ? `, got ${show(issue.input)}` : ''
    return [`${where}: ${issue.message}${value}`]
  })
  throw new LoopLMError('INVALID_CONFIG', lines.join('\n'), { operation, cause: result.error })
}

/** INVALID_CONFIG for options that each are right and do not go together. */
export function refuseOptions(operation: string, message: string): LoopLMError {
  return new LoopLMError('INVALID_CONFIG', message, { operation })
}

function unknownKey(key: string, known: readonly string[]): string {
  const nearest = nearestName(key, known)
  if (nearest !== undefined) return `${key}: unknown option; did you mean ${nearest}?`
  return known.length === 0 ? `${key}: unknown option` : `${key}: unknown option; the options are ${known.join(', ')}`
}

function show(value: unknown): string {
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'number' || typeof value === 'bigint' || value === undefined) return String(value)
  const text = asJson(value)
  return text.length > 80 ? `${text.slice(0, 77)}…` : text
}

/** Some values have no JSON: objects that contain themselves, big integers. */
function asJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value)
  } catch {
    return describe(value)
  }
}
