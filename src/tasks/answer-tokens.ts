/** Splits an answer in LaTeX or plain text into tokens. One pass, linear in the text. */

/** One token; spaces are no tokens. */
export interface Token {
  /** `letter`: one letter, a factor of a product. `word`: text. `command`: a LaTeX command that is kept, without its backslash. */
  kind: 'number' | 'letter' | 'word' | 'command' | 'symbol' | 'begin' | 'end'
  text: string
  /** White space stands before it. */
  spaced: boolean
  /** Set in `\text` or `\mathrm`, where a letter may be a unit. */
  upright: boolean
  /** Letters of the run that this letter is part of. */
  run: number
}

/** Units by any of their spellings: those that may be dropped. Letters that have other meanings (k, K, M, N, W, A) are none. */
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
/** Units of two letters outside \text; any other two letters are a product of variables there. */
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
/** Runs of at most three letters that are words, no products. */
const plainWords = /^(?:or|and|sq|per|[Nn]o|YES|[A-Z][a-z]{2})$/

export const functionNames: ReadonlySet<string> = new Set(
  'sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp'.split(' '),
)
/** Commands without their backslash. `root` takes a whole number: sqrt12, where \sqrt12 is the root of 1. */
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

/** The tokens of an answer without dollar signs, sizes of brackets and other marks that do not change its meaning. */
export function tokenize(text: string): readonly Token[] {
  const tokens: Token[] = []
  const groups: { outer: boolean; silent: boolean }[] = [] // of open braces: whether upright before, whether part of a wrapper
  let upright = false
  let wrapper: 'upright' | 'plain' | undefined // a brace that follows belongs to \text or \mathbf
  let spaced = false
  let position = 0
  let brackets = 0 // that are open: a comma within is no thousands separator
  let ungrouped = 0 // digits before this position have no thousands separators
  const push = (kind: Token['kind'], token: string, run = 0): void => {
    tokens.push({ kind, text: token, spaced, upright, run })
    spaced = false
    wrapper = undefined
  }
  const match = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = position
    return pattern.exec(text)?.[0]
  }

  /** `1,234`, `1{,}234` or `1\,234`: digits with separators in front of every three. In brackets, `(1,234)`, a bare comma is none. */
  const grouped = (): string | undefined => {
    const start = position
    const first = match(/[1-9]\d{0,2}(?!\d)/y)
    if (first === undefined || start < ungrouped) return undefined
    let digits = first
    let end = start + first.length
    let kind: string | undefined
    const argument = text[start - 1] === '{' && /[a-zA-Z}]/.test(text[start - 2] ?? '') // the 1,000 of \frac{1,000}{3}
    for (;;) {
      position = end
      const mark = match(separator)
      if (mark === undefined || (mark === ',' && brackets > 0 && !argument) || mark !== (kind ?? mark)) break
      position = end + mark.length
      const group = match(three)
      if (group === undefined) {
        if (mark === ',' && match(/\d/y) !== undefined) digits = first // 1,234,56 is a list
        break
      }
      kind = mark
      digits += group
      end = position + 3
    }
    position = start
    ungrouped = end
    if (digits === first || (kind === ',' && brackets > 0 && text[end] !== '}')) return undefined
    position = end
    const decimals = match(/\.\d+/y) ?? ''
    position = end + decimals.length
    return digits + decimals
  }

  const letters = (run: string): void => {
    const afterNumber = tokens.at(-1)?.kind === 'number'
    const unit = units.has(run) && afterNumber && (run.length > 2 || (spaced && plainUnits.has(run)))
    if (afterNumber && (upright ? /^[ap]m$/i : /^[AP]M$/).test(run)) push('word', run.toUpperCase())
    else if (/^[Ii]nfinity$/.test(run)) push('command', 'infty')
    else if (upright && run.length > 1) push('word', foldCase(run))
    else if (plainCommands.has(run) && !unit) push('command', plainCommands.get(run)!)
    else if (unit || run.length > 3 || plainWords.test(run)) push('word', foldCase(run))
    else for (const letter of run) push('letter', letter, run.length)
  }

  const command = (name: string): void => {
    if (name === '!') return
    if (spaces.has(name)) spaced = true
    else if (name === '$' || name === '%' || name === '#' || name === '&' || name === '_') push('symbol', name)
    else if (name === '{' || name === '}') {
      brackets += name === '{' ? 1 : -1
      push('symbol', `\\${name}`)
    } else if ('()[]'.includes(name)) return
    else if (name === '\\') {
      push('symbol', '\\\\')
      position += match(/\s*\[[-\d.]+(?:pt|em|ex|mm|cm)\]/y)?.length ?? 0
    } else if (name === 'begin' || name === 'end') {
      const environment = match(/\s*\{[a-zA-Z]+\*?\}/y) ?? ''
      position += environment.length
      const kind = /[a-zA-Z]+/.exec(environment)?.[0] ?? ''
      push(name, kind)
      if (name === 'begin' && kind === 'array') position += match(/\s*\{[lcr|\s]*\}/y)?.length ?? 0
    } else if (name === 'mathbb') {
      const set = match(/\s*\{?[A-Z]\}?/y) ?? ''
      position += set.length
      push('command', `mathbb ${set.replace(/[^A-Z]/g, '')}`)
    } else if (uprightCommands.has(name)) wrapper = 'upright'
    else if (plainWrappers.has(name)) wrapper = 'plain'
    else if (!dropped.has(name)) {
      const symbol = commandSymbols.get(name)
      if (symbol === undefined) push('command', commandNames.get(name) ?? name)
      else push('symbol', symbol)
    }
  }

  while (position < text.length) {
    const character = text[position]!
    if (/\d/.test(character) || (character === '.' && /\d/.test(text[position + 1] ?? ''))) {
      const start = position
      const number = grouped() ?? match(plainNumber)!
      if (position === start) position += number.length
      push('number', number)
    } else if (/[a-zA-Z]/.test(character)) {
      const meridiem = tokens.at(-1)?.kind === 'number' ? match(/[ap]\.\s?m\.?/iy) : undefined
      const run = meridiem ?? match(/[a-zA-Z]+/y)!
      position += run.length
      if (meridiem === undefined) letters(run)
      else push('word', `${meridiem[0]!.toUpperCase()}M`)
    } else if (character === '\\') {
      position++
      const name = match(/[a-zA-Z]+|[\s\S]/y) ?? ''
      position += name.length
      command(name)
    } else {
      const special = match(plainOperator) ?? match(superscriptNumber)
      position += special?.length ?? 1
      if (special !== undefined) {
        if (plainOperators.has(special)) push('symbol', plainOperators.get(special)!)
        else superscript(special)
        continue
      }
      if (/\s/.test(character) || character === '~') spaced = true
      else if (character === '$') continue
      else if (character === '{' && match(/[,:;=<>+.-]\}/y) !== undefined) {
        push('symbol', text[position]!)
        position += 2
      } else if (character === '{') {
        groups.push({ outer: upright, silent: upright || wrapper !== undefined })
        if (!upright && wrapper === undefined) push('symbol', '{')
        upright ||= wrapper === 'upright'
        wrapper = undefined
        brackets++
      } else if (character === '}') {
        const { outer = false, silent = false } = groups.pop() ?? {}
        if (!silent) push('symbol', '}')
        upright = outer
        brackets--
      } else if (fractions.has(character)) fraction(fractions.get(character)!)
      else if (characterCommands.has(character)) push('command', characterCommands.get(character)!)
      else {
        if (character === '(' || character === '[') brackets++
        else if (character === ')' || character === ']') brackets--
        push('symbol', symbols.get(character) ?? character)
      }
    }
  }
  return trimmed(tokens)

  function superscript(raised: string): void {
    push('symbol', '^')
    push('symbol', '{')
    if (raised.startsWith('⁻')) push('symbol', '-')
    push('number', [...raised.replace('⁻', '')].map((digit) => superscripts.indexOf(digit)).join(''))
    push('symbol', '}')
  }

  function fraction([numerator, denominator]: string): void {
    push('command', 'frac')
    for (const number of [numerator!, denominator!]) {
      push('symbol', '{')
      push('number', number)
      push('symbol', '}')
    }
  }
}

/** `East` and `east`, `TRUE` and `true` are one word; `AB` and `ab` are two. */
function foldCase(word: string): string {
  return /^(?:No|[A-Z][a-z]{2,}|TRUE|FALSE|YES|NO|NONE)$/.test(word) && !units.has(word) ? word.toLowerCase() : word
}

/** Without what may stand around an answer: `####` and all before it, `=`, a final full stop, the bracket of `A)`. */
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

/** The tokens as text that differs only where they do. */
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
