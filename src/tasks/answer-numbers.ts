// Reads numbers, mixed numbers and repeating decimals from the tokens of an answer.
import * as algebra from './algebra.js'
import { type Fraction, fraction, type Value } from './algebra.js'
import { UnitReader } from './answer-units.js'

const { Unknown } = algebra

export class NumberReader extends UnitReader {
  /** Whether a decimal point was read. */
  protected decimal = false

  protected numeral(text: string): Fraction {
    const [, whole = '', decimals = '', exponent = '0'] = /^(\d*)\.?(\d*)(?:[eE]([+-]?\d+))?$/.exec(text) ?? []
    if (text.includes('.')) this.decimal = true
    const shift = Number(exponent) - decimals.length
    if (whole + decimals === '') throw new Unknown()
    if (whole.length + decimals.length > 300 || Math.abs(shift) > 300) throw new Unknown()
    const digits = BigInt(whole + decimals)
    return shift < 0 ? fraction(digits, 10n ** BigInt(-shift)) : fraction(digits * 10n ** BigInt(shift))
  }

  /** The fraction of a mixed number, `\frac34` or ` 3/4`. */
  protected fractionPart(): Fraction | undefined {
    const digits = (offset: number) => {
      const token = this.tokens[this.position + offset]
      return token?.kind === 'number' && /^\d+$/.test(token.text) ? token.text : undefined
    }
    let [n, d] = [digits(0), digits(2)]
    let length = 3
    if (n === undefined || d === undefined || !this.at('/', 'symbol', 1)) {
      if (!this.at('frac', 'command')) return undefined
      length = 1
      ;[n, d] = [0, 1].map(() => {
        const braced = this.at('{', 'symbol', length)
        const number = digits(length + (braced ? 1 : 0))
        if (braced) length += this.at('}', 'symbol', length + 2) ? 3 : Number.NaN
        else length++
        return number
      })
      const packed = this.tokens[this.position + 1]
      if (packed?.kind === 'number' && /^\d\d$/.test(packed.text) && digits(2) === undefined) {
        length = 2
        ;[n, d] = [...packed.text]
      }
    }
    if (n === undefined || d === undefined || Number.isNaN(length)) return undefined
    if (n.length > 20 || d.length > 20 || BigInt(n) >= BigInt(d)) throw new Unknown()
    this.position += length
    return fraction(BigInt(n), BigInt(d))
  }

  /** `0.1\overline{6}`. */
  protected repeating(text: string): Value {
    const [whole = '', fixed = ''] = text.split('.')
    this.expect('{')
    const period = this.next?.kind === 'number' ? this.next.text : ''
    this.position++
    this.expect('}')
    if (!/^\d{1,50}$/.test(period) || text.length > 100) throw new Unknown()
    const scale = 10n ** BigInt(fixed.length)
    const nines = 10n ** BigInt(period.length) - 1n
    return algebra.number(fraction(BigInt(whole + fixed) * nines + BigInt(period), scale * nines))
  }
}
