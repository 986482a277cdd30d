import { Random } from '../data/random.js'
import { Tokenizer } from '../data/tokenizer.js'
import { LoopLMError } from '../errors.js'

/** Training problems and held-out ones. */
export type Split = 'train' | 'test'

/** A question with its answer; further columns are passed to reward functions. */
export interface Problem {
  /** The question. */
  prompt: string
  /** The right answer. */
  answer: string
  [column: string]: unknown
}

/** A source of problems that a model can be trained and tested on. */
export interface Task {
  /** How metrics and configuration files call it. */
  readonly name: string
  /** Turns prompts and answers into tokens. */
  readonly tokenizer: Tokenizer
  /** Longest prompt, in tokens. */
  readonly maxPromptLength: number
  /** Longest completion, in tokens; generation stops there. */
  readonly maxCompletionLength: number
  /** Token ids that end a completion. Empty where every answer has `maxCompletionLength` tokens. */
  readonly stop: readonly number[]
  /** Whether no test problem is ever a training problem. False only where there are too few problems to keep some back. */
  readonly heldOut: boolean
  /**
   * A problem as a pure function of its address.
   *
   * @param split training or held-out problems
   * @param index a natural number; problems with different indices are drawn independently, so they may coincide
   * @param seed default 0; which problems are held out does not depend on it
   */
  sample(split: Split, index: number, seed?: number): Problem
  /**
   * The score of a completion, 1 when right and 0 when wrong.
   *
   * @param columns the problem that `sample` returned
   */
  reward(prompt: string, completion: string, columns: Record<string, unknown>): number
}

/** What a task consists of; {@link defineTask} adds the rest. */
export interface TaskDefinition {
  /** How metrics call it. */
  name: string
  /** All characters of prompts and answers, in the order of their token ids. */
  alphabet: string
  /** Longest prompt, in characters. */
  maxPromptLength: number
  /** Longest completion, in characters; generation stops there. */
  maxCompletionLength: number
  /** How many different problems there are, for {@link Task.heldOut}. */
  problems: number
  /**
   * The character of the alphabet that ends a completion; omit it where every answer has `maxCompletionLength` characters. A
   * completion that reaches `maxCompletionLength` without it earns 0.
   */
  end?: string
  /** The part of a completion that is compared with the answer; default all of it. */
  answerOf?(completion: string): string
  /** Draws a problem. */
  draw(random: Random): {
    /** The problem. */
    problem: Problem
    /** The same for variants of a problem, which stay in one split. */
    key: string
  }
}

const testShare = 8 // one in eight problems is held out
const minHeldOutProblems = 64
const maxDraws = 10_000

/**
 * Builds a task whose problems are made of single-character tokens and whose answers are matched exactly. A problem belongs
 * to the test split when a hash of its key says so, whatever the seed; `sample` draws until the split is the wanted one.
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

  /** Whether a completion came to its end, which is not in its text: one that was cut off is as long as text and end together. */
  const ended = (completion: string) => end === undefined || completion.length < maxCompletionLength

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

/** FNV-1a over the characters, then the finaliser of MurmurHash3 so that every bit of the key reaches the low bits. */
function splitOf(key: string): Split {
  let hash = 0x811c9dc5
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return ((hash ^ (hash >>> 16)) >>> 0) % testShare === 0 ? 'test' : 'train'
}
