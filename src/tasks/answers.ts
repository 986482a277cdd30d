/** Compares short mathematical answers in LaTeX or plain text. A wrong answer must never pass. */

import { LoopLMError } from '../errors.js'
import { checkNumber, describe } from '../validation/arguments.js'
import * as algebra from './algebra.js'
import { type Answer, type Item, parseAnswer } from './answer-parser.js'
import { printTokens, type Token, tokenize, trimmed } from './answer-tokens.js'
import { withoutUnit } from './answer-units.js'

/** Longer answers are only compared as text, integers or decimals. */
const maxLength = 4096
/** Irrational numbers are only compared approximately up to this size. A tolerance of 1e-6 is meaningless for larger ones. */
const maxApproximate = 1e6

function checkString(value: unknown, name: string, operation: string): void {
  if (typeof value === 'string') return
  throw new LoopLMError('INVALID_ARGUMENT', `${name} must be a string, got ${describe(value)}`, { operation })
}

/**
 * Normalizes the text of an answer. It removes white space, dollar signs, bracket sizes, `\text{…}` and similar commands,
 * thousands separators, a unit and a final full stop, and writes `\frac{1}{2}` for `\dfrac12`. Different forms of one value,
 * such as `1/2` and `0.5`, stay different: compare with {@link answersEqual}.
 *
 * @param answer the content of a box or a gold answer
 * @returns the normalized text; normalizing it again changes nothing
 *
 * @example
 * ```ts
 * normalizeAnswer('$\\dfrac12$') // '\\frac{1}{2}'
 * normalizeAnswer('1,234\\text{ cm}') // '1234'
 * ```
 */
export function normalizeAnswer(answer: string): string {
  checkString(answer, 'answer', 'normalizeAnswer')
  if (answer.length > maxLength) return plainText(answer)
  let tokens = withoutUnit(tokenize(answer).filter((token) => !isSymbol(token, '$')))
  while (isSymbol(tokens[0], '+')) tokens = tokens.slice(1)
  return printTokens(withBraces(trimmed(tokens)))
}

function isSymbol(token: Token | undefined, text: string): boolean {
  return token?.kind === 'symbol' && token.text === text
}

/** Adds the braces of `\frac12`. */
function withBraces(tokens: readonly Token[]): Token[] {
  const braced: Token[] = []
  let missing = 0 // arguments of a fraction that are still missing
  const symbol = (text: string): Token => ({ kind: 'symbol', text, spaced: false, upright: false, run: 0 })
  for (const token of tokens) {
    const { kind, text } = token
    if (missing > 0 && kind === 'number' && /^\d+$/.test(text)) {
      const digits = missing === 2 ? [...text.slice(0, 2)] : [text.slice(0, 1)]
      for (const digit of digits) braced.push(symbol('{'), { ...token, text: digit }, symbol('}'))
      const rest = text.slice(digits.length)
      if (rest !== '') braced.push({ ...token, text: rest, spaced: true })
      missing -= digits.length
      continue
    }
    braced.push(token)
    missing = kind === 'command' && text === 'frac' ? 2 : missing === 2 && kind === 'symbol' && text === '}' ? 1 : 0
  }
  return braced
}

/**
 * Whether two answers are equal, as text or, if both can be parsed, by value.
 *
 * Equal are `0.5`, `1/2`, `\dfrac12` and `50\%`; `2\sqrt3` and `\sqrt{12}`; `5 3/4` and `5.75`; `10^{3}` and `1{,}000`; `x+1`
 * and `1+x`; `x=5` and `5`; `\text{(A)}` and `A`; `\{1,2\}` and `\{2,1\}`; `5\text{ cm}` and `5`. Not equal are `(1,2)` and
 * `(2,1)`, `[0,1)` and `[0,1]`, `5\text{ cm}` and `5\text{ m}`, `5` and `5\text{ k}`, and an unevaluated sum or product of
 * numbers: `2+3` is not `5`. docs/rewards.md lists the rules.
 *
 * @param tolerance for numbers of which one has a decimal point, times min(1, larger magnitude); defaults to 1e-6. Other
 *   numbers are compared exactly.
 * @throws LoopLMError INVALID_ARGUMENT if an answer is not a string, or for a tolerance below 0
 *
 * @example
 * ```ts
 * answersEqual('\\frac{3}{4}', '0.75') // true
 * ```
 */
export function answersEqual(a: string, b: string, tolerance = 1e-6): boolean {
  checkString(a, 'a', 'answersEqual')
  checkString(b, 'b', 'answersEqual')
  checkNumber(tolerance, 'tolerance', { min: 0 }, 'answersEqual')
  const [decimalA, decimalB] = [decimalDigits(a), decimalDigits(b)]
  if (decimalA !== undefined && decimalA === decimalB) return true
  if (a.length > maxLength || b.length > maxLength) {
    const text = plainText(a)
    return text !== '' && text === plainText(b)
  }
  const [tokensA, tokensB] = [tokenize(a), tokenize(b)]
  if (tokensA.length === 0 || tokensB.length === 0) return false
  if (comparedText(tokensA) === comparedText(tokensB)) return true
  try {
    algebra.resetSteps()
    return sameAnswers(parseAnswer(tokensA), parseAnswer(tokensB), tolerance)
  } catch (error) {
    if (error instanceof algebra.Unknown) return false
    throw error
  }
}

/**
 * Normalizes the text of an answer that cannot be parsed or is unevaluated, such as 2^{3}·3. `^{3}` and `^3`, × and · are
 * equal.
 */
function comparedText(tokens: readonly Token[]): string {
  return printTokens(tokens)
    .replaceAll('×', '·')
    .replace(/([\^_])\{(\d+)\}(?![\d.])/g, '$1$2')
}

function plainText(answer: string): string {
  return answer.trim().replace(/\s+/g, ' ')
}

/**
 * The digits of an integer or a decimal without needless zeros, so that numbers of any length are compared exactly. undefined
 * for other text.
 */
function decimalDigits(text: string): string | undefined {
  const match = /^([+-]?)(\d+)(?:\.(\d*))?$/.exec(text.trim())
  if (match === null) return undefined
  const [, sign, whole = '', decimals = ''] = match
  let start = 0
  while (whole[start] === '0') start++
  let end = decimals.length
  while (decimals[end - 1] === '0') end--
  const digits = `${whole.slice(start)}.${decimals.slice(0, end)}`
  return sign === '-' && digits !== '.' ? `-${digits}` : digits
}

function sameAnswers(a: Answer, b: Answer, tolerance: number): boolean {
  const inequality = ({ items }: Answer) =>
    items.some((item) => item.type === 'relation' && item.operators.some((operator) => operator !== '='))
  if (a.items.length > 1 && b.items.length > 1 && a.joint !== b.joint && inequality(a)) return false
  const [namedA, namedB] = [asIntervals(a) ?? withoutName(a.items), asIntervals(b) ?? withoutName(b.items)]
  if (namedA.name !== undefined && namedB.name !== undefined && namedA.name !== namedB.name) {
    return sameUnordered(a.items, b.items, tolerance)
  }
  if (sameUnordered(namedA.items, namedB.items, tolerance)) return true
  if (sameList(namedA.items, namedB.items, tolerance) || sameList(namedB.items, namedA.items, tolerance)) return true
  return sameUnordered(a.items, b.items, tolerance)
}

/** Whether a list without brackets has the elements of a set. */
function sameList(list: readonly Item[], set: readonly Item[], tolerance: number): boolean {
  const [only] = set
  if (list.length < 2 || set.length !== 1 || only?.type !== 'group' || only.brackets !== '\\{\\}') return false
  return sameUnordered(list, only.items, tolerance)
}

/** Removes the name from `x = 2`, `x = 2, x = 3` or `x = 2, 3`. */
function withoutName(items: readonly Item[]): { name?: string; items: readonly Item[] } {
  const solved = items.map(solution)
  const name = solved[0]?.name
  if (name === undefined) return { items }
  const rest = items.map((item, i) => solved[i]?.value ?? item)
  if (solved.some((other) => other !== undefined && other.name !== name)) return { items }
  return rest.some((item) => item.type === 'relation') ? { items } : { name, items: rest }
}

/** Converts inequalities to intervals: `x > 5` to (5, ∞), `0 < x \le 1` to (0, 1], and several with `or` to their union. */
function asIntervals({ items, joint }: Answer): { name: string; items: readonly Item[] } | undefined {
  const found = items.map(intervalOf)
  const name = found[0]?.name
  if (name === undefined || (items.length > 1 && joint !== 'or')) return undefined
  const intervals = found.flatMap((interval) => (interval?.name === name ? [interval.item] : []))
  if (intervals.length < items.length) return undefined
  return { name, items: intervals.length === 1 ? intervals : [{ type: 'group', brackets: '∪', items: intervals }] }
}

function intervalOf(item: Item): { name: string; item: Item } | undefined {
  if (item.type !== 'relation') return undefined
  const turn = '>≥'.includes(item.operators[0]!)
  const operators = turn ? item.operators.map((operator) => turned.get(operator) ?? '').reverse() : item.operators
  if (operators.some((operator) => operator !== '<' && operator !== '≤')) return undefined
  const sides = turn ? [...item.sides].reverse() : item.sides
  const names = sides.map((side) => (side.type === 'value' ? nameOf(side) : undefined))
  const at = names.findIndex((name) => name !== undefined)
  if (at < 0 || at > 1 || sides.length > at + 2 || names.slice(at + 1).some((name) => name !== undefined)) return undefined
  const ends: Item[] = [sides[at - 1] ?? { type: 'infinity', sign: -1 }, sides[at + 1] ?? { type: 'infinity', sign: 1 }]
  const brackets = (operators[at - 1] === '≤' ? '[' : '(') + (operators[at] === '≤' ? ']' : ')')
  return { name: names[at]!, item: { type: 'group', brackets, items: ends } }
}

/** The name and the value of `x = 5`, `5 = x` or `x \in [0, 1]`. */
function solution(item: Item): { name: string; value: Item } | undefined {
  if (item.type !== 'relation' || item.sides.length !== 2 || !'=∈'.includes(item.operators[0]!)) return undefined
  const [left, right] = item.sides as [Item, Item]
  const pairs = item.operators[0] === '=' ? [[left, right] as const, [right, left] as const] : [[left, right] as const]
  for (const [side, value] of pairs) {
    const name = nameOf(side)
    if (name !== undefined && !(value.type === 'value' && algebra.contains(value.value, name))) return { name, value }
  }
  return undefined
}

/** The left side of an answer: a letter, `f(x)`, a word or `(x, y)`. */
function nameOf(item: Item): string | undefined {
  if (item.type === 'text') return item.text
  if (item.type === 'value') return item.unit === undefined ? algebra.atomOf(item.value) : undefined
  if (item.type !== 'group' || item.brackets !== '()') return undefined
  const names = item.items.map(nameOf)
  return names.includes(undefined) ? undefined : names.join(',')
}

function sameUnordered(a: readonly Item[], b: readonly Item[], tolerance: number): boolean {
  if (a.length !== b.length) return false
  const rest = [...b]
  return a.every((item) => {
    const found = rest.findIndex((other) => same(item, other, tolerance))
    if (found >= 0) rest.splice(found, 1)
    return found >= 0
  })
}

function same(a: Item, b: Item, tolerance: number): boolean {
  algebra.spend(10)
  if (a.type === 'value' && b.type === 'value') return sameValue(a, b, tolerance)
  if (a.type === 'infinity' && b.type === 'infinity') return a.sign === b.sign
  if (a.type === 'text' && b.type === 'text') return a.text === b.text
  if (a.type === 'relation' && b.type === 'relation') return sameRelation(a, b, tolerance)
  if (a.type !== 'group' || b.type !== 'group' || a.brackets !== b.brackets) return false
  if (a.brackets === '\\{\\}' || a.brackets === '∪') return sameUnordered(a.items, b.items, tolerance)
  return a.items.length === b.items.length && a.items.every((item, i) => same(item, b.items[i]!, tolerance))
}

type Relation = Extract<Item, { type: 'relation' }>
const turned = new Map(Object.entries({ '<': '>', '>': '<', '≤': '≥', '≥': '≤' }))

/**
 * Whether relations have the same sides in the same or the opposite direction, or are equations of which one is a multiple of
 * the other.
 */
function sameRelation(a: Relation, b: Relation, tolerance: number): boolean {
  const sameSides = ({ operators, sides }: Relation) =>
    operators.join() === b.operators.join() && sides.every((side, i) => same(side, b.sides[i]!, tolerance))
  const operators = a.operators.map((operator) => turned.get(operator) ?? operator).reverse()
  if (sameSides(a) || (!operators.includes('∈') && sameSides({ type: 'relation', operators, sides: [...a.sides].reverse() }))) {
    return true
  }
  if (a.operators.join() !== '=' || b.operators.join() !== '=' || isNumber(a) || isNumber(b)) return false
  const [left, right] = [difference(a), difference(b)]
  return left !== undefined && right !== undefined && algebra.proportional(left, right)
}

/** Whether an equation is solved: 2x = 10 is not equal to x = 5. */
function isNumber(relation: Relation): boolean {
  const value = solution(relation)?.value
  return value?.type === 'value' && algebra.rational(value.value) !== undefined
}

function difference({ sides }: Relation): algebra.Value | undefined {
  const [left, right] = sides
  if (left?.type !== 'value' || right?.type !== 'value' || left.unit !== undefined || right.unit !== undefined) return undefined
  return algebra.add(left.value, algebra.negate(right.value))
}

type ValueItem = Extract<Item, { type: 'value' }>

/** Compares values with the same unit or without one. 50% equals 0.5 and also 50, but 0.5% only equals 0.005. */
function sameValue(a: ValueItem, b: ValueItem, tolerance: number): boolean {
  if (a.unit === b.unit || (a.unit !== '%' && b.unit !== '%')) {
    return (a.unit === undefined || b.unit === undefined || a.unit === b.unit) && sameNumber(a, b, tolerance)
  }
  const [percent, other] = a.unit === '%' ? [a, b] : [b, a]
  if (other.unit !== undefined) return false
  const { value, decimal } = percent
  const hundredth = algebra.divide(value, algebra.number(algebra.fraction(100n)))
  if (sameNumber({ type: 'value', value: hundredth, decimal }, other, tolerance)) return true
  return Math.abs(algebra.approximate(value) ?? 0) >= 1 && sameNumber(percent, other, tolerance)
}

function sameNumber(a: ValueItem, b: ValueItem, tolerance: number): boolean {
  if (algebra.equal(a.value, b.value)) return true
  if (!a.decimal && !b.decimal) return false
  const difference = algebra.add(a.value, algebra.negate(b.value))
  const [x, y, distance] = [a.value, b.value, difference].map(algebra.approximate)
  if (x === undefined || y === undefined || distance === undefined) return false
  const size = Math.max(Math.abs(x), Math.abs(y))
  if (size > maxApproximate && algebra.rational(difference) === undefined) return false
  return Math.abs(distance) <= tolerance * Math.min(1, size)
}
