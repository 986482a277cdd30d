// Decimal numbers between two bounds as EBNF. Numbers of equal length are compared digit by digit.

/** Bounds of a number. If absent, about 10^15, up to which doubles are exact. */
export interface Bounds {
  minimum?: number
  maximum?: number
}

const most = 10n ** 15n - 1n

/**
 * An expression for the integers n with minimum <= n / 10^decimals <= maximum, written with this many decimals.
 *
 * @returns undefined if there are none
 */
export function rangeText({ minimum, maximum }: Bounds, decimals: number): string | undefined {
  const scaled = (bound: number, up: boolean) => scale(bound, decimals, up)
  const limit = most * 10n ** BigInt(decimals)
  const low = minimum === undefined ? -limit : scaled(minimum, true)
  const high = maximum === undefined ? limit : scaled(maximum, false)
  const alternatives: string[] = []
  const negative = high < 0n ? -high : 1n
  if (low < 0n && -low >= negative) alternatives.push(`"-" (${magnitudes(negative, -low, decimals).join(' | ')})`)
  if (high >= 0n && high >= low) alternatives.push(...magnitudes(low > 0n ? low : 0n, high, decimals))
  return alternatives.length === 0 ? undefined : `(${alternatives.join(' | ')})`
}

/** bound · 10^decimals, rounded up or down. Exact, computed from the shortest decimal form of the bound. */
function scale(bound: number, decimals: number, up: boolean): bigint {
  const [mantissa, exponent = '0'] = Math.abs(bound).toString().split('e')
  const [whole, fraction = ''] = mantissa!.split('.')
  const shift = Number(exponent) - fraction.length + decimals
  const digits = BigInt(whole! + fraction)
  const sign = bound < 0 ? -1n : 1n
  if (shift >= 0) return sign * digits * 10n ** BigInt(shift)
  const divisor = 10n ** BigInt(-shift)
  const floor = sign < 0n ? -((digits + divisor - 1n) / divisor) : digits / divisor
  return up && digits % divisor !== 0n ? floor + 1n : floor
}

/** Expressions for the natural numbers from low to high, one per number of digits. */
function magnitudes(low: bigint, high: bigint, decimals: number): string[] {
  const out: string[] = []
  for (let width = decimals + 1; ; width++) {
    const first = width === decimals + 1 ? 0n : 10n ** BigInt(width - 1)
    const last = 10n ** BigInt(width) - 1n
    if (first > high) return out
    const [from, to] = [first > low ? first : low, last < high ? last : high]
    if (from > to) continue
    const text = (n: bigint) => n.toString().padStart(width, '0')
    out.push(sameWidth(text(from), text(to), width - decimals))
  }
}

const digit = (from: string, to: string) => (from === to ? `"${from}"` : `[${from}-${to}]`)

/** Numbers with the same number of digits. `point`: digits before the decimal point. */
function sameWidth(low: string, high: string, point: number): string {
  if (low === '') return '""'
  const dot = (rest: string) => (point === 1 && low.length > 1 ? `"." ${rest}` : rest)
  const [a, b] = [low[0]!, high[0]!]
  const [lowRest, highRest] = [low.slice(1), high.slice(1)]
  const inner = (from: string, to: string) => (from === '' ? '' : ` ${dot(sameWidth(from, to, point - 1))}`)
  const [zeros, nines] = ['0'.repeat(lowRest.length), '9'.repeat(lowRest.length)]
  if (lowRest === zeros && highRest === nines) return digit(a, b) + free(lowRest.length, point - 1)
  if (a === b) return digit(a, a) + inner(lowRest, highRest)
  const parts: string[] = []
  let [first, last] = [Number(a), Number(b)]
  if (lowRest !== zeros) parts.push(digit(String(first), String(first++)) + inner(lowRest, nines))
  const top = highRest === nines ? undefined : digit(String(last), String(last--)) + inner(zeros, highRest)
  if (first <= last) parts.push(digit(String(first), String(last)) + free(lowRest.length, point - 1))
  if (top !== undefined) parts.push(top)
  return `(${parts.join(' | ')})`
}

/** Any digits, with the decimal point at its place. */
function free(count: number, point: number): string {
  if (count === 0) return ''
  const digits = (n: number) => (n === 0 ? '' : ` [0-9]{${n}}`)
  return point >= 0 && point < count ? `${digits(point)} "."${digits(count - point)}` : digits(count)
}
