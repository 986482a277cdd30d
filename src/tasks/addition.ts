import { z } from 'zod'
import { parseOptions, type Same } from '../validation/schema.js'
import { defineTask, type Task } from './task.js'

const schema = z
  .strictObject({
    digits: z.int().min(1).max(15).default(5),
    minDigits: z.int().min(1).optional(),
    width: z.int().min(1).max(15).optional(),
  })
  .refine(({ digits, minDigits = digits }) => minDigits <= digits, {
    path: ['minDigits'],
    message: 'must not exceed digits',
  })
  .refine(({ digits, width = digits }) => width >= digits, { path: ['width'], message: 'must be at least digits' })

/** Options of {@link addition}. */
export interface AdditionOptions {
  /** Largest number of digits of an operand, 1 to 15. Defaults to 5. */
  digits?: number | undefined
  /**
   * Smallest number of digits. Each problem draws d between this and `digits`, then both operands from [0, 10^d). Stage I uses
   * 1. Defaults to `digits`.
   */
  minDigits?: number | undefined
  /** Number of digits that operands are zero-padded to. Defaults to `digits`. */
  width?: number | undefined
}
true satisfies Same<AdditionOptions, z.input<typeof schema>>

/**
 * Addition: `a+b=c`, zero-padded, most significant digit first, answered directly: `00123+04567=` → `004690`. Tokens are the
 * ten digits, `+` and `=`; the answer has `width + 1` digits, so no end token is needed.
 *
 * @throws LoopLMError INVALID_CONFIG naming the option
 *
 * @example
 * ```ts
 * const task = addition({ digits: 5, minDigits: 1 })
 * const { prompt, answer } = task.sample('train', 0)
 * task.reward(prompt, answer, { answer }) // 1
 * ```
 */
export function addition(options: AdditionOptions = {}): Task {
  const { digits, minDigits = digits, width = digits } = parseOptions('task addition', schema, options)
  return defineTask({
    name: 'addition',
    alphabet: '0123456789+=',
    maxPromptLength: 2 * width + 2,
    maxCompletionLength: width + 1,
    problems: 10 ** (2 * digits) / 2, // a+b and b+a count as one problem
    draw(random) {
      const range = 10 ** (minDigits + random.integer(digits - minDigits + 1))
      const a = random.integer(range)
      const b = random.integer(range)
      const prompt = `${String(a).padStart(width, '0')}+${String(b).padStart(width, '0')}=`
      const answer = String(a + b).padStart(width + 1, '0')
      return { problem: { prompt, answer }, key: a < b ? `${a}+${b}` : `${b}+${a}` }
    },
  })
}
