import { LoopLMError } from '../errors.js'
import { checkOptions, describe, type Keys } from '../validation/arguments.js'
import { withoutRepeatedEmptyText } from './empty-text.js'
import { jsonSchemaToEbnf } from './json-schema.js'
import { regexToEbnf } from './regex.js'

/**
 * A constraint on generated text. Set exactly one of the three fields.
 *
 * @example
 * ```ts
 * import type { Grammar } from 'looplm'
 *
 * const person: Grammar = { jsonSchema: { type: 'object', properties: { age: { type: 'integer' } }, required: ['age'] } }
 * const date: Grammar = { regex: '\\d{4}-\\d{2}-\\d{2}' }
 * const sum: Grammar = { ebnf: 'root ::= number ("+" number)*\nnumber ::= [0-9]+' }
 * ```
 */
export interface Grammar {
  /** A JSON Schema. The text is JSON in one line that the schema allows. `true` allows any JSON value. */
  jsonSchema?: object | boolean
  /** A regular expression that the whole text must match. */
  regex?: string
  /** Rules in xgrammar's EBNF. The text must match the first rule named root. */
  ebnf?: string
}

const fields: Keys<Grammar> = { jsonSchema: true, regex: true, ebnf: true }

/**
 * Converts a grammar to rules.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the field and what is wrong with it
 */
export function grammarText(grammar: Grammar, operation: string): string {
  checkOptions(grammar, fields, operation, 'grammar')
  const given = Object.entries(grammar).filter(([, value]) => value !== undefined)
  const refuse = (message: string) => new LoopLMError('INVALID_ARGUMENT', message, { operation })
  if (given.length !== 1) throw refuse(`grammar must have one of jsonSchema, regex and ebnf, got ${given.length} of them`)
  const [[name, value]] = given as [[string, unknown]]
  if (name === 'jsonSchema') return jsonSchemaToEbnf(value)
  if (typeof value !== 'string' || value === '')
    throw refuse(`grammar.${name} must be a string that is not empty, got ${describe(value)}`)
  return name === 'regex' ? `root ::= ${regexToEbnf(value)}` : withoutRepeatedEmptyText(value)
}
