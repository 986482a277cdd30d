import { z } from 'zod'
import type { Random } from '../data/random.js'
import { parseOptions, type Same } from '../validation/schema.js'
import { apply, operators } from './modular.js'
import { defineTask, type Task } from './task.js'

const values = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ'
const variables = 'abcdefghijklmnopqrstuvwxyz'
const weight = z.number().min(0)

const schema = z
  .strictObject({
    modulus: z.int().min(2).max(values.length).default(11),
    operations: z.int().min(1).max(16).default(8),
    minOperations: z.int().min(1).optional(),
    traces: z
      .strictObject({
        direct: weight.default(1),
        half: weight.default(1),
        all: weight.default(1),
        twice: weight.default(1),
      })
      .refine((weights) => Object.values(weights).some((each) => each > 0), { message: 'at least one weight must be above 0' })
      .prefault({}),
  })
  .refine(({ operations, minOperations = 1 }) => minOperations <= operations, {
    path: ['minOperations'],
    message: 'must not exceed operations',
  })

/** How often each way to answer is shown in training, as relative weights. */
export interface TraceWeights {
  /** Only the requested value. Defaults to 1. */
  direct?: number | undefined
  /** The value of every second assignment. Defaults to 1. */
  half?: number | undefined
  /** The value of every assignment. Defaults to 1. */
  all?: number | undefined
  /** The values of all assignments, twice. Defaults to 1. */
  twice?: number | undefined
}

/** Options of {@link chain}. */
export interface ChainOptions {
  /** 2 to 36. Defaults to 11. */
  modulus?: number | undefined
  /** The most operations of a problem, 1 to 16. Defaults to 8. */
  operations?: number | undefined
  /** The fewest operations of a problem. Defaults to half of `operations`, rounded up. */
  minOperations?: number | undefined
  /** Weights of the ways to answer in training sequences. */
  traces?: TraceWeights | undefined
}
true satisfies Same<ChainOptions, z.input<typeof schema>>

/**
 * A chain of assignments modulo a number: `a=7;b=a*3;c=b+a;?c` asks for c. Every value is one token (0 to 9, then A to Z). A
 * response may show its work: only the requested value (`direct`), the value of every second assignment (`half`), of `all`, or
 * all of them `twice`. The last character is the answer, and `.` ends a completion. Pre-training shows all four ways (column
 * `completion`), so that a policy can choose how much it writes.
 *
 * @throws LoopLMError INVALID_CONFIG naming the option
 *
 * @example
 * ```ts
 * const task = chain({ operations: 6, traces: { direct: 1, half: 0, all: 1, twice: 0 } })
 * const { prompt, answer } = task.sample('test', 0)
 * task.reward(prompt, answer, { answer }) // 1
 * ```
 */
export function chain(options: ChainOptions = {}): Task {
  const { modulus, operations, minOperations = Math.ceil(operations / 2), traces } = parseOptions('task chain', schema, options)
  return defineTask({
    name: 'chain',
    alphabet: `${values.slice(0, modulus)}${variables.slice(0, operations + 1)}${operators.join('')}=;?.`,
    maxPromptLength: 4 + 6 * operations + 2, // `a=7;`, then `b=a*3;` each, and `?c`
    maxCompletionLength: 2 * (operations + 1) + 1,
    problems: modulus ** (operations + 1),
    end: '.',
    answerOf: (completion) => completion.slice(-1),
    draw(random) {
      const count = minOperations + random.integer(operations - minOperations + 1)
      const results = [random.integer(modulus)]
      const statements = [`a=${values[results[0]!]}`]
      for (let i = 1; i <= count; i++) {
        const operator = operators[random.integer(operators.length)]!
        // Every assignment uses the previous one, so that none can be skipped.
        const earlier = random.integer(2) === 0 ? random.integer(i) : undefined
        const other = earlier === undefined ? random.integer(modulus) : results[earlier]!
        results.push(apply(operator, results[i - 1]!, other, modulus))
        const operand = earlier === undefined ? values[other] : variables[earlier]
        statements.push(`${variables[i]}=${variables[i - 1]}${operator}${operand}`)
      }
      const prompt = `${statements.join(';')};?${variables[count]}`
      const shown = results.map((value) => values[value]!)
      const ways = {
        direct: () => shown.at(-1)!,
        half: () => shown.filter((_, i) => (count - i) % 2 === 0).join(''),
        all: () => shown.join(''),
        twice: () => shown.map((value) => value + value).join(''),
      }
      return { problem: { prompt, answer: shown.at(-1)!, completion: ways[drawWeighted(random, traces)]() }, key: prompt }
    },
  })
}

/** Draws a name with a probability proportional to its weight. */
function drawWeighted<Name extends string>(random: Random, weights: Readonly<Record<Name, number>>): Name {
  const entries = Object.entries(weights) as [Name, number][]
  let rest = random.uniform() * entries.reduce((sum, [, weight]) => sum + weight, 0)
  const found = entries.find(([, weight]) => {
    rest -= weight
    return rest < 0
  })
  return (found ?? entries.findLast(([, weight]) => weight > 0)!)[0]
}
