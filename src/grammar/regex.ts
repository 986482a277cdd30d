// Converts regular expressions to EBNF. Every class becomes ranges of characters that UTF-8 can encode, because engines may let
// a negated class match bytes that are not valid text.
import { LoopLMError } from '../errors.js'

/** Characters from `first` to `last`, as code points. */
export type Range = readonly [first: number, last: number]

/** All characters of text: Unicode without surrogates. */
export const everything: readonly Range[] = [
  [0, 0xd7ff],
  [0xe000, 0x10ffff],
]

/** Levels of groups. Each may write three parentheses, and the grammar library (0.1.27) traps where 200 are nested. */
const deepest = 50

/** Writes a set of characters in the form of the described text, for example with JSON's escapes. */
export type WriteClass = (ranges: readonly Range[]) => string

const digits: Range[] = [[0x30, 0x39]]
const words: Range[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
]
const spaces: Range[] = [
  [9, 13],
  [32, 32],
]
/** Those of Unicode. \s allows only ASCII, but \S must not allow what others read as white space. */
const allSpaces: Range[] = [
  ...spaces,
  ...[0xa0, 0x1680, 0x202f, 0x205f, 0x3000, 0xfeff].map((code): Range => [code, code]),
  [0x2000, 0x200a],
  [0x2028, 0x2029],
]
const lineEnds: Range[] = [
  [10, 10],
  [13, 13],
  [0x2028, 0x2029],
]
const controls: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, f: 12, v: 11, '0': 0 }

/** What follows `\u`. A high and a low surrogate are one character. */
const escapedCharacter = /^(?:d[89ab][\da-f]{2}\\ud[c-f][\da-f]{2}|[\da-f]{4}|\{[\da-f]{1,6}\})/i

/** The last code points that UTF-8 encodes in 1 to 4 bytes. */
const utf8Ends = [0x7f, 0x7ff, 0xffff, 0x10ffff]

/**
 * One of some characters, in EBNF: a class for ASCII, and the UTF-8 bytes of all others. In the grammar library (0.1.27),
 * classes of characters above U+00FF are wrong, but classes of bytes work.
 */
export function classText(ranges: readonly Range[]): string {
  const ascii = intersection(ranges, [[0, 0x7f]])
  const others = utf8Ends.slice(1).flatMap((end, i) => intersection(ranges, [[utf8Ends[i]! + 1, end]]))
  const sequences = others.flatMap(([first, last]) => byteRanges(utf8(first), utf8(last)))
  const parts = [
    ...(ascii.length > 0 ? [byteClass(ascii)] : []),
    ...sequences.map((bytes) => bytes.map((b) => byteClass([b])).join(' ')),
  ]
  return parts.length === 1 ? parts[0]! : `(${parts.join(' | ')})`
}

/** The library reads a class of one byte as a character. Writing the byte twice keeps it a byte. */
function byteClass(ranges: readonly Range[]): string {
  const one = (byte: number) => `\\x${byte.toString(16).padStart(2, '0')}`
  const text = ([first, last]: Range) =>
    first < last ? `${one(first)}-${one(last)}` : one(first) + (first < 0x80 ? '' : one(first))
  return `[${ranges.map(text).join('')}]`
}

const utf8 = (code: number): number[] => [...new TextEncoder().encode(String.fromCodePoint(code))]

/** The byte sequences from one to another of the same length, as lists of ranges. */
function byteRanges(first: readonly number[], last: readonly number[]): Range[][] {
  let [low, high] = [first[0]!, last[0]!]
  if (first.length === 1) return [[[low, high]]]
  const [lowRest, highRest] = [first.slice(1), last.slice(1)]
  const least = lowRest.map(() => 0x80)
  const most = lowRest.map(() => 0xbf)
  const behind = (byte: number, rows: Range[][]) => rows.map((row): Range[] => [[byte, byte], ...row])
  if (low === high) return behind(low, byteRanges(lowRest, highRest))
  const out: Range[][] = []
  if (lowRest.some((byte) => byte !== 0x80)) out.push(...behind(low, byteRanges(lowRest, most)))
  else low--
  const end = highRest.some((byte) => byte !== 0xbf) ? behind(high, byteRanges(least, highRest)) : []
  if (end.length > 0) high--
  if (low + 1 <= high) out.push([[low + 1, high], ...least.map((): Range => [0x80, 0xbf])])
  return [...out, ...end]
}

/** The empty text. The grammar library (0.1.27) reads outside its memory where one follows another or is repeated. */
const nothing = '""'

/** A string literal in EBNF. */
export function literalText(text: string): string {
  const characters = Array.from(text, (character) =>
    /[\w ,.:;{}()=+*/<>-]/.test(character) ? character : `\\U${character.codePointAt(0)!.toString(16).padStart(8, '0')}`,
  )
  return `"${characters.join('')}"`
}

/** The characters that are not in some ranges. */
export function complement(ranges: readonly Range[]): Range[] {
  const out: Range[] = []
  for (const [low, high] of everything) {
    let next = low
    for (const [first, last] of merged(ranges)) {
      if (last < next || first > high) continue
      if (first > next) out.push([next, first - 1])
      next = Math.max(next, last + 1)
    }
    if (next <= high) out.push([next, high])
  }
  return out
}

/** The characters that are in both. */
export function intersection(a: readonly Range[], b: readonly Range[]): Range[] {
  const both = a.flatMap((x) => b.map((y): Range => [Math.max(x[0], y[0]), Math.min(x[1], y[1])]))
  return merged(both.filter(([first, last]) => first <= last))
}

function merged(ranges: readonly Range[]): Range[] {
  const out: [number, number][] = []
  for (const [first, last] of [...ranges].sort((a, b) => a[0] - b[0])) {
    const before = out.at(-1)
    if (before !== undefined && first <= before[1] + 1) before[1] = Math.max(before[1], last)
    else out.push([first, last])
  }
  return out
}

/**
 * Converts a regular expression to an EBNF expression that matches whole texts.
 *
 * @param write how a class is written; by default unchanged
 * @param search whether the pattern may match anywhere in the text, as in JSON Schema; defaults to false: it matches the whole
 *   text
 * @throws LoopLMError UNSUPPORTED naming the unsupported part and its position
 */
export function regexToEbnf(pattern: string, write: WriteClass = classText, search = false): string {
  return new RegexReader(pattern, write, search).whole()
}

class RegexReader {
  readonly #characters: readonly string[]
  readonly #pattern: string
  readonly #write: WriteClass
  readonly #search: boolean
  #at = 0
  #groups = 0 // groups around the current place

  constructor(pattern: string, write: WriteClass, search: boolean) {
    this.#pattern = pattern
    this.#characters = Array.from(pattern)
    this.#write = write
    this.#search = search
  }

  whole(): string {
    const text = this.#alternatives(true)
    if (this.#at < this.#characters.length) this.#refuse('a ")" without its "("')
    return text
  }

  get #next(): string | undefined {
    return this.#characters[this.#at]
  }

  /** The next characters. Reading all that follow, at every place, would take quadratic time. */
  #ahead(count: number): string {
    return this.#characters.slice(this.#at, this.#at + count).join('')
  }

  #take(text: string): boolean {
    if (this.#ahead(text.length) !== text) return false
    this.#at += text.length
    return true
  }

  #refuse(what: string): never {
    const message = `the regular expression ${JSON.stringify(this.#pattern)} has ${what} at character ${this.#at + 1}`
    throw new LoopLMError('INVALID_ARGUMENT', `${message}, which grammars do not support`, { operation: 'grammar' })
  }

  /** `outer`: at the top level of the pattern, where ^ and $ are allowed. */
  #alternatives(outer: boolean): string {
    const all: string[] = []
    do {
      const starts = outer && this.#take('^')
      const parts: string[] = []
      let ends = false
      while (this.#next !== undefined && this.#next !== '|' && this.#next !== ')' && !ends) {
        if (outer && this.#next === '$' && [undefined, '|'].includes(this.#characters[this.#at + 1])) {
          this.#at++
          ends = true
        } else parts.push(this.#repeated())
      }
      const any = `${this.#write(everything)}*`
      if (this.#search && outer && !starts) parts.unshift(any)
      if (this.#search && outer && !ends) parts.push(any)
      all.push(parts.filter((part) => part !== nothing).join(' ') || nothing)
    } while (this.#take('|'))
    return all.length === 1 || all.every((one) => one === nothing) ? all[0]! : `(${all.join(' | ')})`
  }

  #repeated(): string {
    const atom = this.#atom()
    const count = this.#count()
    if (count === undefined) return atom
    if (['?', '+', '*', '{'].includes(this.#next ?? '')) {
      if (!this.#take('?')) this.#refuse('two quantifiers')
    } // a lazy quantifier matches the same texts
    return atom === nothing || /^\{0+(,0+)?\}$/.test(count) ? nothing : `(${atom})${count}`
  }

  #count(): string | undefined {
    for (const sign of ['*', '+', '?']) if (this.#take(sign)) return sign
    const found = /^\{(\d+)(,?)(\d*)\}/.exec(this.#ahead(40))
    if (found === null) return undefined
    this.#at += found[0].length
    const [, least, comma, most] = found
    if (most !== '' && Number(most) < Number(least)) this.#refuse('a quantifier whose end is before its start')
    if (Math.max(Number(least), Number(most)) > 4096) this.#refuse('a quantifier above 4096')
    return comma === '' ? `{${least}}` : `{${least},${most}}`
  }

  #atom(): string {
    const character = this.#next!
    if (this.#take('(')) return this.#group()
    if (this.#take('[')) return this.#write(this.#class())
    if (this.#take('.')) return this.#write(complement(lineEnds))
    if (this.#take('\\')) return this.#write(this.#escape(false))
    if ('*+?{'.includes(character)) this.#refuse(`a "${character}" with nothing to repeat before it`)
    if (character === '^' || character === '$') this.#refuse(`a "${character}" inside`)
    this.#at++
    return this.#write(this.#one(character.codePointAt(0)!))
  }

  #group(): string {
    if (this.#take('?') && !this.#take(':')) {
      if (!/^<[A-Za-z_]\w*>/.test(this.#ahead(200))) this.#refuse('a look-around or a flag')
      while (!this.#take('>')) this.#at++
    }
    if (++this.#groups > deepest) this.#refuse(`groups nested more than ${deepest} levels deep (remove some)`)
    const inside = this.#alternatives(false)
    this.#groups--
    if (!this.#take(')')) this.#refuse('a "(" without its ")"')
    return inside === nothing ? nothing : `(${inside})`
  }

  #class(): Range[] {
    const negated = this.#take('^')
    const ranges: Range[] = []
    while (!this.#take(']')) {
      if (this.#next === undefined) this.#refuse('a "[" without its "]"')
      const from = this.#classPart()
      const isRange = this.#next === '-' && ![undefined, ']'].includes(this.#characters[this.#at + 1])
      if (!isRange) {
        ranges.push(...from)
        continue
      }
      this.#at++
      const to = this.#classPart()
      const single = (part: readonly Range[]) => part.length === 1 && part[0]![0] === part[0]![1]
      if (!single(from) || !single(to) || to[0]![0] < from[0]![0]) this.#refuse('an invalid range')
      ranges.push([from[0]![0], to[0]![0]])
    }
    const found = negated ? complement(ranges) : intersection(ranges, everything)
    if (found.length === 0) this.#refuse('a class that matches no character')
    return found
  }

  #classPart(): Range[] {
    if (this.#take('\\')) return this.#escape(true)
    const code = this.#next!.codePointAt(0)!
    this.#at++
    return this.#one(code)
  }

  #one(code: number): Range[] {
    if (code > 0x10ffff) this.#refuse('a code above 10FFFF')
    if (code >= 0xd800 && code <= 0xdfff) this.#refuse('half of a surrogate pair')
    return [[code, code]]
  }

  #escape(inClass: boolean): Range[] {
    const character = this.#next
    if (character === undefined) this.#refuse('a "\\" at its end')
    this.#at++
    const known: Readonly<Record<string, Range[]>> = {
      ...{ d: digits, D: complement(digits), w: words, W: complement(words), s: spaces, S: complement(allSpaces) },
    }
    if (Object.hasOwn(known, character)) return known[character]!
    if (inClass && character === 'b') return [[8, 8]]
    const hex = { x: /^[\dA-Fa-f]{2}/, u: escapedCharacter }[character]
    if (hex !== undefined) {
      const found = hex.exec(this.#ahead(12))
      if (found === null) this.#refuse(`a "\\${character}" without its number`)
      this.#at += found[0].length
      const [code, second] = found[0].split('\\u').map((number) => Number.parseInt(number.replace(/[{}]/g, ''), 16))
      return this.#one(second === undefined ? code! : String.fromCharCode(code!, second).codePointAt(0)!)
    }
    if (Object.hasOwn(controls, character)) return this.#one(controls[character]!)
    if (/[A-Za-z\d]/.test(character)) this.#refuse(`"\\${character}"`)
    return this.#one(character.codePointAt(0)!)
  }
}
