import { z } from 'zod'
import { parseOptions, type Same } from '../validation/schema.js'
import { defineTask, type Task } from './task.js'

const symbols = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz' // in the order of their character codes

const schema = z.strictObject({
  count: z.int().min(2).max(1024).default(8),
  values: z.int().min(2).max(symbols.length).default(32),
})

/** Options of {@link sorting}. */
export interface SortingOptions {
  /** Length of the list, 2 to 1024. Defaults to 8. */
  count?: number | undefined
  /** Number of different values, 2 to 62. Defaults to 32. */
  values?: number | undefined
}
true satisfies Same<SortingOptions, z.input<typeof schema>>

/**
 * Sorts a list: `3A07=` → `037A`. A value is one token out of 0–9, A–Z, a–z, in that order; values may repeat.
 *
 * @throws LoopLMError INVALID_CONFIG naming the option
 *
 * @example
 * ```ts
 * const task = sorting({ count: 8, values: 32 })
 * ```
 */
export function sorting(options: SortingOptions = {}): Task {
  const { count, values } = parseOptions('task sorting', schema, options)
  return defineTask({
    name: 'sorting',
    alphabet: `${symbols.slice(0, values)}=`,
    maxPromptLength: count + 1,
    maxCompletionLength: count,
    problems: values ** count,
    draw(random) {
      const list = Array.from({ length: count }, () => random.integer(values))
      const text = list.map((value) => symbols[value]).join('')
      list.sort((a, b) => a - b)
      const answer = list.map((value) => symbols[value]).join('')
      return { problem: { prompt: `${text}=`, answer }, key: text }
    },
  })
}
