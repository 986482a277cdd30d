import { Random } from '../data/random.js'
import { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'
import { checkFunction, checkNumber, checkOptions, checkText, type Keys } from '../validation/arguments.js'

/** Training or held-out problems. */
export type Split = 'train' | 'test'

/** A question and its answer. Other columns are passed to reward functions. */
export interface Problem {
  /** The question. */
  prompt: string
  /** The right answer. */
  answer: string
  [column: string]: unknown
}

/** A source of problems that a model can be trained and tested on. */
export interface Task {
  /** The name in metrics and configuration files. */
  readonly name: string
  /** Turns prompts and answers into tokens. */
  readonly tokenizer: Tokenizer
  /** The longest prompt, in tokens. */
  readonly maxPromptLength: number
  /** The longest completion, in tokens. Generation stops there. */
  readonly maxCompletionLength: number
  /** Token ids that end a completion. Empty if every answer has `maxCompletionLength` tokens. */
  readonly stop: readonly number[]
  /** Whether test problems never occur in training. Only false if there are too few problems to hold some out. */
  readonly heldOut: boolean
  /**
   * Returns a problem, as a pure function of its arguments.
   *
   * @param split training or held-out problems
   * @param index a natural number; problems with different indices are drawn independently, so they may coincide
   * @param seed defaults to 0; which problems are held out does not depend on it
   */
  sample(split: Split, index: number, seed?: number): Problem
  /**
   * The score of a completion: 1 if right, 0 if wrong.
   *
   * @param columns the problem that `sample` returned
   */
  reward(prompt: string, completion: string, columns: Record<string, unknown>): number
}

/** The definition of a task. {@link defineTask} adds the rest. */
export interface TaskDefinition {
  /** The name in metrics. */
  name: string
  /** All characters of prompts and answers, in the order of their token ids. */
  alphabet: string
  /** The longest prompt, in characters. */
  maxPromptLength: number
  /** The longest completion, in characters. Generation stops there. */
  maxCompletionLength: number
  /** The number of different problems, for {@link Task.heldOut}. */
  problems: number
  /**
   * The character of the alphabet that ends a completion. Omit it if every answer has `maxCompletionLength` characters. A
   * completion that reaches `maxCompletionLength` without it scores 0.
   */
  end?: string
  /** The part of a completion that is compared with the answer. Defaults to all of it. */
  answerOf?(completion: string): string
  /** Draws a problem. */
  draw(random: Random): {
    /** The problem. */
    problem: Problem
    /** Equal for variants of a problem, which stay in the same split. */
    key: string
  }
}

const testShare = 8 // one in eight problems is held out
const minHeldOutProblems = 64
const maxDraws = 10_000

/**
 * Creates a task with single-character tokens whose answers are compared exactly. A hash of a problem's key, independent of the
 * seed, decides whether it belongs to the test split. `sample` draws until the split is the requested one.
 *
 * @throws LoopLMError INVALID_ARGUMENT naming the field
 *
 * @example
 * ```ts
 * const doubling = defineTask({
 *   name: 'doubling',
 *   alphabet: '0123456789*=',
 *   maxPromptLength: 5,
 *   maxCompletionLength: 3,
 *   problems: 100,
 *   draw(random) {
 *     const number = random.integer(100)
 *     const [text, twice] = [String(number).padStart(2, '0'), String(2 * number).padStart(3, '0')]
 *     return { problem: { prompt: `2*${text}=`, answer: twice }, key: text }
 *   },
 * })
 * ```
 */
export function defineTask(definition: TaskDefinition): Task {
  checkDefinition(definition)
  const { name, maxPromptLength, maxCompletionLength, draw, end, answerOf = (completion) => completion } = definition
  const tokenizer = Tokenizer.characters(definition.alphabet)
  const heldOut = definition.problems >= minHeldOutProblems

  function sample(split: Split, index: number, seed = 0): Problem {
    if (split !== 'train' && split !== 'test') {
      const message = `split must be "train" or "test", got ${JSON.stringify(split)}`
      throw new LoopLMError('INVALID_ARGUMENT', message, { operation: `${name}.sample` })
    }
    const random = new Random(seed, index, split === 'train' ? 0 : 1)
    for (let attempt = 0; attempt < maxDraws; attempt++) {
      const { problem, key } = draw(random)
      if (!heldOut || splitOf(key) === split) return problem
    }
    throw new LoopLMError('INTERNAL', `no ${split} problem in ${maxDraws} draws`, { operation: `${name}.sample` })
  }

  /** Whether a completion ended with the end token, which is not part of its text. A completion that was cut off is longer. */
  const ended = (completion: string) => end === undefined || [...completion].length < maxCompletionLength

  return {
    name,
    tokenizer,
    maxPromptLength,
    maxCompletionLength,
    stop: end === undefined ? [] : tokenizer.encode(end),
    heldOut,
    sample,
    reward: (_prompt, completion, columns) => (ended(completion) && answerOf(completion) === columns.answer ? 1 : 0),
  }
}

const definitionFields: Keys<TaskDefinition> = {
  name: true,
  alphabet: true,
  maxPromptLength: true,
  maxCompletionLength: true,
  problems: true,
  end: true,
  answerOf: true,
  draw: true,
}

function checkDefinition(definition: TaskDefinition): void {
  const operation = 'defineTask'
  checkOptions(definition, definitionFields, operation, 'definition')
  const { end, answerOf } = definition
  checkText(definition.name, 'name', 'the name of the task', operation)
  checkText(definition.alphabet, 'alphabet', 'the characters of prompts and answers', operation)
  for (const field of ['maxPromptLength', 'maxCompletionLength'] as const)
    checkNumber(definition[field], field, { min: 1, integer: true }, operation)
  checkNumber(definition.problems, 'problems', { min: 1 }, operation) // more than an integer can count, perhaps
  if (end !== undefined) {
    checkText(end, 'end', 'a character of the alphabet', operation)
    if ([...end].length > 1 || !definition.alphabet.includes(end))
      throw new LoopLMError('INVALID_ARGUMENT', `end must be a character of the alphabet, got '${end}'`, { operation })
  }
  if (answerOf !== undefined) checkFunction(answerOf, 'answerOf', operation)
  checkFunction(definition.draw, 'draw', operation)
}

/** FNV-1a over the characters, then the finaliser of MurmurHash3 so that every bit of the key reaches the low bits. */
function splitOf(key: string): Split {
  let hash = 0x811c9dc5
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return ((hash ^ (hash >>> 16)) >>> 0) % testShare === 0 ? 'test' : 'train'
}
