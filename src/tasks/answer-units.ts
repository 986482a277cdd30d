// Reads words, currencies and units from the tokens of an answer.
import { Unknown } from './algebra.js'
import { printTokens, type Token, units } from './answer-tokens.js'

/** Reads tokens from left to right. */
export class UnitReader {
  protected position = 0
  protected readonly tokens: Token[]

  constructor(tokens: readonly Token[]) {
    this.tokens = [...tokens]
  }

  /** The unit that these tokens spell, or undefined. */
  onlyUnit(): string | undefined {
    const unit = this.unit()
    return this.position === this.tokens.length ? unit : undefined
  }

  protected get next(): Token | undefined {
    return this.tokens[this.position]
  }

  protected at(text: string, kind = 'symbol', offset = 0): boolean {
    const token = this.tokens[this.position + offset]
    return token?.kind === kind && token.text === text
  }

  protected take(text: string, kind = 'symbol'): boolean {
    const found = this.at(text, kind)
    if (found) this.position++
    return found
  }

  protected expect(text: string): void {
    if (!this.take(text)) throw new Unknown()
  }

  /** Reads letters and words only, because a product of letters would not distinguish `no` from `on`. */
  protected words(): string | undefined {
    let end = this.position
    let words = false
    for (let token = this.tokens[end]; token?.kind === 'letter' || token?.kind === 'word'; token = this.tokens[++end]) {
      if (end > this.position && token.kind === 'word' && /^(?:or|and)$/.test(token.text)) break
      words ||= token.kind === 'word' || token.run > 1
    }
    const after = this.tokens[end]
    const ended = after === undefined || (after.kind === 'symbol' && /^[,;)\]}=≈&]$|^\\/.test(after.text)) || after.kind === 'end'
    if (!words || !(ended || after.kind === 'word')) return undefined
    const text = printTokens(this.tokens.slice(this.position, end))
    this.position = end
    return text
  }

  protected takeCurrency(): string | undefined {
    const negative = this.at('-') ? 1 : 0
    const token = this.tokens[this.position + negative]
    const currency = token?.kind === 'symbol' ? { $: 'dollar', '€': 'euro', '£': 'pound sterling' }[token.text] : undefined
    if (currency !== undefined) this.tokens.splice(this.position + negative, 1)
    return currency
  }

  /** Reads a unit at the end of an item, in its usual spelling. */
  protected unit(): string | undefined {
    const start = this.position
    let text = ''
    let shape = ''
    for (;;) {
      const token = this.next
      const degree = this.degree()
      if (degree > 0) {
        this.position += degree
        const scale = this.next?.kind === 'letter' && /^[CF]$/.test(this.next.text) ? this.next.text : ''
        if (scale !== '') this.position++
        text += { C: 'celsius', F: 'fahrenheit' }[scale] ?? 'degree'
        continue
      }
      if (token === undefined) break
      const name = token.kind === 'word' || (token.kind === 'letter' && token.upright) ? units.get(token.text) : undefined
      if (token.text === '%' || token.text === '\\%') text += '%'
      else if (name !== undefined) {
        if (/[a-zA-Z]$/.test(text)) text += ' '
        text += name + shape
        shape = ''
      } else if (/^(?:square|sq|cubic|cu)$/.test(token.text)) shape = token.text.startsWith('s') ? '^2' : '^3'
      else if (text !== '' && (token.text === 'per' || token.text === '/')) text += '/'
      else if (text !== '' && token.text === '·') text += ' '
      else if (text !== '' && token.text === '^') {
        const braced = this.at('{', 'symbol', 1) ? 1 : 0
        const exponent = this.tokens[this.position + 1 + braced]
        if (exponent?.kind !== 'number' || (braced === 1 && !this.at('}', 'symbol', 3))) break
        text += `^${exponent.text}`
        this.position += 1 + 2 * braced
      } else break
      this.position++
    }
    if (text !== '' && shape === '' && !/[/ ]$/.test(text)) return text.replace(/^degree (celsius|fahrenheit)$/, '$1')
    this.position = start
    return undefined
  }

  /** The number of tokens of a degree sign at this position, or 0. */
  protected degree(): number {
    if (this.at('°')) return 1
    if (!this.at('^')) return 0
    if (this.at('°', 'symbol', 1)) return 2
    return this.at('{', 'symbol', 1) && this.at('°', 'symbol', 2) && this.at('}', 'symbol', 3) ? 4 : 0
  }
}

/** An answer without its unit. A percent sign stays. */
export function withoutUnit(tokens: readonly Token[]): readonly Token[] {
  for (let start = Math.max(1, tokens.length - 12); start < tokens.length; start++) {
    const unit = new UnitReader(tokens.slice(start)).onlyUnit()
    if (unit !== undefined) return unit.includes('%') ? tokens : tokens.slice(0, start)
  }
  return tokens
}
