import { LoopLMError } from '../errors.js'
import { describe } from '../validation/arguments.js'

/** Reads the fields of an object in a tokenizer.json and checks them. Errors name the file and the field. */
export class Fields {
  readonly #values: Readonly<Record<string, unknown>>
  readonly #path: string
  readonly #source: string

  constructor(values: unknown, path: string, source: string) {
    this.#path = path
    this.#source = source
    if (typeof values !== 'object' || values === null || Array.isArray(values)) {
      throw this.#error(path, `must be an object, got ${describe(values)}`)
    }
    this.#values = values as Record<string, unknown>
  }

  /** An error INVALID_FILE that names the field. */
  invalid(field: string, problem: string, cause?: unknown): LoopLMError {
    return this.#error(`${this.#path}.${field}`, problem, cause)
  }

  /** An error UNSUPPORTED that names the field: valid in Python, but not implemented here. */
  unsupported(field: string, problem: string): LoopLMError {
    const message = `${this.#source}: field "${this.#path}.${field}" ${problem}`
    return new LoopLMError('UNSUPPORTED', message, { operation: 'Tokenizer' })
  }

  #error(field: string, problem: string, cause?: unknown): LoopLMError {
    return new LoopLMError('INVALID_FILE', `${this.#source}: field "${field}" ${problem}`, { operation: 'Tokenizer', cause })
  }

  /** The value of a field. null counts as absent. */
  value(field: string): unknown {
    return this.#values[field] ?? undefined
  }

  #read<Value>(field: string, fits: (value: unknown) => value is Value, what: string, fallback?: Value): Value {
    const value = this.value(field)
    if (value === undefined && fallback !== undefined) return fallback
    if (fits(value)) return value
    throw this.invalid(field, `must be ${what}, got ${describe(value)}`)
  }

  string(field: string, fallback?: string): string {
    return this.#read(field, (value) => typeof value === 'string', 'a string', fallback)
  }

  /** One character, which may be a surrogate pair. */
  character(field: string, fallback?: string): string {
    const isOne = (value: unknown): value is string => typeof value === 'string' && Array.from(value).length === 1
    return this.#read(field, isOne, 'a string of one character', fallback)
  }

  flag(field: string, fallback?: boolean): boolean {
    return this.#read(field, (value) => typeof value === 'boolean', 'true or false', fallback)
  }

  count(field: string, min: number, fallback?: number): number {
    const fits = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= min
    return this.#read(field, fits, `an integer of at least ${min}`, fallback)
  }

  word<Word extends string>(field: string, words: readonly Word[], fallback?: Word): Word {
    const fits = (value: unknown): value is Word => words.includes(value as Word)
    return this.#read(field, fits, `one of ${words.join(', ')}`, fallback)
  }

  list(field: string): readonly unknown[] {
    return this.#read(field, (value): value is unknown[] => Array.isArray(value), 'an array')
  }

  object(field: string): Fields {
    return new Fields(this.value(field), `${this.#path}.${field}`, this.#source)
  }

  objects(field: string): Fields[] {
    return this.list(field).map((entry, i) => new Fields(entry, `${this.#path}.${field}.${i}`, this.#source))
  }
}
