// Jinja as Python renders it. @huggingface/jinja ignores the argument of strip(), writes booleans as JavaScript does, and counts the
// code units of a text. So places of the parsed template are changed to call functions of this file.
import { types } from 'node:util'
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja'

/** A part of a parsed template. */
interface Node {
  type: string
  [field: string]: unknown
}

/** A value while a template is rendered. */
interface Value {
  type: string
  value: unknown
}

/** Functions of a template that see its values, not those of JavaScript. They give a text, or undefined for the value itself. */
const texts: Readonly<Record<string, (value: Value) => string | undefined>> = {
  looplm_printed: booleanText,
  looplm_string: (value) => (value.type === 'NullValue' ? 'None' : value.type === 'UndefinedValue' ? '' : booleanText(value)),
  looplm_points: ({ type, value }) =>
    type === 'StringValue' ? String(value).replaceAll(/[\ud800-\udbff][\udc00-\udfff]/g, '.') : undefined,
}

function booleanText({ type, value }: Value): string | undefined {
  return type === 'BooleanValue' ? (value ? 'True' : 'False') : undefined
}

const strips = ['strip', 'lstrip', 'rstrip'] as const

/** Renders a template with variables. */
export type JinjaTemplate = (variables: Readonly<Record<string, unknown>>) => string

/**
 * Compiles a template. Jinja's own types do not leave this file, because their declarations do not type-check in strict
 * projects.
 *
 * @throws SyntaxError of the parser
 */
export function compileJinja(template: string): JinjaTemplate {
  const lines = template.replaceAll(/\r\n?/g, '\n') // line ends as Jinja reads them
  const program = parse(tokenize(lines, { lstrip_blocks: true, trim_blocks: true }))
  adapt(program)
  return (variables) => {
    const environment = new Environment()
    const globals = { ...constants, ...functions, range: rangeOf(maxRangeNumbers) }
    for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value)
    const define = (name: string, run: (value: unknown) => unknown) =>
      environment.set(name, run) as { value: (values: Value[]) => Value }
    const convert = define('looplm_value', (value) => value)
    for (const [name, textOf] of Object.entries(texts)) {
      define(name, () => null).value = ([value]) => {
        const text = textOf(value!)
        return text === undefined ? value! : convert.value([{ type: '', value: text }])
      }
    }
    return new Interpreter(environment).run(program).value as string
  }
}

/** Changes a parsed template, from its leaves up. */
function adapt(part: unknown): void {
  if (types.isMap(part) || Array.isArray(part)) for (const inner of part) adapt(inner)
  else if (typeof part === 'object' && part !== null) {
    for (const inner of Object.values(part)) adapt(inner)
    adaptNode(part as Node)
  }
}

function adaptNode(node: Node): void {
  for (const block of ['body', 'alternate', 'defaultBlock']) {
    const parts = node[block]
    if (Array.isArray(parts)) node[block] = parts.map((part) => (isExpression(part) ? call('looplm_printed', part) : part))
  }
  const { callee, args, filter, operator } = node as Node & Record<'callee' | 'filter' | 'operator', Node>
  if (node.type === 'CallExpression' && callee.type === 'MemberExpression' && (args as Node[]).length > 0) {
    const { object, property } = callee as Node & { object: Node; property: Node }
    const strip = strips.find((name) => name === property.value)
    if (strip !== undefined && callee.computed !== true) Object.assign(node, call(`looplm_${strip}`, object, ...(args as Node[])))
  } else if (node.type === 'FilterExpression' && filter.type === 'Identifier') {
    if (filter.value === 'string') node.operand = call('looplm_string', node.operand as Node)
    if (filter.value === 'length') node.operand = call('looplm_points', node.operand as Node)
  } else if (node.type === 'BinaryExpression' && operator.value === '~') {
    node.left = call('looplm_string', node.left as Node)
    node.right = call('looplm_string', node.right as Node)
  }
}

/** Whether a part of a block is written out: `{{ … }}`, but not text. */
const isExpression = ({ type }: Node) => /Expression$|^Identifier$|^Ternary$/.test(type)

function call(name: string, ...args: Node[]): Node {
  return Object.assign(parse(tokenize(`{{ ${name}() }}`)).body[0]!, { args }) as unknown as Node
}

/**
 * How many numbers the calls of `range` may produce in one rendering, so that an untrusted template cannot fill the memory with them, and
 * loops over ranges inside each other end soon. Jinja's own sandbox allows as many in one call.
 */
const maxRangeNumbers = 1e5

/** Jinja's `range`, with a limit on the total number of items. */
function rangeOf(left: number): (...bounds: unknown[]) => number[] {
  return (...bounds) => {
    const [start, stop, step = 1] = bounds.length === 1 ? [0, bounds[0]] : bounds
    if (![start, stop, step].every((bound) => typeof bound === 'number')) throw new Error('range() takes numbers')
    if (step === 0) throw new Error('range() step must not be zero')
    const length = Math.max(0, Math.ceil(((stop as number) - (start as number)) / (step as number)))
    left -= length
    if (!(left >= 0)) throw new Error(`its calls of range() make more than ${maxRangeNumbers} numbers`)
    return Array.from({ length }, (_, i) => (start as number) + i * (step as number))
  }
}

/** Python's strip(), lstrip() or rstrip(). */
function strip(name: (typeof strips)[number]): (text: unknown, characters?: unknown) => string {
  return (text, characters) => {
    if (typeof text !== 'string') throw new Error(`${name}() needs a text`)
    if (characters != null && typeof characters !== 'string') throw new Error(`${name}() takes characters`)
    const all = Array.from(text)
    const set = new Set(characters)
    const goes = (at: number) => (characters == null ? all[at]!.trim() === '' : set.has(all[at]!))
    let [from, to] = [0, all.length]
    if (name !== 'rstrip') while (from < to && goes(from)) from++
    if (name !== 'lstrip') while (from < to && goes(to - 1)) to--
    return all.slice(from, to).join('')
  }
}

const days = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday']
const months = [
  ...['January', 'February', 'March', 'April', 'May', 'June'],
  ...['July', 'August', 'September', 'October', 'November', 'December'],
]
const padded = (value: number, length = 2, fill = '0') => String(value).padStart(length, fill)
const hour = (date: Date) => date.getHours() % 12 || 12
const dayOfYear = (date: Date) =>
  (Date.UTC(date.getFullYear(), date.getMonth(), date.getDate()) - Date.UTC(date.getFullYear(), 0, 0)) / 86_400_000

/** Codes of Python's strftime, in English. */
const dateCodes: Readonly<Record<string, (date: Date) => string>> = {
  '%a': (date) => days[date.getDay()]!.slice(0, 3),
  '%A': (date) => days[date.getDay()]!,
  '%b': (date) => months[date.getMonth()]!.slice(0, 3),
  '%B': (date) => months[date.getMonth()]!,
  '%d': (date) => padded(date.getDate()),
  '%-d': (date) => String(date.getDate()),
  '%e': (date) => padded(date.getDate(), 2, ' '),
  '%H': (date) => padded(date.getHours()),
  '%-H': (date) => String(date.getHours()),
  '%I': (date) => padded(hour(date)),
  '%-I': (date) => String(hour(date)),
  '%j': (date) => padded(dayOfYear(date), 3),
  '%m': (date) => padded(date.getMonth() + 1),
  '%-m': (date) => String(date.getMonth() + 1),
  '%M': (date) => padded(date.getMinutes()),
  '%p': (date) => (date.getHours() < 12 ? 'AM' : 'PM'),
  '%S': (date) => padded(date.getSeconds()),
  '%y': (date) => padded(date.getFullYear() % 100),
  '%Y': (date) => String(date.getFullYear()),
  '%%': () => '%',
}

function dateText(format: unknown): string {
  const date = new Date()
  return String(format).replaceAll(/%-?./gs, (code) => {
    const textOf = dateCodes[code]
    if (textOf === undefined) throw new Error(`strftime_now() does not know ${code}; use ${Object.keys(dateCodes).join(' ')}`)
    return textOf(date)
  })
}

const constants = { true: true, false: false, none: null, True: true, False: false, None: null }

const functions = {
  ...Object.fromEntries(strips.map((name) => [`looplm_${name}`, strip(name)])),
  strftime_now: dateText,
  raise_exception: (message: string) => {
    throw new Error(message)
  },
}
