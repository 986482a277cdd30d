import { z } from 'zod'
import { parseOptions, type Same } from '../validation/schema.js'
import { defineTask, type Task } from './task.js'

const schema = z.strictObject({
  bits: z.int().min(2).max(128).default(16),
  written: z.number().min(0).max(1).default(0.5),
})

/** Options of {@link parity}. */
export interface ParityOptions {
  /** Number of bits of a problem, 2 to 128. Defaults to 16. */
  bits?: number | undefined
  /** Fraction of the training completions that write every parity, 0 to 1. Defaults to 0.5. */
  written?: number | undefined
}
true satisfies Same<ParityOptions, z.input<typeof schema>>

/**
 * Whether a string of bits has an odd number of ones, after Tsilivis et al., arXiv 2510.11495. `0110=` is answered `0`, either
 * directly or by writing the parity of every prefix: `0100`. The last character is the answer, and `.` ends a completion.
 * Pre-training shows both ways (column `completion`), so that a policy can choose how much it writes.
 *
 * @throws LoopLMError INVALID_CONFIG naming the option
 *
 * @example
 * ```ts
 * const task = parity({ bits: 12, written: 0.25 })
 * const { prompt, answer } = task.sample('train', 0)
 * task.reward(prompt, answer, { answer }) // 1
 * ```
 */
export function parity(options: ParityOptions = {}): Task {
  const { bits, written } = parseOptions('task parity', schema, options)
  return defineTask({
    name: 'parity',
    alphabet: '01=.',
    maxPromptLength: bits + 1,
    maxCompletionLength: bits + 1,
    problems: 2 ** bits,
    end: '.',
    answerOf: (completion) => completion.slice(-1),
    draw(random) {
      const drawn = Array.from({ length: bits }, () => random.integer(2))
      let odd = 0
      const parities = drawn.map((bit) => {
        odd ^= bit
        return odd
      })
      const answer = `${odd}`
      const text = drawn.join('')
      const completion = random.uniform() < written ? parities.join('') : answer
      return { problem: { prompt: `${text}=`, answer, completion }, key: text }
    },
  })
}
