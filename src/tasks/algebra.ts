/**
 * Exact numbers and expressions: quotients of polynomials. Coefficients are fractions; variables are letters, π, roots of
 * primes and functions such as sin(x). Work is bounded: too large expressions throw {@link Unknown}.
 */

/** Thrown for an expression that is not supported, undefined (1/0) or too large. Its text is compared instead. */
export class Unknown extends Error {}

/** The most steps of one comparison, which take a few milliseconds. */
const maxSteps = 50_000
const maxDigits = 300
const maxExponent = 1000
/** Larger powers of sums are not expanded. */
const maxExpanded = 16
/** The largest divisor that the factorization tries. Numbers without a smaller divisor count as prime. */
const maxDivisor = 10_000

let steps = 0

/** Starts a new budget. */
export function resetSteps(): void {
  steps = 0
}

/**
 * Takes steps from the budget.
 * @throws Unknown if it is used up
 */
export function spend(count: number): void {
  steps += count
  if (steps > maxSteps) throw new Unknown()
}

/** n/d in lowest terms, d > 0. */
export interface Fraction {
  readonly n: bigint
  readonly d: bigint
}
const largest = 10n ** BigInt(maxDigits)

export function fraction(n: bigint, d = 1n): Fraction {
  if (d === 0n) throw new Unknown()
  if (d === 1n && n < largest && n > -largest) return { n, d }
  const divisor = gcd(n < 0n ? -n : n, d < 0n ? -d : d) * (d < 0n ? -1n : 1n)
  const [a, b] = [n / divisor, d / divisor]
  if (a >= largest || -a >= largest || b >= largest) throw new Unknown()
  return { n: a, d: b }
}

function gcd(a: bigint, b: bigint): bigint {
  while (b !== 0n) {
    spend(1)
    ;[a, b] = [b, a % b]
  }
  return a
}

const zero: Fraction = { n: 0n, d: 1n }
const one: Fraction = { n: 1n, d: 1n }
const plus = (a: Fraction, b: Fraction) => fraction(a.n * b.d + b.n * a.d, a.d * b.d)
const times = (a: Fraction, b: Fraction) => fraction(a.n * b.n, a.d * b.d)
export const toNumber = ({ n, d }: Fraction) => Number(n) / Number(d)

function integerPower(base: Fraction, exponent: bigint): Fraction {
  const size = exponent < 0n ? -exponent : exponent
  if (base.n === 0n && exponent <= 0n) throw new Unknown()
  const digits = Math.max(String(base.n).length, String(base.d).length) - 1
  if (size > maxExponent || digits * Number(size) > maxDigits) throw new Unknown()
  spend(10)
  const [n, d] = [base.n ** size, base.d ** size]
  return exponent < 0n ? fraction(d, n) : fraction(n, d)
}

/**
 * A coefficient times powers of atoms. An atom is a letter, `π`, `#p` (a prime whose exponent is between 0 and 1) or a
 * function.
 */
interface Term {
  coefficient: Fraction
  powers: ReadonlyMap<string, Fraction>
}
type Polynomial = ReadonlyMap<string, Term>

/** A quotient of polynomials. */
export interface Value {
  numerator: Polynomial
  denominator: Polynomial
}

/** Reduces exponents of primes and of i to their range, and moves the rest into the coefficient. */
function term(coefficient: Fraction, powers: Iterable<readonly [string, Fraction]>): Term {
  const kept = new Map<string, Fraction>()
  for (const [atom, exponent] of powers) {
    if (exponent.n === 0n) continue
    let rest = exponent
    if (atom.startsWith('#')) {
      const whole = floor(exponent)
      rest = plus(exponent, fraction(-whole))
      if (whole !== 0n) coefficient = times(coefficient, integerPower(fraction(BigInt(atom.slice(1))), whole))
    } else if (atom === 'i' && exponent.d === 1n) {
      const turn = ((exponent.n % 4n) + 4n) % 4n
      if (turn >= 2n) coefficient = times(coefficient, fraction(-1n))
      rest = fraction(turn % 2n)
    }
    if (rest.n !== 0n) kept.set(atom, rest)
  }
  return { coefficient, powers: kept }
}

function floor({ n, d }: Fraction): bigint {
  return n >= 0n ? n / d : -((-n + d - 1n) / d)
}

/** The powers of a term as a string, which is equal for equal powers. */
function monomial({ powers }: Term): string {
  const parts = [...powers].map(([atom, { n, d }]) => (n === 1n && d === 1n ? atom : `${atom}^${n}/${d}`))
  return parts.sort().join('·')
}

function polynomial(terms: Iterable<Term>): Polynomial {
  const sum = new Map<string, Term>()
  for (const added of terms) {
    spend(2 + added.powers.size)
    const key = monomial(added)
    const coefficient = plus(sum.get(key)?.coefficient ?? zero, added.coefficient)
    if (coefficient.n === 0n) sum.delete(key)
    else sum.set(key, { coefficient, powers: added.powers })
  }
  return sum
}

function multiplyTerms(a: Term, b: Term): Term {
  spend(4 + a.powers.size + b.powers.size)
  const powers = new Map(a.powers)
  for (const [atom, exponent] of b.powers) powers.set(atom, plus(powers.get(atom) ?? zero, exponent))
  return term(times(a.coefficient, b.coefficient), powers)
}

function multiplyPolynomials(a: Polynomial, b: Polynomial): Polynomial {
  const products: Term[] = []
  for (const x of a.values()) for (const y of b.values()) products.push(multiplyTerms(x, y))
  return polynomial(products)
}

const unity: Polynomial = polynomial([term(one, [])])

export function number(value: Fraction): Value {
  return { numerator: polynomial([term(value, [])]), denominator: unity }
}

/** A letter, π or the value of a function. */
export function atom(name: string): Value {
  return { numerator: polynomial([term(one, [[name, one]])]), denominator: unity }
}

/** The name of the atom if a value is one, else undefined. */
export function atomOf(value: Value): string | undefined {
  const { coefficient, powers } = single(value) ?? {}
  if (coefficient?.n !== 1n || coefficient.d !== 1n || powers?.size !== 1) return undefined
  const [name, exponent] = [...powers][0]!
  return exponent.n === 1n && exponent.d === 1n ? name : undefined
}

/** The fraction if a value is one, else undefined. */
export function rational(value: Value): Fraction | undefined {
  if (value.numerator.size === 0) return zero
  const only = single(value)
  return only?.powers.size === 0 ? only.coefficient : undefined
}

/** Whether a letter occurs. */
export function contains(value: Value, name: string): boolean {
  return [value.numerator, value.denominator].some((part) => [...part.values()].some(({ powers }) => powers.has(name)))
}

/** The term of a value that has only one term and no denominator. */
function single(value: Value): Term | undefined {
  if (value.denominator !== unity || value.numerator.size !== 1) return undefined
  return [...value.numerator.values()][0]
}

export function add(a: Value, b: Value): Value {
  if (a.denominator === unity && b.denominator === unity) {
    return { numerator: polynomial([...a.numerator.values(), ...b.numerator.values()]), denominator: unity }
  }
  const numerator = [...multiplyPolynomials(a.numerator, b.denominator).values()]
  numerator.push(...multiplyPolynomials(b.numerator, a.denominator).values())
  return { numerator: polynomial(numerator), denominator: multiplyPolynomials(a.denominator, b.denominator) }
}

/** Whether a sum has like terms that could be added, as in 2 + 3 or x + 2x. */
export function haveLikeTerms(a: Value, b: Value): boolean {
  return a.denominator === unity && b.denominator === unity && [...b.numerator.keys()].some((key) => a.numerator.has(key))
}

export function negate(a: Value): Value {
  return multiply(number(fraction(-1n)), a)
}

export function multiply(a: Value, b: Value): Value {
  const denominator = b.denominator === unity ? a.denominator : multiplyPolynomials(a.denominator, b.denominator)
  return { numerator: multiplyPolynomials(a.numerator, b.numerator), denominator }
}

export function divide(a: Value, b: Value): Value {
  if (b.numerator.size === 0) throw new Unknown()
  const divisor = single(b)
  if (divisor !== undefined) return multiply(a, { numerator: polynomial([inverse(divisor)]), denominator: unity })
  return multiply(a, { numerator: b.denominator, denominator: b.numerator })
}

function inverse({ coefficient, powers }: Term): Term {
  const inverted = [...powers].map(([name, exponent]) => [name, fraction(-exponent.n, exponent.d)] as const)
  return term(integerPower(coefficient, -1n), inverted)
}

/** A value as a string. Equal values without a denominator have equal strings. */
export function print({ numerator, denominator }: Value): string {
  const text = (part: Polynomial) =>
    [...part].map(([key, { coefficient: { n, d } }]) => `${n}/${d}·${key}`).sort().join('+') // biome-ignore format: one line
  const printed = denominator === unity ? text(numerator) : `(${text(numerator)})/(${text(denominator)})`
  spend(printed.length)
  return printed
}

export function power(base: Value, exponent: Value): Value {
  const constant = rational(exponent)
  if (constant === undefined) return atom(`power(${print(base)},${print(exponent)})`)
  const only = single(base)
  if (constant.d === 1n) {
    if (only !== undefined) {
      const powers = [...only.powers].map(([name, e]) => [name, times(e, constant)] as const)
      return { numerator: polynomial([term(integerPower(only.coefficient, constant.n), powers)]), denominator: unity }
    }
    const size = Number(constant.n < 0n ? -constant.n : constant.n)
    if (base.numerator.size === 0 && constant.n <= 0n) throw new Unknown()
    if (size > maxExpanded) return atom(`power(${print(base)},${constant.n})`)
    let product = number(one)
    for (let i = 0; i < size; i++) product = multiply(product, base)
    return constant.n < 0n ? divide(number(one), product) : product
  }
  if (base.numerator.size === 0) {
    if (constant.n < 0n) throw new Unknown()
    return base
  }
  if (only === undefined) return power(atom(`root(${print(base)},${constant.d})`), number(fraction(constant.n)))
  return termRoot(only, constant)
}

/** A fractional power of one term. √(xy) stays one atom, because it equals √x·√y only if both are positive. */
function termRoot({ coefficient, powers }: Term, exponent: Fraction): Value {
  const { n, d } = coefficient
  const free = [...powers].filter(([name]) => name !== 'π' && !name.startsWith('#'))
  const [letter] = free
  if (free.length > 1 || (letter !== undefined && (letter[1].n !== 1n || letter[1].d !== 1n || n < 0n))) {
    const key = print({ numerator: polynomial([{ coefficient, powers }]), denominator: unity })
    return power(atom(`root(${key},${exponent.d})`), number(fraction(exponent.n)))
  }
  const factors: [string, Fraction][] = [...powers].map(([name, e]) => [name, times(e, exponent)])
  for (const [prime, count] of factorize(n < 0n ? -n : n)) factors.push([`#${prime}`, times(fraction(count), exponent)])
  for (const [prime, count] of factorize(d)) factors.push([`#${prime}`, times(fraction(-count), exponent)])
  if (n < 0n && exponent.d % 2n === 0n) factors.push(['i', times(fraction(2n), exponent)])
  const sign = n < 0n && exponent.d % 2n === 1n && exponent.n % 2n !== 0n ? -1n : 1n
  const product = factors.reduce((value, [name, e]) => multiplyTerms(value, term(one, [[name, e]])), term(fraction(sign), []))
  return { numerator: polynomial([product]), denominator: unity }
}

function factorize(value: bigint): Map<bigint, bigint> {
  const found = new Map<bigint, bigint>()
  for (let divisor = 2n; divisor <= maxDivisor && divisor * divisor <= value; divisor += divisor === 2n ? 1n : 2n) {
    spend(1)
    while (value % divisor === 0n) {
      spend(1)
      found.set(divisor, (found.get(divisor) ?? 0n) + 1n)
      value /= divisor
    }
  }
  if (value > 1n) found.set(value, (found.get(value) ?? 0n) + 1n)
  return found
}

/** The absolute value of a number, or an atom. */
export function absolute(value: Value): Value {
  const constant = rational(value)
  if (constant === undefined) return atom(`abs(${print(value)})`)
  return constant.n < 0n ? negate(value) : value
}

/** n! for 0 ≤ n ≤ 150. */
export function factorial(value: Value): Value {
  const n = rational(value)
  if (n === undefined) return atom(`factorial(${print(value)})`)
  if (n.d !== 1n || n.n < 0n || n.n > 150n) throw new Unknown()
  let product = 1n
  for (let i = 2n; i <= n.n; i++) product *= i
  return number(fraction(product))
}

/** The binomial coefficient n over k. */
export function binomial(top: Value, bottom: Value): Value {
  const [n, k] = [rational(top), rational(bottom)]
  if (n === undefined || k === undefined) return atom(`binomial(${print(top)},${print(bottom)})`)
  if (n.d !== 1n || k.d !== 1n || k.n < 0n || n.n < k.n || n.n > 1000n) throw new Unknown()
  let product = fraction(1n)
  for (let i = 1n; i <= (k.n > n.n - k.n ? n.n - k.n : k.n); i++) product = times(product, fraction(n.n + 1n - i, i))
  return number(product)
}

/** Whether two values are equal for all values of their letters. */
export function equal(a: Value, b: Value): boolean {
  const [left, right] = [multiplyPolynomials(a.numerator, b.denominator), multiplyPolynomials(b.numerator, a.denominator)]
  if (left.size !== right.size) return false
  return [...left].every(
    ([
      key,
      {
        coefficient: { n, d },
      },
    ]) => {
      const other = right.get(key)?.coefficient
      return other !== undefined && other.n === n && other.d === d
    },
  )
}

/** Whether one polynomial is a multiple of the other, like the sides of 2x = 4y and x − 2y = 0. */
export function proportional(a: Value, b: Value): boolean {
  if (a.denominator !== unity || b.denominator !== unity) return equal(a, b) || equal(a, negate(b))
  const [key, leading] = [...a.numerator][0] ?? []
  const other = key === undefined ? undefined : b.numerator.get(key)
  if (leading === undefined || other === undefined) return false
  return equal(multiply(a, number(other.coefficient)), multiply(b, number(leading.coefficient)))
}

/** The approximate value of a number. undefined for an expression with letters. */
export function approximate({ numerator, denominator }: Value): number | undefined {
  const evaluate = (part: Polynomial) =>
    [...part.values()].reduce((sum, { coefficient, powers }) => {
      let product = toNumber(coefficient)
      for (const [name, exponent] of powers) {
        const base = name === 'π' ? Math.PI : name === 'e' ? Math.E : name.startsWith('#') ? Number(name.slice(1)) : Number.NaN
        product *= base ** toNumber(exponent)
      }
      return sum + product
    }, 0)
  const value = evaluate(numerator) / evaluate(denominator)
  return Number.isFinite(value) ? value : undefined
}
