import { types } from 'node:util'
import { LoopLMError } from '../errors.js'
import { didYouMean } from './names.js'

export interface Range {
  min?: number
  max?: number
  /** The bound itself is refused. */
  above?: number
  /** The bound itself is refused. */
  below?: number
  integer?: boolean
}

/** Names every field of a type once; the compiler refuses a list that lacks one or has one too many. */
export type Keys<Options> = Readonly<Record<keyof Options, true>>

/**
 * Options whose names are all known: one that is misspelt would otherwise be left at its default in silence.
 *
 * @param options what the caller gave
 * @param known the fields that there are
 * @param name of the argument or the field that holds the options; fields of the latter are named with it
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
 * Refuses a field that is none of the known ones, with the nearest of them.
 *
 * @param path how an error writes a name
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

/** An AbortSignal, also one of another realm. */
function checkSignal(signal: unknown, operation: string): void {
  const { aborted, addEventListener } = Object(signal) as { aborted?: unknown; addEventListener?: unknown }
  if (typeof aborted === 'boolean' && typeof addEventListener === 'function') return
  throw new LoopLMError('INVALID_ARGUMENT', `signal must be an AbortSignal, got ${describe(signal)}`, { operation })
}

/** A number in a range, or INVALID_ARGUMENT naming the argument, its value and what is allowed. */
export function checkNumber(value: unknown, name: string, range: Range, operation: string): number {
  const { min = -Infinity, max = Infinity, above = -Infinity, below = Infinity, integer = false } = range
  const fits =
    typeof value === 'number' && Number.isFinite(value) && value >= min && value <= max && value > above && value < below
  if (fits && (!integer || Number.isSafeInteger(value))) return value
  const bounds = [
    above > -Infinity && `more than ${above}`,
    min > -Infinity && `at least ${min}`,
    max < Infinity && `at most ${max}`,
    below < Infinity && `less than ${below}`,
  ].filter((bound) => bound !== false)
  const allowed = [integer ? 'an integer' : 'a finite number', bounds.join(' and ')].join(' ').trim()
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be ${allowed}, got ${describe(value)}`, { operation })
}

/** One of a list of words, or INVALID_ARGUMENT. */
export function checkWord<Word extends string>(value: unknown, name: string, words: readonly Word[], operation: string): Word {
  const word = words.find((known) => known === value)
  if (word !== undefined) return word
  const allowed = words.map((known) => `'${known}'`).join(', ')
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be one of ${allowed}, got ${describe(value)}`, { operation })
}

/** true or false, or INVALID_ARGUMENT; a value that is only true-ish is most likely another argument's. */
export function checkFlag(value: unknown, name: string, operation: string): boolean {
  if (typeof value === 'boolean') return value
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be true or false, got ${describe(value)}`, { operation })
}

/** A text that is not empty, such as a path: an empty one would be resolved to the current folder. */
export function checkText(value: unknown, name: string, what: string, operation: string): string {
  if (typeof value === 'string' && value !== '') return value
  const got = value === '' ? 'an empty string' : describe(value)
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be ${what}, got ${got}`, { operation })
}

/**
 * An object of a class of this package, or INVALID_ARGUMENT.
 *
 * @param maker how one is made, for the error
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

/** A value in an error message: short, and never a whole array. */
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
