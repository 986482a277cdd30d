// What the grammar of a JSON Schema allows, and the schemas that are refused.
import { describe, expect, it } from 'vitest'
import { jsonSchemaToEbnf } from '../../src/grammar/json-schema.js'
import { refusal } from '../refusal.js'
import { accepts } from './accepts.js'

const nested = (levels: number) => {
  let schema: object = { type: 'null' }
  for (let i = 1; i < levels; i++) schema = { type: 'array', items: schema }
  return schema
}
const refused = async (jsonSchema: unknown) => (await refusal(() => jsonSchemaToEbnf(jsonSchema))).message

describe('a reference', () => {
  it.each(['100%', '100%25', 'a~1b', 'caf%C3%A9'])('may name a place by %s', async (name) => {
    const $defs = { '100%': { type: 'null' }, 'a/b': { type: 'null' }, café: { type: 'null' } }
    const jsonSchema = { $defs, oneOf: [{ $ref: `#/$defs/${name}` }, { const: 1 }] }
    expect(await accepts({ jsonSchema }, 'null')).toBe(true)
  })

  it('is refused if it leads in a circle', async () => {
    const $defs = { a: { $ref: '#/$defs/b' }, b: { $ref: '#/$defs/a' } }
    expect(await refused({ $defs, $ref: '#/$defs/a' })).toMatch(/#\/\$defs\/a leads only to references/)
    expect(await refused({ $defs, oneOf: [{ $ref: '#/$defs/a' }, { type: 'null' }] })).toMatch(/may allow the same value/)
  })

  it('is refused if only a prototype has its place', async () => {
    expect(await refused({ $ref: '#/toString' })).toMatch(/#\/toString is not there/)
  })

  it('may begin a chain of thousands', () => {
    const names = Array.from({ length: 5000 }, (_, i) => `${i}`)
    const $defs = Object.fromEntries(names.map((name, i) => [name, { items: { $ref: `#/$defs/${names[i + 1] ?? 0}` } }]))
    expect(jsonSchemaToEbnf({ $defs, $ref: '#/$defs/0' })).toContain('r5000 ::=')
  })
})

describe('a schema', () => {
  it('with oneOf is refused where only objects are told apart, not their other types', async () => {
    const oneOf = (type: unknown) => [1, 2].map((k) => ({ type, properties: { k: { const: k } }, required: ['k'] }))
    expect(await refused({ oneOf: oneOf(['object', 'null']) })).toMatch(/may allow the same value/)
    expect(await accepts({ jsonSchema: { oneOf: oneOf('object') } }, '{"k": 2}')).toBe(true)
  })

  it('may be nested 500 levels deep', async () => {
    expect(await accepts({ jsonSchema: nested(500) }, '[[[[]]]]')).toBe(true)
    expect(await refused(nested(501))).toMatch(/nested more than 500 levels deep; use \$ref/)
    expect(await refused({ const: nested(20000) })).toMatch(/nested more than 500 levels/)
  })

  it.each(['toString', '__proto__', ['date']])('with format %j is refused', async (format) => {
    expect(await refused({ type: 'string', format })).toMatch(/#\/format: must be one of date, time/)
  })

  it('is refused if it requires what is not a name', async () => {
    expect(await refused({ type: 'object', required: [1] })).toMatch(/#\/required: must be a list of names/)
  })
})
