import { types } from 'node:util'
import { LoopLMError } from '../errors.js'
import { didYouMean } from './names.js'

export interface Range {
  min?: number
  max?: number
  /** Exclusive lower bound. */
  above?: number
  /** Exclusive upper bound. */
  below?: number
  integer?: boolean
}

/** The field names of a type. The compiler rejects a list with a missing or an extra name. */
export type Keys<Options> = Readonly<Record<keyof Options, true>>

/**
 * Checks that the names of all options are known. A misspelt one would otherwise silently have its default.
 *
 * @param options the caller's options
 * @param known the known fields
 * @param name the argument or field that holds the options; errors prefix its fields with the name of a field
 * @throws LoopLMError INVALID_ARGUMENT naming the option, with the nearest known one
 */
export function checkOptions<Options extends object>(
  options: Options,
  known: Keys<Options>,
  operation: string,
  name = 'options',
): void {
  const refuse = (problem: string) => new LoopLMError('INVALID_ARGUMENT', problem, { operation })
  const names = Object.keys(known)
  const given: unknown = options
  if (typeof given !== 'object' || given === null || Array.isArray(given) || ArrayBuffer.isView(given)) {
    throw refuse(`${name} must be an object with fields such as ${names[0]}, got ${describe(given)}`)
  }
  const path = (field: string) => (name === 'options' ? field : `${name}.${field}`)
  checkNames(given, names, 'option', operation, path)
  for (const [field, value] of Object.entries(given)) {
    if (value === null) throw refuse(`${path(field)} must not be null; omit it for its default`)
    if (field === 'signal' && value !== undefined) checkSignal(value, operation)
  }
}

/**
 * Rejects unknown fields, and names the nearest known one.
 *
 * @param path formats a name for the error
 */
export function checkNames(
  given: object,
  known: readonly string[],
  what: 'option' | 'field',
  operation: string,
  path = (name: string) => name,
): void {
  const unknown = Object.keys(given).find((name) => !known.includes(name))
  if (unknown === undefined) return
  const remedy = didYouMean(unknown, known, `the ${what}s are ${known.join(', ')}`, { write: path })
  throw new LoopLMError('INVALID_ARGUMENT', `${path(unknown)}: unknown ${what}; ${remedy}`, { operation })
}

/** Checks for an AbortSignal, possibly of another realm. */
function checkSignal(signal: unknown, operation: string): void {
  const { aborted, addEventListener } = Object(signal) as { aborted?: unknown; addEventListener?: unknown }
  if (typeof aborted === 'boolean' && typeof addEventListener === 'function') return
  throw new LoopLMError('INVALID_ARGUMENT', `signal must be an AbortSignal, got ${describe(signal)}`, { operation })
}

/**
 * Checks that a value is a number in a range.
 * @throws LoopLMError INVALID_ARGUMENT naming the argument, its value and the allowed range
 */
export function checkNumber(value: unknown, name: string, range: Range, operation: string): number {
  const { min = -Infinity, max = Infinity, above = -Infinity, below = Infinity, integer = false } = range
  const fits =
    typeof value === 'number' && Number.isFinite(value) && value >= min && value <= max && value > above && value < below
  if (fits && (!integer || Number.isSafeInteger(value))) return value
  const bounds = [
    above > -Infinity && `greater than ${above}`,
    min > -Infinity && `at least ${min}`,
    max < Infinity && `at most ${max}`,
    below < Infinity && `less than ${below}`,
  ].filter((bound) => bound !== false)
  const of = bounds[0]?.startsWith('at ') ? 'of ' : ''
  const allowed = `${integer ? 'an integer' : 'a finite number'} ${of}${bounds.join(' and ')}`.trim()
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be ${allowed}, got ${describe(value)}`, { operation })
}

/**
 * Checks that a value is one of a list of strings.
 * @throws LoopLMError INVALID_ARGUMENT
 */
export function checkWord<Word extends string>(value: unknown, name: string, words: readonly Word[], operation: string): Word {
  const word = words.find((known) => known === value)
  if (word !== undefined) return word
  const allowed = words.map((known) => `'${known}'`).join(', ')
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be one of ${allowed}, got ${describe(value)}`, { operation })
}

/**
 * Checks for true or false. A value that is merely truthy probably belongs to another argument.
 * @throws LoopLMError INVALID_ARGUMENT
 */
export function checkFlag(value: unknown, name: string, operation: string): boolean {
  if (typeof value === 'boolean') return value
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be true or false, got ${describe(value)}`, { operation })
}

/** Checks for a string that is not empty, such as a path. An empty path would be resolved to the current folder. */
export function checkText(value: unknown, name: string, what: string, operation: string): string {
  if (typeof value === 'string' && value !== '') return value
  const got = value === '' ? 'an empty string' : describe(value)
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be ${what}, got ${got}`, { operation })
}

/**
 * Checks for a function.
 * @throws LoopLMError INVALID_ARGUMENT
 */
export function checkFunction(value: unknown, name: string, operation: string): void {
  if (typeof value === 'function') return
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be a function, got ${describe(value)}`, { operation })
}

/** Checks for an array of names of files or folders. A string alone is refused, which would be read as its characters. */
export function checkPaths(value: unknown, name: string, what: string, operation: string): void {
  if (!Array.isArray(value))
    throw new LoopLMError('INVALID_ARGUMENT', `${name} must be an array of ${what}s, got ${describe(value)}`, { operation })
  for (const [i, path] of value.entries()) checkText(path, `${name}[${i}]`, `a ${what}`, operation)
}

/**
 * Checks that a value is an instance of a class of this package.
 *
 * @param maker how to create one, for the error
 * @throws LoopLMError INVALID_ARGUMENT
 */
export function checkInstance<Class>(
  value: unknown,
  name: string,
  type: { readonly name: string; readonly prototype: Class; [Symbol.hasInstance](value: unknown): boolean },
  maker: string,
  operation: string,
): Class {
  if (value instanceof type) return value as Class
  const remedy = types.isPromise(value) ? ': await it' : ''
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be a ${type.name}, as ${maker}, got ${describe(value)}${remedy}`, {
    operation,
  })
}

/** Describes a value for an error message. Short, and never a whole array. */
export function describe(value: unknown): string {
  if (typeof value === 'string') return value.length > 60 ? `'${value.slice(0, 60)}…'` : `'${value}'`
  if (Array.isArray(value) || (ArrayBuffer.isView(value) && 'length' in value))
    return `${value.constructor.name} of length ${value.length}`
  if (typeof value === 'object' && value !== null) {
    const type = (value.constructor as { name?: unknown } | undefined)?.name
    return typeof type === 'string' && type !== '' && type !== 'Object' ? `an object of class ${type}` : 'an object'
  }
  if (typeof value === 'function') return 'a function'
  return typeof value === 'bigint' ? `${value}n` : String(value)
}
