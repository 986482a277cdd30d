import { z } from 'zod'
import { type ErrorCode, LoopLMError } from '../errors.js'
import { describe } from './arguments.js'
import { didYouMean } from './names.js'
import { optionOfTrl } from './trl-names.js'

/** `true` if two types have the same fields with compatible types. */
export type Same<A, B> = [A, B, keyof A, keyof B] extends [B, A, keyof B, keyof A] ? true : false

/** The most problems that one error lists. */
const maxProblems = 20

/** One thing that is wrong with a value. */
export interface Problem {
  /** Path within the value. */
  path: readonly PropertyKey[]
  kind: 'unknown' | 'missing' | 'invalid'
  /** What is allowed or, for an unknown field, what to do; without the path. */
  message: string
}

/**
 * Checks a value against a schema and fills in defaults. The error lists every rejected field with its value and what is
 * allowed. For an unknown field it names the nearest known one.
 *
 * @param operation what the value belongs to, for example `RLTTTrainer` or a file's path
 * @param options.code of the error; defaults to INVALID_CONFIG
 * @param options.what the word for a field; defaults to `field`
 * @throws LoopLMError with one line per problem
 */
export function checkSchema<Schema extends z.ZodType>(
  operation: string,
  schema: Schema,
  value: unknown,
  options: { code?: ErrorCode; what?: string } = {},
): z.output<Schema> {
  const { code = 'INVALID_CONFIG', what = 'field' } = options
  const result = schema.safeParse(value, { reportInput: true })
  if (result.success) return result.data
  const lines = problemsOf(result.error, schema, what).map(({ path, message }) => `${path.join('.') || 'options'}: ${message}`)
  const more = lines.length > maxProblems ? [...lines.slice(0, maxProblems), '… and more'] : lines
  throw new LoopLMError(code, more.join('\n'), { operation, cause: result.error })
}

/** {@link checkSchema} for a caller's argument, whose fields are called options. */
export function parseOptions<Schema extends z.ZodType>(operation: string, schema: Schema, options: unknown): z.output<Schema> {
  return checkSchema(operation, schema, options, { what: 'option' })
}

/** An error INVALID_CONFIG for options that are valid separately but cannot be combined. */
export function refuseOptions(operation: string, message: string): LoopLMError {
  return new LoopLMError('INVALID_CONFIG', message, { operation })
}

/**
 * The problems that zod found, in words; at most one more than an error lists.
 *
 * @param error of `schema.safeParse(…, { reportInput: true })`
 */
export function problemsOf(error: z.ZodError, schema: z.ZodType, what = 'field'): Problem[] {
  return error.issues.flatMap(causes).flatMap((issue): Problem[] => {
    const { path } = issue
    if (issue.code !== 'unrecognized_keys') {
      const missing = issue.code !== 'custom' && 'input' in issue && issue.input === undefined
      return [{ path, kind: missing ? 'missing' : 'invalid', message: invalidText(issue) }]
    }
    const fields = objectsAt(schema, path)
      .filter((object) => isOfKind(object, issue.input))
      .flatMap((object) => Object.entries<z.ZodType>(object.shape))
    return issue.keys.slice(0, maxProblems + 1).map((name): Problem => {
      const key = name.slice(0, 64)
      return { path: [...path, key], kind: 'unknown', message: `unknown ${what}${unknownRemedy(key, fields, what)}` }
    })
  })
}

/**
 * Names of a field in earlier versions and other libraries, for `.meta()` of the field. They are not accepted: the error for
 * such a name asks whether the field was meant.
 */
export function alsoCalled(...names: string[]): { alsoCalled: readonly string[] } {
  return { alsoCalled: names }
}

function unknownRemedy(key: string, fields: readonly (readonly [name: string, schema: z.ZodType])[], what: string): string {
  const renamed = fields.find(([, schema]) =>
    (schema.meta() as Partial<ReturnType<typeof alsoCalled>>)?.alsoCalled?.includes(key),
  )
  const known = [...new Set(fields.map(([name]) => name))]
  const other = renamed?.[0] ?? optionOfTrl(key, known)
  if (other !== undefined) return `; did you mean ${other}?`
  const list = known.length === 0 ? '' : `the ${what}s are ${known.join(', ')}`
  const remedy = didYouMean(key, known, list)
  return remedy === '' ? '' : `; ${remedy}`
}

/** The object schemas that a schema allows at a path. */
function objectsAt(schema: z.ZodType, path: readonly PropertyKey[]): z.ZodObject[] {
  if (schema instanceof z.ZodUnion) return schema.options.flatMap((option) => objectsAt(option as z.ZodType, path))
  const [step, ...rest] = path
  if (schema instanceof z.ZodArray) return typeof step === 'number' ? objectsAt(schema.element as z.ZodType, rest) : []
  if (schema instanceof z.ZodObject) {
    if (step === undefined) return [schema]
    const field: z.ZodType | undefined = schema.shape[String(step)]
    return field === undefined ? [] : objectsAt(field, rest)
  }
  const { innerType } = schema.def as { innerType?: z.ZodType } // for an optional, a default or a readonly
  return innerType === undefined ? [] : objectsAt(innerType, path)
}

function isOfKind({ shape }: z.ZodObject, value: unknown): boolean {
  const kind: z.ZodType | undefined = shape.kind
  return kind === undefined || kind.safeParse((value as { kind?: unknown }).kind).success
}

function invalidText(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_key' && issue.issues[0] !== undefined) return issue.issues[0].message
  const value = 'input' in issue && issue.code !== 'custom' ? `, got ${show(issue.input)}` : ''
  if (issue.code !== 'invalid_value' || typeof issue.input !== 'string') return `${issue.message}${value}`
  const remedy = didYouMean(issue.input, issue.values.map(String), '')
  return `${issue.message}${value}${remedy === '' ? '' : `; ${remedy}`}`
}

/** The problems of a value that may have several types: those of the nearest alternative, with full paths. */
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

function show(value: unknown): string {
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'number' || typeof value === 'bigint' || value === undefined) return String(value)
  const text = asJson(value)
  return text.length > 80 ? `${text.slice(0, 77)}…` : text
}

/** Some values cannot be written as JSON: circular objects, big integers. */
function asJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value)
  } catch {
    return describe(value)
  }
}
