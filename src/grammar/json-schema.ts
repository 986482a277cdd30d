// Converts JSON Schema to EBNF. The result only matches valid JSON: unsupported keywords are rejected by name.
import { LoopLMError } from '../errors.js'
import { formats } from './formats.js'
import { rangeText } from './number-ranges.js'
import { classText, complement, intersection, literalText, type Range, regexToEbnf, type WriteClass } from './regex.js'

type Schema = boolean | Readonly<Record<string, unknown>>
type Fields = Readonly<Record<string, unknown>>

const types = ['null', 'boolean', 'integer', 'number', 'string', 'array', 'object'] as const
type Type = (typeof types)[number]

/** The keywords of each type. A schema without a type allows the types of its keywords, or any value if it has no keywords. */
const keywordsOf: Readonly<Record<Type, readonly string[]>> = {
  null: [],
  boolean: [],
  integer: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'],
  number: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'],
  string: ['minLength', 'maxLength', 'pattern', 'format'],
  array: ['items', 'prefixItems', 'minItems', 'maxItems'],
  object: ['properties', 'required', 'additionalProperties', 'minProperties', 'maxProperties', 'propertyNames'],
}
/** Levels of a schema: the writer calls itself for each, and the stack is finite. */
const deepest = 500
/**
 * Longer strings use repetitions, whose token masks take 30 ms and more. A chain makes masks in under 1 ms, but each character takes
 * 30 to 70 ms to compile (V 49152).
 */
const longestChain = 256

const annotations = [
  ...['$schema', '$id', '$comment', '$defs', 'definitions', 'title', 'description', 'default', 'examples', 'deprecated'],
  ...['readOnly', 'writeOnly', 'strict', 'contentMediaType'],
]
const known = new Set([
  ...annotations,
  'type',
  'enum',
  'const',
  'anyOf',
  'oneOf',
  'allOf',
  '$ref',
  ...Object.values(keywordsOf).flat(),
])

/**
 * Rules that every JSON grammar may use. At most one space may stand between tokens, because unlimited white space could go on
 * forever.
 */
const jsonRules: readonly (readonly [string, string])[] = [
  ['space', '" "?'],
  ['comma', '"," space'],
  ['colon', '":" space'],
  ['int', '"-"? ("0" | [1-9] [0-9]{0,14})'],
  ['float', 'int ("." [0-9]{1,15})? ([eE] [+-]? "0"? [0-9]{1,2})?'],
  ['value', 'text | float | "true" | "false" | "null" | list | map'],
  ['list', '"[" (value (comma value)*)? "]"'],
  ['map', '"{" (text colon value (comma text colon value)*)? "}"'],
]

const plainCharacters = complement([
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
])
const escapes: readonly (readonly [number, string])[] = [
  ...([
    [0x22, '"'],
    [0x5c, '\\'],
    [8, 'b'],
    [12, 'f'],
    [10, 'n'],
    [13, 'r'],
    [9, 't'],
  ] as const), // prettier-ignore
]

/** Writes one character of a JSON string: itself, or its shortest escape. */
const writeJson: WriteClass = (ranges) => {
  const parts: string[] = []
  const plain = intersection(ranges, plainCharacters)
  if (plain.length > 0) parts.push(classText(plain))
  const has = (code: number) => ranges.some(([first, last]) => first <= code && code <= last)
  const short = escapes.filter(([code]) => has(code))
  for (const [, letter] of short) parts.push(literalText(`\\${letter}`))
  for (let code = 0; code < 0x20; code++) {
    if (!has(code) || escapes.some(([other]) => other === code)) continue
    parts.push(literalText(`\\u${code.toString(16).padStart(4, '0')}`))
  }
  return parts.length === 1 ? parts[0]! : `(${parts.join(' | ')})`
}
const anyCharacter: readonly Range[] = [
  [0, 0xd7ff],
  [0xe000, 0x10ffff],
]

/**
 * A grammar of the JSON texts that a schema allows. Objects have the properties that the schema names, in this order, and no
 * others. Without `properties` they may have any keys.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the place in the schema and the keyword
 */
export function jsonSchemaToEbnf(schema: unknown): string {
  const { start, rules } = schemaRules(schema, '')
  return [`root ::= ${start}`, ...rules, ...sharedRules].join('\n')
}

/** The rules of a schema, for a grammar that also contains {@link sharedRules}. */
export interface SchemaRules {
  /** An expression that matches the JSON. */
  start: string
  rules: readonly string[]
}

/**
 * The rules of a schema as a part of a grammar.
 *
 * @param prefix begins the names of its rules
 * @throws LoopLMError as {@link jsonSchemaToEbnf}
 */
export function schemaRules(schema: unknown, prefix: string): SchemaRules {
  return new SchemaWriter(schema, prefix).rules()
}

/**
 * One more character of a JSON string, and what follows it. A chain of rules makes masks many times faster than a repetition.
 */
const oneMore = (next: string) => `plain ${next} | escape ${next} | wide ${next}`

/** Rules that every JSON grammar contains once. */
export const sharedRules: readonly string[] = [
  `plain ::= ${classText(intersection(plainCharacters, [[0, 0x7f]]))}`,
  'escape ::= "\\\\" (["\\\\bfnrt] | "u00" [01] [0-9a-f])',
  `wide ::= ${classText(intersection(anyCharacter, [[0x80, 0x10ffff]]))}`,
  'character ::= plain | escape | wide',
  'text ::= "\\"" rest',
  `rest ::= "\\"" | ${oneMore('rest')}`,
  ...jsonRules.map(([name, text]) => `${name} ::= ${text}`),
]

class SchemaWriter {
  readonly #root: unknown
  readonly #rules: string[] = []
  readonly #referenced = new Map<string, string>() // rule names by the reference that they implement
  readonly #chains = new Set<string>()
  #count = 0

  readonly #prefix: string

  constructor(root: unknown, prefix: string) {
    this.#root = root
    this.#prefix = prefix
  }

  rules(): SchemaRules {
    this.#checkNesting()
    const start = this.#schema(this.#root, '#')
    // Writing a schema may add references, which the loop then meets. Chains of references are too long for recursion.
    for (const [reference, name] of this.#referenced)
      this.#rules.push(`${name} ::= ${this.#schema(placeAt(this.#root, reference), reference)}`)
    return { start, rules: this.#rules }
  }

  #checkNesting(): void {
    const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null
    let level = new Set([this.#root].filter(isObject))
    for (let depth = 1; level.size > 0; depth++) {
      if (depth > deepest) this.#refuse('#', `is nested more than ${deepest} levels deep; use $ref, or make it flatter`)
      level = new Set([...level].flatMap(Object.values).filter(isObject))
    }
  }

  #refuse(at: string, what: string): never {
    throw new LoopLMError('INVALID_ARGUMENT', `jsonSchema: ${at}: ${what}`, { operation: 'grammar' })
  }

  #rule(text: string): string {
    const name = `${this.#prefix}r${this.#count++}`
    this.#rules.push(`${name} ::= ${text}`)
    return name
  }

  #schema(given: unknown, at: string): string {
    if (given === true) return 'value'
    if (given === false) this.#refuse(at, 'the schema false allows no value')
    if (typeof given !== 'object' || given === null || Array.isArray(given)) this.#refuse(at, 'must be an object, true or false')
    const schema = given as Fields
    const unknown = Object.keys(schema).find((name) => !known.has(name))
    if (unknown !== undefined)
      this.#refuse(`${at}/${unknown}`, 'this keyword is not supported in grammars; remove it and check the answer')
    const own = Object.keys(schema).filter((name) => !annotations.includes(name))
    const alone = (keyword: string) => {
      const other = own.find((name) => name !== keyword && (name !== 'type' || keyword === '$ref'))
      if (other !== undefined)
        this.#refuse(`${at}/${other}`, `cannot be combined with ${keyword} in grammars; move it into the schemas of ${keyword}`)
    }
    const decisive = (['$ref', 'const', 'enum', 'anyOf', 'oneOf', 'allOf'] as const).find((name) => schema[name] !== undefined)
    if (decisive !== undefined) alone(decisive)
    if (decisive === '$ref') return this.#reference(schema.$ref, at)
    if (decisive === 'const') return this.#constants([schema.const], schema, at)
    if (decisive === 'enum') return this.#constants(schema.enum, schema, at)
    if (decisive !== undefined) return this.#combined(schema, decisive, at)
    const asked = schema.type === undefined ? undefined : [schema.type].flat()
    const odd = asked?.find((type) => !types.includes(type as Type))
    if (odd !== undefined) this.#refuse(`${at}/type`, `must be of ${types.join(', ')}, got ${JSON.stringify(odd)}`)
    const implied = impliedTypes(schema)
    const wanted = (asked as Type[] | undefined) ?? (implied.length > 0 ? implied : undefined)
    if (wanted === undefined) return 'value'
    if (wanted.length === 0) this.#refuse(`${at}/type`, 'must name a type')
    return this.#rule(wanted.map((type) => this.#typed(type, schema, at)).join(' | '))
  }

  #typed(type: Type, schema: Fields, at: string): string {
    if (type === 'null') return '"null"'
    if (type === 'boolean') return '"true" | "false"'
    if (type === 'string') return this.#string(schema, at)
    if (type === 'array') return this.#array(schema, at)
    if (type === 'object') return this.#object(schema, at)
    return this.#number(schema, type === 'integer', at)
  }

  #reference(reference: unknown, at: string): string {
    if (typeof reference !== 'string' || !/^#(?:$|\/)/.test(reference)) {
      this.#refuse(`${at}/$ref`, `must be a place in this schema such as "#/$defs/name", got ${JSON.stringify(reference)}`)
    }
    const made = this.#referenced.get(reference)
    if (made !== undefined) return made
    const place = placeAt(this.#root, reference)
    if (place === undefined) this.#refuse(`${at}/$ref`, `${reference} is not there`)
    if (this.#behind(place) === undefined)
      this.#refuse(`${at}/$ref`, `${reference} leads only to references, to itself or to a place that is not there`)
    const name = `${this.#prefix}r${this.#count++}`
    this.#referenced.set(reference, name)
    return name
  }

  /** The schema to which a chain of references leads, if there is one. */
  #behind(given: unknown): unknown {
    const seen = new Set<unknown>()
    for (let place = given; !seen.has(place); ) {
      const reference = (place as Fields | null | undefined)?.$ref
      if (typeof reference !== 'string') return place
      seen.add(place)
      place = placeAt(this.#root, reference)
    }
    return undefined
  }

  #constants(values: unknown, { type }: Fields, at: string): string {
    if (!Array.isArray(values) || values.length === 0) this.#refuse(`${at}/enum`, 'must be a list with at least one value')
    const fits = (value: unknown) => type === undefined || [type].flat().some((one) => isOfType(value, one as string))
    const allowed = values.filter(fits)
    if (allowed.length === 0) this.#refuse(at, `none of its values is of type ${JSON.stringify(type)}`)
    return this.#rule(allowed.map((value) => literalText(JSON.stringify(value))).join(' | '))
  }

  #combined(schema: Fields, keyword: 'anyOf' | 'oneOf' | 'allOf', at: string): string {
    const branches = schema[keyword]
    if (!Array.isArray(branches) || branches.length === 0)
      this.#refuse(`${at}/${keyword}`, 'must be a list with at least one schema')
    if (schema.type !== undefined)
      this.#refuse(`${at}/type`, `cannot be combined with ${keyword} in grammars; move it into the schemas of ${keyword}`)
    if (keyword === 'allOf' && branches.length > 1) {
      this.#refuse(`${at}/allOf`, 'of more than one schema is not supported in grammars; write them as one schema')
    }
    if (keyword === 'oneOf' && !this.#apart(branches)) {
      this.#refuse(`${at}/oneOf`, 'two of its schemas may allow the same value, which oneOf forbids; use anyOf')
    }
    return this.#rule(branches.map((branch, i) => this.#schema(branch, `${at}/${keyword}/${i}`)).join(' | '))
  }

  /** Whether no value matches two of the schemas, by their types, their constants, or a constant property of objects. */
  #apart(branches: readonly unknown[]): boolean {
    const kinds = branches.map((branch) => this.#kinds(branch))
    return kinds.every((own, i) => own !== undefined && kinds.slice(0, i).every((other) => other && disjoint(own, other)))
  }

  /** The kinds of values that a schema allows: types, or constants. */
  #kinds(given: unknown): Kinds | undefined {
    const place = this.#behind(given)
    if (typeof place !== 'object' || place === null) return undefined
    const schema = place as Fields
    const values = schema.const !== undefined ? [schema.const] : Array.isArray(schema.enum) ? schema.enum : undefined
    if (values !== undefined)
      return { types: new Set(values.map(typeOf)), values: new Set(values.map((v) => JSON.stringify(v))), tags: {} }
    if (schema.type === undefined) return undefined
    const tags: Record<string, unknown> = {}
    for (const name of Array.isArray(schema.required) ? schema.required : []) {
      const property = ((schema.properties ?? {}) as Record<string, Fields | undefined>)[name]
      if (property?.const !== undefined) tags[name] = property.const
    }
    return {
      types: new Set([schema.type].flat().map((type) => (type === 'integer' ? 'number' : String(type)))),
      values: undefined,
      tags,
    }
  }

  #size(schema: Fields, name: string, at: string): number | undefined {
    const value = schema[name]
    if (value === undefined) return undefined
    if (Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= 4096) return value as number
    return this.#refuse(`${at}/${name}`, `must be an integer from 0 to 4096, got ${JSON.stringify(value)}`)
  }

  #number(schema: Fields, integer: boolean, at: string): string {
    const bound = (name: string) => {
      const value = schema[name]
      if (value === undefined || (typeof value === 'number' && Number.isFinite(value))) return value as number | undefined
      return this.#refuse(`${at}/${name}`, `must be a number, got ${JSON.stringify(value)}`)
    }
    const [minimum, maximum] = [bound('minimum'), bound('maximum')]
    const [above, below] = [bound('exclusiveMinimum'), bound('exclusiveMaximum')]
    if ([minimum, maximum, above, below].every((value) => value === undefined)) return integer ? 'int' : 'float'
    const decimalsOf = (value: number | undefined) => (value === undefined ? 0 : decimalPlaces(value))
    const finest = Math.max(...[minimum, maximum, above, below].map(decimalsOf))
    if (!integer && finest > 6) this.#refuse(at, 'bounds of numbers have at most 6 decimals in grammars')
    const texts = (integer ? [0] : [0, Math.max(2, finest)]).map((decimals) => {
      const step = 10 ** -decimals
      const low = above === undefined ? minimum : Math.max(minimum ?? -Infinity, nextStep(above, decimals, step))
      const high = below === undefined ? maximum : Math.min(maximum ?? Infinity, -nextStep(-below, decimals, step))
      const range = { ...(low === undefined ? {} : { minimum: low }), ...(high === undefined ? {} : { maximum: high }) }
      return rangeText(range, decimals)
    })
    const found = texts.filter((text) => text !== undefined)
    if (found.length === 0) this.#refuse(at, 'no number that a grammar writes lies between its bounds')
    return found.join(' | ')
  }

  #string(schema: Fields, at: string): string {
    const { pattern, format } = schema
    const [least, most] = [this.#size(schema, 'minLength', at), this.#size(schema, 'maxLength', at)]
    if (most !== undefined && least !== undefined && most < least) this.#refuse(`${at}/maxLength`, 'is less than minLength')
    const sized = least !== undefined || most !== undefined
    const several = [pattern, format, sized || undefined].filter((one) => one !== undefined).length > 1
    if (several) this.#refuse(at, 'pattern, format and lengths of a string cannot be combined in grammars; keep one of them')
    if (pattern !== undefined) {
      if (typeof pattern !== 'string') this.#refuse(`${at}/pattern`, 'must be a string')
      return `"\\"" (${regexToEbnf(pattern, writeJson, true)}) "\\""`
    }
    if (format !== undefined) {
      if (typeof format !== 'string' || !Object.hasOwn(formats, format))
        this.#refuse(`${at}/format`, `must be one of ${Object.keys(formats).join(', ')}, got ${JSON.stringify(format)}`)
      return `"\\"" (${regexToEbnf(formats[format]!, writeJson)}) "\\""`
    }
    return sized ? this.#sizedText(least ?? 0, most) : 'text'
  }

  #sizedText(least: number, most: number | undefined): string {
    if (Math.max(least, most ?? 0) > longestChain) return `"\\"" character{${least},${most ?? ''}} "\\""`
    return `"\\"" ${this.#rest(least, most)}`
  }

  /** The rule for at least `least` and at most `most` more characters and the end. Strings with an equal rest share it. */
  #rest(least: number, most: number | undefined): string {
    if (most === 0) return '"\\""'
    if (least === 0 && most === undefined) return 'rest'
    const name = `${this.#prefix}s${least}_${most ?? ''}`
    if (this.#chains.has(name)) return name
    this.#chains.add(name)
    const next = this.#rest(Math.max(0, least - 1), most === undefined ? undefined : most - 1)
    this.#rules.push(`${name} ::= ${least === 0 ? '"\\"" | ' : ''}${oneMore(next)}`)
    return name
  }

  #array(schema: Fields, at: string): string {
    const [least = 0, most] = [this.#size(schema, 'minItems', at), this.#size(schema, 'maxItems', at)]
    if (most !== undefined && most < least) this.#refuse(`${at}/maxItems`, 'is less than minItems')
    const prefix = schema.prefixItems ?? []
    if (!Array.isArray(prefix)) this.#refuse(`${at}/prefixItems`, 'must be a list of schemas')
    if (Array.isArray(schema.items)) this.#refuse(`${at}/items`, 'must be a schema; lists of schemas are called prefixItems')
    const firsts = prefix.map((item, i) => this.#schema(item, `${at}/prefixItems/${i}`))
    const none = schema.items === false || (most !== undefined && most <= firsts.length)
    const item = none ? undefined : this.#schema(schema.items ?? true, `${at}/items`)
    if (item === undefined && least > firsts.length)
      this.#refuse(`${at}/minItems`, `is more than the ${firsts.length} items that it may have`)
    // What may follow the first n items, built from the end.
    const tail = (n: number) => (n === 0 ? item! : `comma ${item}`)
    let rest =
      item === undefined
        ? '""'
        : repeats(tail(Math.max(1, firsts.length)), Math.max(0, least - firsts.length), most && most - firsts.length)
    if (firsts.length === 0 && item !== undefined) {
      if (most === 0) return '"[" "]"'
      const more = repeats(`comma ${item}`, Math.max(0, least - 1), most && most - 1)
      return least > 0 ? `"[" ${item} ${more} "]"` : `"[" (${item} ${more})? "]"`
    }
    for (let n = Math.min(firsts.length, most ?? firsts.length) - 1; n >= 0; n--) {
      const text = `${n === 0 ? '' : 'comma '}${firsts[n]} ${rest}`
      rest = n < least ? text : `(${text})?`
    }
    return `"[" ${rest} "]"`
  }

  #object(schema: Fields, at: string): string {
    const properties = (schema.properties ?? {}) as Fields
    const required = schema.required ?? []
    if (typeof properties !== 'object' || Array.isArray(properties))
      this.#refuse(`${at}/properties`, 'must be an object of schemas')
    if (!Array.isArray(required) || required.some((name) => typeof name !== 'string'))
      this.#refuse(`${at}/required`, 'must be a list of names')
    const [least = 0, most] = [this.#size(schema, 'minProperties', at), this.#size(schema, 'maxProperties', at)]
    const names = [...new Set([...Object.keys(properties), ...(required as string[])])]
    if (names.length === 0) return this.#map(schema, least, most, at)
    for (const [name, wrong] of [
      ['minProperties', least > (required as string[]).length],
      ['maxProperties', most !== undefined && most < names.length],
      ['propertyNames', schema.propertyNames !== undefined],
    ] as const)
      if (wrong) this.#refuse(`${at}/${name}`, 'cannot be combined with properties in grammars; remove it')
    const unnamed = schema.additionalProperties ?? true
    const members = names.map((name) => {
      const own = Object.hasOwn(properties, name) ? properties[name] : unnamed
      const place = Object.hasOwn(properties, name) ? `${at}/properties/${name}` : `${at}/required/${name}`
      return `${literalText(JSON.stringify(name))} colon ${this.#schema(own, place)}`
    })
    const isRequired = names.map((name) => (required as string[]).includes(name))
    return `"{" ${this.#members(members, isRequired)} "}"`
  }

  /** Members in order, some of them optional. Builds one rule for members after a comma and one for the first member. */
  #members(members: readonly string[], required: readonly boolean[]): string {
    let after = '""' // what follows after a member was written
    let first = '""' // what follows if no member was written yet
    for (let i = members.length - 1; i >= 0; i--) {
      const [own, later] = [members[i]!, after]
      const start = required[i] ? `${own} ${later}` : `(${own} ${later} | ${first})`
      const next = required[i] ? `comma ${own} ${later}` : `(comma ${own})? ${later}`
      after = this.#rule(next)
      first = this.#rule(start)
    }
    return first
  }

  #map(schema: Fields, least: number, most: number | undefined, at: string): string {
    if (least > 1) this.#refuse(`${at}/minProperties`, 'above 1 is not supported in grammars: a key could come twice')
    const value =
      schema.additionalProperties === false
        ? undefined
        : this.#schema(schema.additionalProperties ?? true, `${at}/additionalProperties`)
    if (value === undefined || most === 0) {
      if (least > 0) this.#refuse(`${at}/minProperties`, 'is more than the properties that it may have')
      return '"{" "}"'
    }
    const names = schema.propertyNames
    const key = names === undefined ? 'text' : `(${this.#string(this.#names(names, at), `${at}/propertyNames`)})`
    const more = repeats(`comma ${key} colon ${value}`, 0, most && most - 1)
    const all = `${key} colon ${value} ${more}`
    return least > 0 ? `"{" ${all} "}"` : `"{" (${all})? "}"`
  }

  #names(given: unknown, at: string): Fields {
    const fields = Object.keys((given ?? {}) as object).filter((name) => !annotations.includes(name) && name !== 'type')
    const odd = fields.find((name) => !keywordsOf.string.includes(name))
    if (typeof given !== 'object' || given === null || odd !== undefined) {
      this.#refuse(`${at}/propertyNames`, 'must be a schema of strings with pattern, format or lengths')
    }
    return given as Fields
  }
}

/** The place that a reference names, or undefined. */
function placeAt(root: unknown, reference: string): unknown {
  let place = root
  for (const part of reference.split('/').slice(1)) {
    const name = decoded(part).replaceAll('~1', '/').replaceAll('~0', '~')
    if (typeof place !== 'object' || place === null || !Object.hasOwn(place, name)) return undefined
    place = (place as Fields)[name]
  }
  return place
}

/** The types whose keywords a schema has. */
function impliedTypes(schema: Fields): Type[] {
  return types.filter((type) => type !== 'integer' && keywordsOf[type].some((name) => schema[name] !== undefined))
}

/** Whether a schema that {@link schemaRules} takes allows nothing but objects. */
export function allowsOnlyObjects(schema: unknown, root = schema, seen = new Set<unknown>()): boolean {
  if (typeof schema !== 'object' || schema === null) return false
  if (seen.has(schema)) return true // its first place decides
  seen.add(schema)
  const inner = (other: unknown) => allowsOnlyObjects(other, root, seen)
  const { $ref, type, const: constant, enum: constants, anyOf, oneOf, allOf } = schema as Fields
  if ($ref !== undefined) return inner(placeAt(root, String($ref)))
  if (type !== undefined) return [type].flat().every((one) => one === 'object')
  const branches = anyOf ?? oneOf ?? allOf
  if (branches !== undefined) return (branches as unknown[]).every(inner)
  const values = constants ?? (constant === undefined ? undefined : [constant])
  if (values !== undefined) return (values as unknown[]).every((value) => isOfType(value, 'object'))
  return impliedTypes(schema as Fields).join() === 'object'
}

function repeats(text: string, least: number, most: number | undefined): string {
  if (most === 0) return '""'
  return least === 0 && most === undefined ? `(${text})*` : `(${text}){${least},${most ?? ''}}`
}

/** A part of a reference without its URI escapes, or unchanged if it has none: "100%" is also a name. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

function decimalPlaces(value: number): number {
  const [mantissa, exponent = '0'] = value.toString().split('e')
  return Math.max(0, (mantissa!.split('.')[1]?.length ?? 0) - Number(exponent))
}

/** The smallest multiple of `step` above a bound, with this many decimals. */
function nextStep(bound: number, decimals: number, step: number): number {
  const scaled = Math.floor(Number((bound / step).toFixed(6))) + 1
  return Number((scaled * step).toFixed(decimals))
}

interface Kinds {
  types: Set<string>
  values: Set<string> | undefined
  tags: Record<string, unknown>
}

function disjoint(a: Kinds, b: Kinds): boolean {
  if (![...a.types].some((type) => b.types.has(type))) return true
  if (a.values !== undefined && b.values !== undefined) return ![...a.values].some((value) => b.values!.has(value))
  const onlyObjects = [...a.types, ...b.types].every((type) => type === 'object')
  const tag = !onlyObjects ? undefined : Object.keys(a.tags).find((name) => Object.hasOwn(b.tags, name))
  return tag !== undefined && JSON.stringify(a.tags[tag]) !== JSON.stringify(b.tags[tag])
}

function typeOf(value: unknown): string {
  return value === null ? 'null' : Array.isArray(value) ? 'array' : typeof value
}

function isOfType(value: unknown, type: string): boolean {
  return type === 'integer' ? Number.isInteger(value) : typeOf(value) === type
}

export type { Schema }
