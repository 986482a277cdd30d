// Which responses the grammar of a request allows, byte by byte.
import { describe, expect, it } from 'vitest'
import { beginGrammar } from '../../src/grammar/sessions.js'
import { Tokenizer } from '../../src/index.js'
import { constraintOf } from '../../src/serve/constraints.js'

const tokenizer = Tokenizer.bytes()

/** How many bytes of a response are allowed, and whether it may end after them. */
async function read(ebnf: string, response: string | readonly number[]) {
  const bytes = typeof response === 'string' ? new TextEncoder().encode(response) : response
  const session = await beginGrammar(tokenizer, tokenizer.vocabSize, ebnf)
  let next = await session.next()
  let accepted = 0
  for (const byte of bytes) {
    if (((next.allowed[byte >> 5]! >>> (byte & 31)) & 1) === 0) break
    next = await session.next(byte)
    accepted++
  }
  session.close()
  return { accepted, whole: accepted === bytes.length, mayEnd: next.mayEnd }
}

const properties = { a: { type: 'string' } }
const parameters = { type: 'object', properties, required: ['a'], additionalProperties: false }
const tools = [{ type: 'function', function: { name: 'f', strict: true, parameters } }]
const call = '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'

describe('a thought before JSON', () => {
  const ebnf = constraintOf({ response_format: { type: 'json_object' } } as never, true, false)!

  it.each(['if a < b', '<<', '<table> and <think>', '</thi', '<</', '</</think', '数学', call, ''])(
    'may be %j',
    async (thought) => {
      expect(await read(ebnf, `${thought}</think>\n\n{}`)).toMatchObject({ whole: true, mayEnd: true })
      expect(await read(ebnf, `${thought}</think>x`)).toMatchObject({ whole: false }) // the first closing tag ends it
    },
  )

  it.each([[[0xc0]], [[0xf5]], [[0xed, 0xa0]]])('is never bytes that are not UTF-8: %j', async (bytes) => {
    expect(await read(ebnf, bytes)).toMatchObject({ whole: false })
  })
})

describe('text around strict calls', () => {
  const ebnf = constraintOf({ tools } as never, false, true)!

  it.each(['a << b', 'see <table>, <title> and <t', '<think>hm</think>', '<tool_call', '<tool_call <tool_<', '数学', ''])(
    'may be %j',
    async (text) => {
      expect(await read(ebnf, text)).toMatchObject({ whole: true, mayEnd: true })
      expect(await read(ebnf, `${text}${call}${text}${call}`)).toMatchObject({ whole: true, mayEnd: true })
    },
  )

  it('has no tag of a call that does not fit the parameters', async () => {
    expect(await read(ebnf, '<tool_call>x')).toEqual({ accepted: 11, whole: false, mayEnd: false })
    expect(await read(ebnf, 'a <<tool_call>\n{"name": "g"')).toMatchObject({ whole: false, mayEnd: false })
  })

  it.each([[[0xc0]], [[0xf5]], [[0xed, 0xa0]]])('is never bytes that are not UTF-8: %j', async (bytes) => {
    expect(await read(ebnf, bytes)).toMatchObject({ whole: false })
  })
})

describe('the arguments of a call', () => {
  const rules = (parameters: unknown, change: object = { tool_choice: 'required' }) =>
    constraintOf({ tools: [{ type: 'function', function: { name: 'f', parameters } }], ...change } as never, false, true)!
  const called = (values: string) => `<tool_call>\n{"name": "f", "arguments": ${values}}\n</tool_call>`

  it.each([
    [{}],
    [true],
    [{ title: 'F' }],
    [{ minimum: 1 }],
    [{ type: 'object', enum: [{ a: 1 }, 2] }],
    [{ additionalProperties: { type: 'number' } }],
    [{ $ref: '#/$defs/a%20b', $defs: { 'a b': { anyOf: [{ properties: {} }, { const: { a: 1 } }] } } }],
  ])('are an object if the parameters are %j', async (parameters) => {
    const ebnf = rules(parameters)
    expect(await read(ebnf, called('{"a":1}'))).toMatchObject({ whole: true, mayEnd: true })
    for (const other of ['null', '1', '"x"', '[]']) expect(await read(ebnf, called(other))).toMatchObject({ whole: false })
  })

  it.each([
    [{ type: ['object', 'null'] }],
    [{ type: 'string' }],
    [{ enum: [{}, 1] }],
    [{ anyOf: [{ type: 'object' }, {}] }],
    [{ $ref: '#/$defs/a', $defs: { a: { oneOf: [{ type: 'object' }, { $ref: '#/$defs/b' }] }, b: { type: 'null' } } }],
  ])('refuse parameters that allow other values: %j', (parameters) => {
    const strict = { tools: [{ type: 'function', function: { name: 'f', strict: true, parameters } }] }
    for (const change of [{ tool_choice: 'required' }, { response_format: { type: 'json_object' } }, strict])
      expect(() => rules(parameters, change)).toThrow(
        'tools[0].function.parameters: must allow nothing but objects, because arguments have names; set "type": "object"',
      )
  })

  it('may refer to themselves', async () => {
    const parameters = { anyOf: [{ type: 'object', properties: { a: { $ref: '#' } } }, { $ref: '#/anyOf/0' }] }
    expect(await read(rules(parameters), called('{"a": {}}'))).toMatchObject({ whole: true, mayEnd: true })
  })
})
