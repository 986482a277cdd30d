import { lastBoxed } from '../data/boxed.js'
import { withoutThinking } from './thinking.js'

/*
 * Countdown: reach a target with given numbers and the four operations. Many answers are right, so the answer is evaluated
 * instead of compared.
 */

/** The longest expression that is parsed. A real one has a few characters per number. */
const maxCharacters = 1000

/** A fraction in lowest terms, its denominator positive. */
type Fraction = readonly [numerator: bigint, denominator: bigint]

/**
 * 1 if the last `\boxed{…}` of the completion is an expression that uses each number of the column `nums` exactly once, with
 * `+ - * / ( )`, and has the value of the column `target`, else 0. null without these columns. The arithmetic is exact. A box
 * inside `<think>…</think>` is not an answer. `\times`, `\cdot`, `\div` and a final `= target` are accepted too.
 *
 * @example
 * ```ts
 * countdownMatch('…', '\\boxed{(6 - 1) * 5}', { nums: [1, 5, 6], target: 25 }) // 1
 * ```
 */
export function countdownMatch(prompt: string, completion: string, columns: Record<string, unknown>): number | null {
  const { nums, target } = columns
  if (!Array.isArray(nums) || !nums.every(Number.isSafeInteger) || !Number.isSafeInteger(target)) return null
  const given = lastBoxed(withoutThinking(completion, prompt))
  if (given === undefined || given.length > maxCharacters) return 0
  const expression = given
    .replaceAll(/\\times|\\cdot|×|·/g, '*')
    .replaceAll(/\\div|÷/g, '/')
    .replaceAll('−', '-')
    .replaceAll(/\\left|\\right|\s/g, '')
    .replace(new RegExp(`=${target}$`), '')
  const used: number[] = []
  const value = new Expression(expression, used).value()
  const sorted = (list: readonly number[]) => list.toSorted((a, b) => a - b).join()
  return value !== undefined && value[1] === 1n && value[0] === BigInt(target as number) && sorted(used) === sorted(nums) ? 1 : 0
}

/** Parses sums of products of numbers and brackets. */
class Expression {
  #at = 0

  constructor(
    readonly text: string,
    readonly used: number[],
  ) {}

  /** undefined for text that is not an expression, and for a division by zero. */
  value(): Fraction | undefined {
    const value = this.#sum()
    return this.#at === this.text.length ? value : undefined
  }

  #sum(): Fraction | undefined {
    let sum = this.#product()
    for (let mark = this.text[this.#at]; sum !== undefined && (mark === '+' || mark === '-'); mark = this.text[this.#at]) {
      this.#at++
      const next = this.#product()
      if (next === undefined) return undefined
      const sign = mark === '+' ? 1n : -1n
      sum = reduced(sum[0] * next[1] + sign * next[0] * sum[1], sum[1] * next[1])
    }
    return sum
  }

  #product(): Fraction | undefined {
    let product = this.#factor()
    for (let mark = this.text[this.#at]; product !== undefined && (mark === '*' || mark === '/'); mark = this.text[this.#at]) {
      this.#at++
      const next = this.#factor()
      if (next === undefined || (mark === '/' && next[0] === 0n)) return undefined
      const [a, b] = mark === '*' ? next : [next[1], next[0]]
      product = reduced(product[0] * a, product[1] * b)
    }
    return product
  }

  #factor(): Fraction | undefined {
    if (this.text[this.#at] === '(') {
      this.#at++
      const inner = this.#sum()
      if (this.text[this.#at++] !== ')') return undefined
      return inner
    }
    const digits = /^\d{1,15}(?!\d)/.exec(this.text.slice(this.#at, this.#at + 16))?.[0]
    if (digits === undefined) return undefined
    this.#at += digits.length
    this.used.push(Number(digits))
    return [BigInt(digits), 1n]
  }
}

function reduced(numerator: bigint, denominator: bigint): Fraction {
  let [a, b] = [numerator < 0n ? -numerator : numerator, denominator < 0n ? -denominator : denominator]
  while (b !== 0n) [a, b] = [b, a % b]
  const divisor = denominator < 0n ? -a : a
  return divisor === 0n ? [0n, 1n] : [numerator / divisor, denominator / divisor]
}
