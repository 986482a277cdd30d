/** Parses the tokens of an answer into values, tuples, intervals, sets, matrices and equations. */
import * as algebra from './algebra.js'
import { fraction, type Value } from './algebra.js'
import { NumberReader } from './answer-numbers.js'
import { functionNames, multipliers, printTokens, type Token, units } from './answer-tokens.js'

const { Unknown } = algebra

/** One answer, or one entry of a list, tuple, set or matrix. */
export type Item =
  /** `decimal`: written with a decimal point, so that it may be rounded. */
  | { type: 'value'; value: Value; decimal: boolean; unit?: string }
  | { type: 'infinity'; sign: number }
  | { type: 'text'; text: string }
  /** A tuple, an interval or a set, by its brackets; a ratio (`:`), a union (`∪`) or a row of a matrix (`&`). */
  | { type: 'group'; brackets: string; items: Item[] }
  | { type: 'relation'; operators: string[]; sides: Item[] }

/** A parsed answer: one item or a list of items, and the name that they are assigned to, as x in x = 5. */
export interface Answer {
  items: Item[]
  /** `,` or `or`, for inequalities. */
  joint: string
}

const maxDepth = 100
const relations = new Set(['=', '≈', '<', '>', '≤', '≥', '≠', '∈'])
const letterCommands = new Set(
  [
    'alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi',
    'varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar',
  ]
    .join(' ')
    .split(' '),
)
/** Letters that denote functions before a bracket: f(2) is not 2f. */
const functionLetters = /^[fghFGHPQ]$/

/** @throws Unknown for text that is not mathematics that this parser supports, and for unevaluated sums and products */
export function parseAnswer(tokens: readonly Token[]): Answer {
  const parser = new Parser(tokens, 1)
  const { items, joint } = parser.answer()
  if (!parser.ambiguous) return { items, joint }
  return { items: [...items, ...new Parser(tokens, -1).answer().items], joint }
}

class Parser extends NumberReader {
  /** Whether ± occurred. */
  ambiguous = false
  private depth = 0
  private inFunction = 0
  private inBars = 0

  constructor(
    tokens: readonly Token[],
    private readonly sign: number,
  ) {
    super(tokens)
  }

  answer(): Answer {
    const { items, joint } = this.list()
    if (this.position < this.tokens.length) throw new Unknown()
    return { items, joint }
  }

  private nested<T>(read: () => T): T {
    if (++this.depth > maxDepth) throw new Unknown()
    const result = read()
    this.depth--
    return result
  }

  /** Items between commas, semicolons, `and` and `or`. */
  private list(): { items: Item[]; joint: string } {
    const items: Item[] = []
    let joint = ','
    for (;;) {
      items.push(this.item())
      const comma = this.take(',') || this.take(';')
      if (this.take('or', 'word')) joint = 'or'
      else if (this.take('and', 'word')) joint = joint === 'or' ? 'or' : 'and'
      else if (!comma) return { items, joint }
    }
  }

  /** Sides with relations between them, or a single side. */
  private item(): Item {
    const sides = [this.union()]
    const operators: string[] = []
    while (this.next?.kind === 'symbol' && relations.has(this.next.text)) {
      operators.push(this.next.text === '≈' ? '=' : this.next.text)
      this.position++
      sides.push(this.union())
    }
    return operators.length === 0 ? sides[0]! : { type: 'relation', operators, sides }
  }

  private union(): Item {
    const items = [this.side()]
    for (const brackets of ['∪', ':']) {
      const start = this.position
      while (this.take(brackets)) items.push(this.side())
      if (brackets === ':' && this.tokens.slice(start, this.position).some(({ text }) => /^0\d/.test(text))) throw new Unknown() // 3:05
      if (items.length > 1) return { type: 'group', brackets, items }
    }
    return items[0]!
  }

  /** Words, or a sum with its unit. */
  private side(): Item {
    const text = this.words()
    if (text !== undefined) return { type: 'text', text }
    const outer = this.decimal
    this.decimal = false
    const unit = this.takeCurrency()
    const negative = unit !== undefined && this.take('-')
    const item = this.sum()
    const decimal = this.decimal
    this.decimal = outer || decimal
    if (item.type !== 'value') return item
    const value = negative ? algebra.negate(item.value) : item.value
    const found = unit ?? this.takeCurrency() ?? this.unit() ?? item.unit
    return { type: 'value', value, decimal, ...(found === undefined ? {} : { unit: found }) }
  }

  private sum(): Item {
    return this.nested(() => {
      let total = this.signed()
      for (;;) {
        const sign = this.takeSign()
        if (sign === 0) return total
        const next = plain(this.term())
        const left = plain(total)
        if (algebra.haveLikeTerms(left, next)) throw new Unknown() // 2 + 3 is not evaluated; 2020-05-06 is not a number
        total = item(algebra.add(left, sign < 0 ? algebra.negate(next) : next))
      }
    })
  }

  /** The first term of a sum. */
  private signed(): Item {
    const sign = this.takeSign()
    const term = this.term()
    if (sign >= 0) return term
    return term.type === 'infinity' ? { type: 'infinity', sign: -term.sign } : item(algebra.negate(plain(term)))
  }

  /** 1 or -1 for a sign, 0 if there is none. */
  private takeSign(): number {
    if (this.take('+')) return 1
    if (this.take('-')) return -1
    const [plus, minus] = [this.take('±'), this.take('∓')]
    if (!plus && !minus) return 0
    this.ambiguous = true
    return plus ? this.sign : -this.sign
  }

  /** Factors with · × / between them, or nothing. */
  private term(): Item {
    let numeral = this.next?.kind === 'number'
    let product = this.factor()
    for (;;) {
      const cross = this.at('·') || this.at('×')
      if (this.take('/')) {
        product = item(algebra.divide(plain(product), plain(this.factor())))
        if (this.startsFactor() || this.at('/')) throw new Unknown() // 1/2x could mean (1/2)x or 1/(2x); 5/6/2020 is a date
      } else if (cross) {
        this.position++
        const scientific = numeral && this.at('10', 'number') && this.at('^', 'symbol', 1)
        product = item(this.product(plain(product), plain(this.factor()), scientific))
      } else if (this.next?.kind === 'word' && multipliers.has(this.next.text) && algebra.rational(plain(product))) {
        const many = fraction(BigInt(multipliers.get(this.tokens[this.position++]!.text)!))
        product = item(algebra.multiply(plain(product), algebra.number(many)))
      } else if (this.startsFactor()) {
        if (this.next!.kind === 'number') throw new Unknown() // 3 4 and x5
        product = item(this.product(plain(product), plain(this.factor()), false))
      } else return product
      numeral = false
    }
  }

  /** Multiplies two values. A product of two numbers counts as unevaluated, except in scientific notation. */
  private product(a: Value, b: Value, scientific: boolean): Value {
    if (!scientific && algebra.rational(a) !== undefined && algebra.rational(b) !== undefined) throw new Unknown()
    return algebra.multiply(a, b)
  }

  private startsFactor(): boolean {
    const { kind, text, upright } = this.next ?? {}
    if (kind === 'symbol') return text === '(' || text === '{'
    if (kind === 'letter') return !(upright && units.has(text!))
    return kind === 'number' || (kind === 'command' && text !== 'overline')
  }

  private factor(): Item {
    let base = this.primary()
    for (;;) {
      if (this.degree() > 0) {
        if (this.inFunction === 0) return base
        this.position += this.degree()
        base = item(algebra.multiply(plain(base), algebra.atom('degree')))
      } else if (this.take('^')) {
        base = item(algebra.power(plain(base), this.exponent()))
        if (this.at('^')) throw new Unknown()
      } else if (this.take('!')) {
        if (this.at('!')) throw new Unknown()
        base = item(algebra.factorial(plain(base)))
      } else return base
    }
  }

  private exponent(): Value {
    const negative = this.take('-')
    const value = this.at('(') ? plain(this.primary()) : this.argument(false)
    return negative ? algebra.negate(value) : value
  }

  /**
   * The argument of a command or `^`: a group in braces, or one token. Of a number TeX only takes the first digit (`\frac12`).
   */
  private argument(digit = true): Value {
    const token = this.next
    if (token === undefined) throw new Unknown()
    if (token.kind === 'number') {
      this.position++
      if (!digit || token.text.length === 1) return algebra.number(this.numeral(token.text))
      if (!/^\d+$/.test(token.text)) throw new Unknown()
      this.tokens[--this.position] = { ...token, text: token.text.slice(1), spaced: false }
      return algebra.number(fraction(BigInt(token.text[0]!)))
    }
    if (token.kind === 'symbol' && token.text !== '{') throw new Unknown()
    return plain(this.primary())
  }

  private primary(): Item {
    return this.nested(() => {
      const token = this.next
      if (token === undefined) throw new Unknown()
      const { kind, text } = token
      this.position++
      algebra.spend(5)
      if (kind === 'number') return item(this.number(text))
      if (kind === 'letter') return item(this.letter(text))
      if (kind === 'command') return this.command(text)
      if (kind === 'begin') return this.matrix(text)
      if (text !== '|' || this.inBars > 0) return this.bracket(kind === 'symbol' ? text : '')
      this.inBars++
      const value = algebra.absolute(plain(this.sum()))
      this.inBars--
      this.expect('|')
      return item(value)
    })
  }

  /** A number, a mixed number, a repeating decimal or a number with its base. */
  private number(text: string): Value {
    if (this.take('_')) {
      const start = this.position
      this.argument()
      return algebra.atom(`${text} in base ${printTokens(this.tokens.slice(start, this.position)).replace(/[{}]/g, '')}`)
    }
    if (text.includes('.') && this.take('overline', 'command')) return this.repeating(text)
    const value = this.numeral(text)
    const part = /^\d+$/.test(text) ? this.fractionPart() : undefined
    if (part === undefined) return algebra.number(value)
    return algebra.add(algebra.number(value), algebra.number(part))
  }

  private letter(letter: string): Value {
    let name = letter
    while (this.take("'")) name += "'"
    if (this.take('_')) {
      const start = this.position
      if (this.next?.kind === 'number') this.position++
      else this.argument()
      name += `_${printTokens(this.tokens.slice(start, this.position)).replace(/[{}]/g, '')}`
    }
    if (!functionLetters.test(letter) || !this.at('(')) return algebra.atom(name)
    return algebra.atom(`${name}(${algebra.print(plain(this.primary()))})`)
  }

  private command(name: string): Item {
    if (name === 'pi') return item(algebra.atom('π'))
    if (name === 'infty') return { type: 'infinity', sign: 1 }
    if (name === 'emptyset') return { type: 'group', brackets: '\\{\\}', items: [] }
    if (letterCommands.has(name) || name.startsWith('mathbb ')) return item(this.letter(`\\${name}`))
    if (name === 'frac') {
      const top = this.argument()
      return item(algebra.divide(top, this.argument()))
    }
    if (name === 'binom') {
      const top = this.argument()
      return item(algebra.binomial(top, this.argument()))
    }
    if (name === 'sqrt' || name === 'root') {
      let index = fraction(2n)
      if (this.take('[')) {
        index = algebra.rational(plain(this.sum())) ?? fraction(0n)
        this.expect(']')
      }
      if (index.d !== 1n || index.n < 2n || index.n > 100n) throw new Unknown()
      const radicand = this.at('(') ? plain(this.primary()) : this.argument(name === 'sqrt')
      return item(algebra.power(radicand, algebra.number(fraction(1n, index.n))))
    }
    if (functionNames.has(name)) return item(this.function(name))
    throw new Unknown()
  }

  /** sin x, sin(x)y, sin 2x, sin²x, log₂ x. */
  private function(name: string): Value {
    let exponent: Value | undefined
    let label = name
    for (;;) {
      if (this.take('_')) label += `_${algebra.print(this.argument())}`
      else if (this.degree() === 0 && this.take('^')) exponent = this.exponent()
      else break
    }
    if (exponent !== undefined && algebra.rational(exponent)?.n === -1n) {
      label = `arc${name}`
      exponent = undefined
    }
    this.inFunction++
    const bracketed = this.at('(') || this.at('{')
    let argument = plain(bracketed ? this.primary() : this.factor())
    if (bracketed && (this.at('^') || this.at('!'))) throw new Unknown() // sin(x)^2 could mean sin(x²) or (sin x)²
    while (!bracketed && this.startsFactor() && !functionNames.has(this.next!.text)) {
      argument = this.product(argument, plain(this.factor()), false)
    }
    this.inFunction--
    const value = algebra.atom(`${label}(${algebra.print(argument)})`)
    return exponent === undefined ? value : algebra.power(value, exponent)
  }

  /** A value in brackets, a tuple, an interval or a set. */
  private bracket(open: string): Item {
    const closers = { '(': /^[)\]]$/, '[': /^[)\]]$/, '{': /^\}$/, '\\{': /^\\\}$/, '⟨': /^⟩$/ }[open]
    if (closers === undefined) throw new Unknown()
    const close = () => this.next?.kind === 'symbol' && closers.test(this.next.text)
    const bars = this.inBars
    this.inBars = 0
    const { items, joint } = close() ? { items: [], joint: ',' } : this.list()
    this.inBars = bars
    if (!close() || joint !== ',') throw new Unknown()
    const brackets = open + this.tokens[this.position++]!.text
    const [first] = items
    const matrix = brackets === '[]' && first?.type === 'group' && first.brackets === 'matrix'
    if (items.length === 1 && (brackets === '()' || brackets === '{}' || matrix)) return first!
    if (items.length === 0 && brackets !== '\\{\\}') throw new Unknown()
    return { type: 'group', brackets: brackets === '{}' ? '\\{\\}' : brackets, items }
  }

  /** The rows of a matrix. Round and square brackets are equivalent, bars denote a determinant. */
  private matrix(name: string): Item {
    if (!/^(?:array|[pbBvV]?matrix|smallmatrix)$/.test(name)) throw new Unknown()
    const rows: Item[] = []
    while (!this.at(name, 'end')) {
      const items = [this.item()]
      while (this.take('&')) items.push(this.item())
      rows.push({ type: 'group', brackets: '&', items })
      if (!this.take('\\\\') && !this.at(name, 'end')) throw new Unknown()
    }
    this.position++
    return { type: 'group', brackets: /^[BvV]/.test(name) ? name : 'matrix', items: rows }
  }
}

function item(value: Value): Item {
  return { type: 'value', value, decimal: false }
}

/** The value of an item without a unit. */
function plain(found: Item): Value {
  if (found.type !== 'value' || found.unit !== undefined) throw new Unknown()
  return found.value
}
