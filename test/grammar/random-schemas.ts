// Random JSON Schemas of what grammars take, and models that draw tokens at random: with a real answer now and then by chance alone.
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import { LoopLM, Tokenizer } from '../../src/index.js'

export const ajv = new Ajv2020({ strict: false, ownProperties: true })
;(addFormats as unknown as (instance: Ajv2020) => void)(ajv)

/** Numbers in [0, 1) of a seed. */
export function generator(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

const names = ['name', 'age', 'a"b', 'größe', 'x', 'tags', 'π', '😀', 'first name', 'back\\slash', '']
const formats = ['date', 'time', 'date-time', 'uuid', 'email', 'ipv4', 'hostname', 'uri']
const patterns = [
  '^[a-c]{2,4}$',
  '^\\d{3}-\\d{4}$',
  '^(foo|bar)?x$',
  '^[^"]{1,3}$',
  '^\\w+@\\w{2}$',
  '^é{1,2}$',
  '^[\\n\\t\\\\/]{2}$',
]

/** A schema whose answers are short. */
export function randomSchema(random: () => number, depth = 0): Record<string, unknown> {
  const pick = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)]!
  const int = (low: number, high: number) => low + Math.floor(random() * (high - low + 1))
  const inner = () => randomSchema(random, depth + 1)
  const kinds = [
    'null',
    'boolean',
    'integer',
    'number',
    'string',
    'const',
    'enum',
    'types',
    ...(depth > 2 ? [] : ['array', 'object', 'object', 'anyOf', 'map', 'tuple', 'oneOf', 'ref']),
  ] // prettier-ignore
  const bounds = () => {
    const low = pick([int(-2000, 2000), int(-2000, 2000) / 100, -0.5, 0])
    const high = Number((low + pick([int(1, 3000), 0.75, 12.5])).toFixed(2))
    return {
      ...(random() < 0.7 ? { minimum: low } : { exclusiveMinimum: low }),
      ...(random() < 0.7 ? { maximum: high } : { exclusiveMaximum: high }),
    }
  }
  const string = () =>
    pick([
      () => ({ type: 'string', minLength: int(0, 3), maxLength: int(3, 8) }),
      () => ({ type: 'string', format: pick(formats) }),
      () => ({ type: 'string', pattern: pick(patterns) }),
    ])()
  const objects: Record<string, () => Record<string, unknown>> = {
    integer: () => (random() < 0.4 ? { type: 'integer' } : { type: 'integer', minimum: int(-500, 20), maximum: int(21, 5000) }),
    number: () => (random() < 0.3 ? { type: 'number' } : { type: 'number', ...bounds() }),
    string,
    const: () => ({ const: pick([1, -2.5, 'a"b\n', null, true, [1, 'é'], { a: [{}] }]) }),
    enum: () => ({ enum: [pick(names), int(0, 9), null, `${int(0, 99)}€`] }),
    types: () => ({ type: ['integer', 'null', 'boolean'], minimum: 0, maximum: int(1, 200) }),
    array: () => ({ type: 'array', items: inner(), minItems: int(0, 2), maxItems: int(2, 4) }),
    tuple: () => ({
      type: 'array',
      prefixItems: [inner(), inner()],
      items: random() < 0.5 ? false : inner(),
      maxItems: int(2, 4),
      minItems: int(0, 2),
    }),
    map: () => ({
      type: 'object',
      additionalProperties: inner(),
      maxProperties: int(0, 3),
      propertyNames: { pattern: '^[a-z]{1,4}$' },
    }),
    anyOf: () => ({ anyOf: [inner(), inner(), inner()] }),
    oneOf: () => ({ oneOf: [{ type: 'integer', minimum: 3, maximum: 99 }, string(), { type: 'boolean' }] }),
    ref: () => ({ $ref: '#/$defs/shared' }),
    object: () => {
      const chosen = [...new Set(Array.from({ length: int(1, 5) }, () => pick(names)))]
      const properties = Object.fromEntries(chosen.map((name) => [name, inner()]))
      const required = chosen.filter(() => random() < 0.6)
      return {
        type: 'object',
        properties,
        ...(required.length > 0 ? { required } : {}),
        ...(random() < 0.5 ? { additionalProperties: false } : {}),
      }
    },
  }
  const kind = pick(kinds)
  const schema = objects[kind]?.() ?? { type: kind }
  return depth > 0
    ? schema
    : { ...schema, $defs: { shared: { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'] } } }
}

/** A byte-level vocabulary with tokens of several bytes, halves of characters and JSON's own pairs among them. */
export function mixedTokenizer(): Tokenizer {
  const json = JSON.parse(Tokenizer.bytes({ special: { eos: '<eos>' } }).files()[0]![1])
  const byByte = Array.from(
    { length: 256 },
    (_, byte) => Object.entries(json.model.vocab as Record<string, number>).find(([, id]) => id === byte)![0],
  )
  const spelled = (bytes: Uint8Array) => Array.from(bytes, (byte) => byByte[byte]!).join('')
  const wanted = [
    '{"',
    '":',
    '", "',
    '"}',
    '}]',
    ', ',
    ': ',
    'tr',
    'true',
    'null',
    '12',
    '00',
    '.5',
    'é',
    'ü',
    '😀',
    ' a',
    'na',
    'name',
    '"name"',
    '\\n',
    '\\"',
    'ab',
    '-1',
    '],',
    '[[',
    '"x"',
  ] // prettier-ignore
  const pieces = [
    ...wanted.map((text) => new TextEncoder().encode(text)),
    Uint8Array.of(0xf0, 0x9f),
    Uint8Array.of(0x98, 0x80),
    Uint8Array.of(0xc3),
    Uint8Array.of(0xa9, 0x22),
  ] // prettier-ignore
  let next = 257
  for (const bytes of pieces) {
    const token = spelled(bytes)
    if (!Object.hasOwn(json.model.vocab, token)) json.model.vocab[token] = next++
  }
  return new Tokenizer(json, { eos_token: '<eos>' })
}

/** A model that knows nothing, with end token 256 and ids behind the tokenizer's. */
export async function randomModel(seed: number, tokenizer: Tokenizer): Promise<LoopLM> {
  const model = await LoopLM.create(
    {
      ...{
        vocab_size: tokenizer.vocabSize + 7,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
      },
      ...{ total_ut_steps: 2, eos_token_id: 256, max_position_embeddings: 8192, initializer_range: 0.3 },
    },
    { seed },
  )
  model.tokenizer = tokenizer
  return model
}
