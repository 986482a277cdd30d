/** Splits an answer in LaTeX or plain text into tokens. One pass, linear in the text. */

/** One token. Spaces are not tokens. */
export interface Token {
  /** `letter`: one letter, a factor of a product. `word`: text. `command`: a LaTeX command without its backslash. */
  kind: 'number' | 'letter' | 'word' | 'command' | 'symbol' | 'begin' | 'end'
  text: string
  /** Whether white space precedes it. */
  spaced: boolean
  /** Whether it is set in `\text` or `\mathrm`, where a letter may be a unit. */
  upright: boolean
  /** Length of the run of letters that contains this letter. */
  run: number
}

/** Units that may be omitted, by all their spellings. Letters with other meanings (k, K, M, N, W, A) are not units. */
const spellings = {
  cm: 'cm centimeter centimeters centimetre centimetres',
  mm: 'mm millimeter millimeters millimetre millimetres',
  km: 'km kilometer kilometers kilometre kilometres',
  m: 'm meter meters metre metres',
  inch: 'in inch inches',
  ft: 'ft foot feet',
  yd: 'yd yard yards',
  mile: 'mi mile miles',
  kg: 'kg kilogram kilograms',
  g: 'g gram grams',
  mg: 'mg milligram milligrams',
  pound: 'lb lbs pound pounds',
  ounce: 'oz ounce ounces',
  s: 's sec secs second seconds',
  minute: 'min mins minute minutes',
  h: 'h hr hrs hour hours',
  day: 'day days',
  week: 'week weeks',
  month: 'month months',
  year: 'year years',
  L: 'L l liter liters litre litres',
  mL: 'mL ml milliliter milliliters millilitre millilitres',
  degree: 'deg degree degrees',
  radian: 'rad radian radians',
  celsius: 'celsius Celsius',
  fahrenheit: 'fahrenheit Fahrenheit',
  dollar: 'dollar dollars',
  cent: 'cent cents',
  euro: 'euro euros',
  'mile/h': 'mph',
  'km/h': 'kph kmh',
  unit: 'unit units',
  point: 'point points',
  way: 'way ways',
  person: 'person people',
  student: 'student students',
  '%': 'percent',
}
/** The unit of each spelling. */
export const units: ReadonlyMap<string, string> = new Map(
  Object.entries(spellings).flatMap(([unit, words]) => words.split(' ').map((word) => [word, unit] as const)),
)
/** Units of two letters outside of \text. Other pairs of letters are a product of variables there. */
const plainUnits = new Set(['cm', 'mm', 'km', 'kg', 'ft'])

/** Words that multiply the number before them. */
export const multipliers: ReadonlyMap<string, number> = new Map([
  ['dozen', 12],
  ['hundred', 100],
  ['thousand', 1000],
  ['lakh', 1e5],
  ['million', 1e6],
  ['crore', 1e7],
  ['billion', 1e9],
  ['trillion', 1e12],
])
/** Runs of at most three letters that are words instead of products. */
const plainWords = /^(?:or|and|sq|per|[Nn]o|YES|[A-Z][a-z]{2})$/

export const functionNames: ReadonlySet<string> = new Set(
  'sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp'.split(' '),
)
/** Commands that are written without a backslash. `root` takes a whole number, as in sqrt12; \sqrt12 takes the first digit. */
const plainCommands = new Map([
  ...[...functionNames, 'pi'].map((name) => [name, name] as const),
  ['sqrt', 'root'],
  ['infinity', 'infty'],
])

const symbols = new Map<string, string>(
  Object.entries({
    '\u2212': '-',
    '\u2013': '-',
    '*': '·',
    '∙': '·',
    '⋅': '·',
    '÷': '/',
    '⩽': '≤',
    '⩾': '≥',
  }),
)
const characterCommands = new Map(
  Object.entries({ π: 'pi', '√': 'root', '∞': 'infty', '∅': 'emptyset', '…': 'dots', θ: 'theta', α: 'alpha', β: 'beta' }),
)
const fractions = new Map(Object.entries({ '½': '12', '⅓': '13', '⅔': '23', '¼': '14', '¾': '34', '⅕': '15', '⅛': '18' }))
const superscripts = '⁰¹²³⁴⁵⁶⁷⁸⁹'
const superscriptNumber = /⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+/y

const commandSymbols = new Map(
  Object.entries({
    cdot: '·',
    ast: '·',
    times: '×',
    div: '/',
    le: '≤',
    leq: '≤',
    leqslant: '≤',
    ge: '≥',
    geq: '≥',
    geqslant: '≥',
    lt: '<',
    gt: '>',
    ne: '≠',
    neq: '≠',
    approx: '≈',
    pm: '±',
    mp: '∓',
    cup: '∪',
    in: '∈',
    circ: '°',
    degree: '°',
    langle: '⟨',
    rangle: '⟩',
    lbrace: '\\{',
    rbrace: '\\}',
    lbrack: '[',
    rbrack: ']',
    mid: '|',
    vert: '|',
    lvert: '|',
    rvert: '|',
    colon: ':',
    prime: "'",
  }),
)
const commandNames = new Map(
  Object.entries({
    dfrac: 'frac',
    tfrac: 'frac',
    cfrac: 'frac',
    dbinom: 'binom',
    tbinom: 'binom',
    varnothing: 'emptyset',
    ldots: 'dots',
    cdots: 'dots',
    bar: 'overline',
  }),
)
const dropped = new Set('left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits'.split(' '))
const plainWrappers = new Set('boxed fbox mathbf mathit boldsymbol bm'.split(' '))
const uprightCommands = new Set('text textbf textit textrm textnormal mathrm mbox operatorname'.split(' '))
const spaces = new Set(['quad', 'qquad', ',', ':', ';', '>', ' '])

const plainOperators = new Map(Object.entries({ '<=': '≤', '>=': '≥', '+/-': '±', '**': '^' }))
const plainOperator = /<=|>=|\+\/-|\*\*/y
const plainNumber = /\d+\.\d*(?=\\(?:overline|bar)(?![a-zA-Z]))|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?/y
const separator = /,\\!|\{,\}|\\,|[\u2009\u202f]|,/y
const three = /\d{3}(?!\d)/y

/** The tokens of an answer, without dollar signs, bracket sizes and other marks that do not change its meaning. */
export function tokenize(text: string): readonly Token[] {
  return trimmed(new Lexer(text).read())
}

class Lexer {
  readonly #text: string
  readonly #tokens: Token[] = []
  // per open brace: whether text was upright before it, and whether it belongs to a wrapper
  readonly #groups: { outer: boolean; silent: boolean }[] = []
  #upright = false
  #wrapper: 'upright' | 'plain' | undefined // a following brace belongs to \text or \mathbf
  #spaced = false
  #position = 0
  #brackets = 0 // number of open brackets: a comma inside is not a thousands separator
  #ungrouped = 0 // digits before this position have no thousands separators

  constructor(text: string) {
    this.#text = text
  }

  read(): readonly Token[] {
    while (this.#position < this.#text.length) this.#next(this.#text[this.#position]!)
    return this.#tokens
  }

  #next(character: string): void {
    if (/\d/.test(character) || (character === '.' && /\d/.test(this.#text[this.#position + 1] ?? ''))) {
      const start = this.#position
      const number = this.#grouped() ?? this.#match(plainNumber)!
      if (this.#position === start) this.#position += number.length
      this.#push('number', number)
    } else if (/[a-zA-Z]/.test(character)) {
      const meridiem = this.#tokens.at(-1)?.kind === 'number' ? this.#match(/[ap]\.\s?m\.?/iy) : undefined
      const run = meridiem ?? this.#match(/[a-zA-Z]+/y)!
      this.#position += run.length
      if (meridiem === undefined) this.#letters(run)
      else this.#push('word', `${meridiem[0]!.toUpperCase()}M`)
    } else if (character === '\\') {
      this.#position++
      const name = this.#match(/[a-zA-Z]+|[\s\S]/y) ?? ''
      this.#position += name.length
      this.#command(name)
    } else this.#symbol(character)
  }

  /** Operators, brackets and other characters. */
  #symbol(character: string): void {
    const special = this.#match(plainOperator) ?? this.#match(superscriptNumber)
    this.#position += special?.length ?? 1
    if (special !== undefined) {
      if (plainOperators.has(special)) this.#push('symbol', plainOperators.get(special)!)
      else this.#superscript(special)
      return
    }
    if (/\s/.test(character) || character === '~') this.#spaced = true
    else if (character === '$') return
    else if (character === '{' && this.#match(/[,:;=<>+.-]\}/y) !== undefined) {
      this.#push('symbol', this.#text[this.#position]!)
      this.#position += 2
    } else if (character === '{') {
      this.#groups.push({ outer: this.#upright, silent: this.#upright || this.#wrapper !== undefined })
      if (!this.#upright && this.#wrapper === undefined) this.#push('symbol', '{')
      this.#upright ||= this.#wrapper === 'upright'
      this.#wrapper = undefined
      this.#brackets++
    } else if (character === '}') {
      const { outer = false, silent = false } = this.#groups.pop() ?? {}
      if (!silent) this.#push('symbol', '}')
      this.#upright = outer
      this.#brackets--
    } else if (fractions.has(character)) this.#fraction(fractions.get(character)!)
    else if (characterCommands.has(character)) this.#push('command', characterCommands.get(character)!)
    else {
      if (character === '(' || character === '[') this.#brackets++
      else if (character === ')' || character === ']') this.#brackets--
      this.#push('symbol', symbols.get(character) ?? character)
    }
  }

  #push(kind: Token['kind'], token: string, run = 0): void {
    this.#tokens.push({ kind, text: token, spaced: this.#spaced, upright: this.#upright, run })
    this.#spaced = false
    this.#wrapper = undefined
  }
  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#position
    return pattern.exec(this.#text)?.[0]
  }

  /**
   * `1,234`, `1{,}234` or `1\,234`: digits with thousands separators. In brackets, as in `(1,234)`, a bare comma is not a
   * separator.
   */
  #grouped(): string | undefined {
    const start = this.#position
    const first = this.#match(/[1-9]\d{0,2}(?!\d)/y)
    if (first === undefined || start < this.#ungrouped) return undefined
    let digits = first
    let end = start + first.length
    let kind: string | undefined
    const argument = this.#text[start - 1] === '{' && /[a-zA-Z}]/.test(this.#text[start - 2] ?? '') // the 1,000 of \frac{1,000}{3}
    for (;;) {
      this.#position = end
      const mark = this.#match(separator)
      if (mark === undefined || (mark === ',' && this.#brackets > 0 && !argument) || mark !== (kind ?? mark)) break
      this.#position = end + mark.length
      const group = this.#match(three)
      if (group === undefined) {
        if (mark === ',' && this.#match(/\d/y) !== undefined) digits = first // 1,234,56 is a list
        break
      }
      kind = mark
      digits += group
      end = this.#position + 3
    }
    this.#position = start
    this.#ungrouped = end
    if (digits === first || (kind === ',' && this.#brackets > 0 && this.#text[end] !== '}')) return undefined
    this.#position = end
    const decimals = this.#match(/\.\d+/y) ?? ''
    this.#position = end + decimals.length
    return digits + decimals
  }

  #letters(run: string): void {
    const afterNumber = this.#tokens.at(-1)?.kind === 'number'
    const unit = units.has(run) && afterNumber && (run.length > 2 || (this.#spaced && plainUnits.has(run)))
    if (afterNumber && (this.#upright ? /^[ap]m$/i : /^[AP]M$/).test(run)) this.#push('word', run.toUpperCase())
    else if (/^[Ii]nfinity$/.test(run)) this.#push('command', 'infty')
    else if (this.#upright && run.length > 1) this.#push('word', foldCase(run))
    else if (plainCommands.has(run) && !unit) this.#push('command', plainCommands.get(run)!)
    else if (unit || run.length > 3 || plainWords.test(run)) this.#push('word', foldCase(run))
    else for (const letter of run) this.#push('letter', letter, run.length)
  }

  #command(name: string): void {
    if (name === '!') return
    if (spaces.has(name)) this.#spaced = true
    else if (name === '$' || name === '%' || name === '#' || name === '&' || name === '_') this.#push('symbol', name)
    else if (name === '{' || name === '}') {
      this.#brackets += name === '{' ? 1 : -1
      this.#push('symbol', `\\${name}`)
    } else if ('()[]'.includes(name)) return
    else if (name === '\\') {
      this.#push('symbol', '\\\\')
      this.#position += this.#match(/\s*\[[-\d.]+(?:pt|em|ex|mm|cm)\]/y)?.length ?? 0
    } else if (name === 'begin' || name === 'end') {
      const environment = this.#match(/\s*\{[a-zA-Z]+\*?\}/y) ?? ''
      this.#position += environment.length
      const kind = /[a-zA-Z]+/.exec(environment)?.[0] ?? ''
      this.#push(name, kind)
      if (name === 'begin' && kind === 'array') this.#position += this.#match(/\s*\{[lcr|\s]*\}/y)?.length ?? 0
    } else if (name === 'mathbb') {
      const set = this.#match(/\s*\{?[A-Z]\}?/y) ?? ''
      this.#position += set.length
      this.#push('command', `mathbb ${set.replace(/[^A-Z]/g, '')}`)
    } else if (uprightCommands.has(name)) this.#wrapper = 'upright'
    else if (plainWrappers.has(name)) this.#wrapper = 'plain'
    else if (!dropped.has(name)) {
      const symbol = commandSymbols.get(name)
      if (symbol === undefined) this.#push('command', commandNames.get(name) ?? name)
      else this.#push('symbol', symbol)
    }
  }

  #superscript(raised: string): void {
    this.#push('symbol', '^')
    this.#push('symbol', '{')
    if (raised.startsWith('⁻')) this.#push('symbol', '-')
    this.#push('number', [...raised.replace('⁻', '')].map((digit) => superscripts.indexOf(digit)).join(''))
    this.#push('symbol', '}')
  }

  #fraction([numerator, denominator]: string): void {
    this.#push('command', 'frac')
    for (const number of [numerator!, denominator!]) {
      this.#push('symbol', '{')
      this.#push('number', number)
      this.#push('symbol', '}')
    }
  }
}

/** `East` and `east`, `TRUE` and `true` are the same word; `AB` and `ab` are not. */
function foldCase(word: string): string {
  return /^(?:No|[A-Z][a-z]{2,}|TRUE|FALSE|YES|NO|NONE)$/.test(word) && !units.has(word) ? word.toLowerCase() : word
}

/** Removes what may surround an answer: `####` and everything before it, `=`, a final full stop, the bracket of `A)`. */
export function trimmed(tokens: readonly Token[]): readonly Token[] {
  const is = (token: Token | undefined, text: string): boolean => token?.kind === 'symbol' && token.text === text
  let start = 0
  while (is(tokens[start], '#')) start++
  if (is(tokens[start], '=') || is(tokens[start], '≈')) start++
  let end = tokens.length
  if (is(tokens[end - 1], '.') && !is(tokens[end - 2], '.')) end--
  if (end - start === 2 && tokens[start]!.kind === 'letter' && is(tokens[start + 1], ')')) end--
  return tokens.slice(start, end)
}

/** The tokens as a string, which is equal for equal tokens. */
export function printTokens(tokens: readonly Token[]): string {
  const parts: string[] = []
  for (const [i, token] of tokens.entries()) {
    const previous = tokens[i - 1]
    if (previous !== undefined && separated(previous, token)) parts.push(' ')
    parts.push(printToken(token))
  }
  return parts.join('')
}

function separated(a: Token, b: Token): boolean {
  const name = (token: Token) => token.kind === 'number' || token.kind === 'word' || token.kind === 'letter'
  if (a.kind === 'symbol' && a.text === ',') return true
  if (a.kind === 'command' || a.kind === 'begin') return b.kind === 'letter' || b.kind === 'word' || b.kind === 'number'
  if (b.spaced && (a.text === '.' || b.text === '.')) return true
  if (!name(a) || !name(b)) return false
  if (a.kind === 'word' || b.kind === 'word') return true
  if (a.kind === 'number' && b.kind === 'number') return true
  return b.spaced && (a.run > 1 || b.run > 1)
}

function printToken({ kind, text }: Token): string {
  if (kind === 'begin' || kind === 'end') return `\\${kind}{${text}}`
  if (kind === 'command') return text === 'root' ? '√' : `\\${text}`
  return text
}
