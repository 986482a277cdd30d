import type { z } from 'zod'
import { describe, nearestName } from '../arguments.js'
import { LoopLMError } from '../errors.js'

export { nearestName }

/** Problems that one error lists. */
const maxProblems = 20

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
  const lines = result.error.issues.flatMap(causes).flatMap((issue) => {
    const field = issue.path.join('.')
    if (issue.code === 'unrecognized_keys') {
      return issue.keys
        .slice(0, maxProblems + 1)
        .map((key) => unknownKey(field === '' ? key : `${field}.${key}`, field === '' ? known : []))
    }
    const where = field === '' ? 'options' : field
    const value = 'input' in issue && issue.code !== 'custom' ? `, got ${show(issue.input)}` : ''
    const nearest =
      issue.code === 'invalid_value' && typeof issue.input === 'string' && nearestName(issue.input, issue.values.map(String))
    return [`${where}: ${issue.message}${value}${nearest ? `; did you mean ${nearest}?` : ''}`]
  })
  const more = lines.length > maxProblems ? [...lines.slice(0, maxProblems), '… and more'] : lines
  throw new LoopLMError('INVALID_CONFIG', more.join('\n'), { operation, cause: result.error })
}

/** What is wrong with a value that may be one of several things: the issues of the one that it comes nearest to, by their whole paths. */
function causes(issue: z.core.$ZodIssue): z.core.$ZodIssue[] {
  if (issue.code !== 'invalid_union') return [issue]
  const alternatives = issue.errors.map((errors) =>
    errors.flatMap((error) => causes({ ...error, path: [...issue.path, ...error.path] })),
  )
  const depth = issue.path.length
  const isKind = ({ code, path }: z.core.$ZodIssue) =>
    code === 'invalid_value' && path.length === depth + 1 && path[depth] === 'kind'
  const isOfAnotherType = (error: z.core.$ZodIssue) =>
    error.path.length === depth &&
    error.code !== 'unrecognized_keys' &&
    !(error.code === 'invalid_value' && typeof error.input === 'string' && typeof error.values[0] === 'string')
  const near = alternatives.filter((errors) => !errors.some((error) => isOfAnotherType(error) || isKind(error)))
  if (near.length > 0) return near.reduce((best, errors) => (errors.length < best.length ? errors : best))
  const kinds = alternatives.flat().filter(isKind)
  if (kinds.length === 0) return [issue]
  const values = kinds.flatMap((error) => (error.code === 'invalid_value' ? error.values : []))
  return [{ ...kinds[0], values, message: `must be one of ${values.join(', ')}` } as z.core.$ZodIssue]
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
