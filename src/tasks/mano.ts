import { z } from 'zod'
import type { Random } from '../data/random.js'
import { parseOptions, type Same } from '../validation/schema.js'
import { apply, operators } from './modular.js'
import { defineTask, type Task } from './task.js'

const digits = '0123456789abcdefghijklmnopqrstuvwxyz'

const schema = z.strictObject({
  modulus: z.int().min(2).max(digits.length).default(10),
  operations: z.int().min(1).max(64).default(3),
})

/** Options of {@link mano}. */
export interface ManoOptions {
  /** 2 to 36. Defaults to 10. */
  modulus?: number | undefined
  /** Each problem has 1 to this many of `+`, `-`, `*`. 1 to 64, defaults to 3. */
  operations?: number | undefined
}
true satisfies Same<ManoOptions, z.input<typeof schema>>

/**
 * Mano, mental modular arithmetic on prefix expressions, after Allen-Zhu, "Physics of Language Models: Part 4.1" (2025): with
 * modulus 10, `*+374=` means (3 + 7) * 4 and is answered `0`. A number is one token (0–9, then a–z), and so is the answer.
 *
 * @throws LoopLMError INVALID_CONFIG naming the option
 *
 * @example
 * ```ts
 * const task = mano({ modulus: 23, operations: 10 })
 * ```
 */
export function mano(options: ManoOptions = {}): Task {
  const { modulus, operations } = parseOptions('task mano', schema, options)
  return defineTask({
    name: 'mano',
    alphabet: `${digits.slice(0, modulus)}${operators.join('')}=`,
    maxPromptLength: 2 * operations + 2,
    maxCompletionLength: 1,
    problems: countExpressions(operations, modulus),
    draw(random) {
      const { text, value } = expression(random, 1 + random.integer(operations), modulus)
      return { problem: { prompt: `${text}=`, answer: digits[value]! }, key: text }
    },
  })
}

/**
 * A random expression with exactly `operations` operators. Each split of the remaining operators between both sides is equally
 * likely.
 */
function expression(random: Random, operations: number, modulus: number): { text: string; value: number } {
  if (operations === 0) {
    const value = random.integer(modulus)
    return { text: digits[value]!, value }
  }
  const operator = operators[random.integer(operators.length)]!
  const leftOperations = random.integer(operations)
  const left = expression(random, leftOperations, modulus)
  const right = expression(random, operations - 1 - leftOperations, modulus)
  return { text: operator + left.text + right.text, value: apply(operator, left.value, right.value, modulus) }
}

/** How many expressions have 1 to `operations` operators: trees (Catalan numbers) times operators times numbers. */
function countExpressions(operations: number, modulus: number): number {
  let trees = 1
  let count = 0
  for (let n = 1; n <= operations; n++) {
    trees = (trees * 2 * (2 * n - 1)) / (n + 1)
    count += trees * operators.length ** n * modulus ** (n + 1)
  }
  return count
}
